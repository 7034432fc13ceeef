"""Submitting, against an HTTP server that answers kfp's client as Kubeflow Pipelines does."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest

from pipelines import submit

API = "/apis/v2beta1"
TOKEN = "s3cr3t-token"


class Cluster(ThreadingHTTPServer):
    """Pipelines, versions, experiments and runs, as far as a submission touches them."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.requests = []
        self.named = {"pipelines": {}, "versions": {}, "experiments": {}}
        self.states = ["SUCCEEDED"]
        self.fails = {}  # path to (status, body)

    def sent(self, method, path):
        return [request for request in self.requests if request["at"] == (method, API + path)]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        url, cluster = self._record(b""), self.server
        if url.path in cluster.fails:
            self._answer(*cluster.fails[url.path])
        elif url.path == f"{API}/healthz":
            self._answer(200, {"multi_user": False})
        elif url.path.startswith(f"{API}/runs/"):
            state = cluster.states.pop(0) if len(cluster.states) > 1 else cluster.states[0]
            self._answer(200, {"run_id": url.path.rpartition("/")[2], "state": state})
        else:
            kind = url.path.rpartition("/")[2]
            wanted = json.loads(parse_qs(url.query)["filter"][0])["predicates"][0]["stringValue"]
            found = [entry for name, entry in cluster.named[kind].items() if name == wanted]
            self._answer(200, {{"versions": "pipeline_versions"}.get(kind, kind): found})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url, named = self._record(body), self.server.named
        name = parse_qs(url.query).get("name", [""])[0]
        if url.path in self.server.fails:
            self._answer(*self.server.fails[url.path])
        elif url.path == f"{API}/pipelines/upload":
            self._answer(200, named["pipelines"].setdefault(name, {"pipeline_id": "pipe-1"}))
        elif url.path == f"{API}/pipelines/upload_version":
            version = {"pipeline_id": "pipe-1", "pipeline_version_id": f"v-{name}"}
            self._answer(200, named["versions"].setdefault(name, version))
        elif url.path == f"{API}/experiments":
            name = json.loads(body)["display_name"]
            self._answer(200, named["experiments"].setdefault(name, {"experiment_id": "exp-1"}))
        elif url.path == f"{API}/runs":
            self._answer(200, {"run_id": f"run-{len(self.server.sent('POST', '/runs'))}"})

    def _record(self, body):
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.server.requests.append(
            {
                "at": (self.command, url.path),
                "query": query,
                "body": body,
                "token": self.headers["Authorization"],
            }
        )
        return url

    def _answer(self, status, content, location=""):
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    monkeypatch.delenv("KFP_TOKEN", raising=False)
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "no-context.json"))
    with Cluster() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_uploads_creates_experiment_and_run_with_the_runs_parameters(cluster, capfd):
    code = submit.main(["--host", cluster.address + "/", "ncf_movielens_100k", "hyperparameters.epochs=3"])
    assert code == 0
    [upload] = cluster.sent("POST", "/pipelines/upload_version")
    assert b"components.train.launch" in upload["body"]
    assert upload["query"]["pipelineid"] == "pipe-1"
    [created] = cluster.sent("POST", "/runs")
    run = json.loads(created["body"])
    assert run["experiment_id"] == "exp-1"
    assert run["display_name"].startswith("ncf_movielens_100k-")
    assert run["pipeline_version_reference"] == {
        "pipeline_id": "pipe-1",
        "pipeline_version_id": "v-" + upload["query"]["name"],
    }
    values = run["runtime_config"]["parameters"]
    assert (values["model"], values["dataset"]) == ("ncf", "movielens-100k")
    assert values["hyperparameters"] == {"batch_size": 16384, "epochs": 3}
    assert values["gpus"] == "0"
    assert run.get("service_account") is None
    assert (
        f"ncf_movielens_100k: {cluster.address}/#/runs/details/run-1" in capfd.readouterr().out.splitlines()
    )


def test_uploads_the_same_pipeline_once_and_a_changed_one_as_a_new_version(cluster, monkeypatch):
    for _ in range(2):
        assert submit.main(["--host", cluster.address, "ncf_synthetic,vae_cf_synthetic"]) == 0
    assert len(cluster.sent("POST", "/pipelines/upload")) == 1
    assert len(cluster.sent("POST", "/pipelines/upload_version")) == 1
    assert len(cluster.sent("POST", "/experiments")) == 1
    assert len(cluster.sent("POST", "/runs")) == 4

    def changed(path):
        original(path).write_text(path.read_text() + "# changed\n")
        return path

    original = submit.compile_pipeline
    monkeypatch.setattr(submit, "compile_pipeline", changed)
    assert submit.main(["--host", cluster.address, "ncf_synthetic"]) == 0
    first, second = cluster.sent("POST", "/pipelines/upload_version")
    assert first["query"]["name"] != second["query"]["name"]


def test_token_namespace_and_service_account_reach_the_cluster(cluster, tmp_path, capfd):
    (tmp_path / "token").write_text(TOKEN + "\n")
    options = ["--token-file", str(tmp_path / "token"), "--namespace", "ana", "--service-account", "trainer"]
    assert submit.main(["--host", cluster.address, "ncf_synthetic", *options]) == 0
    assert {request["token"] for request in cluster.requests} == {f"Bearer {TOKEN}"}
    [experiment] = cluster.sent("POST", "/experiments")
    assert json.loads(experiment["body"])["namespace"] == "ana"
    assert cluster.sent("GET", "/pipelines")[0]["query"]["namespace"] == "ana"
    assert cluster.sent("POST", "/pipelines/upload")[0]["query"]["namespace"] == "ana"
    [run] = cluster.sent("POST", "/runs")
    assert json.loads(run["body"])["service_account"] == "trainer"
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err


@pytest.mark.parametrize(("last", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_waits_for_the_end_and_fails_with_the_run(cluster, capfd, last, code):
    cluster.states = ["PENDING", "RUNNING", "RUNNING", last]
    argv = ["--host", cluster.address, "ncf_synthetic", "--wait", "--poll-seconds", "0"]
    assert submit.main(argv) == code
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("ncf_synthetic: ")]
    assert [line.removeprefix("ncf_synthetic: ") for line in lines[1:]] == [
        "pending",
        "running",
        last.lower(),
    ]


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/healthz", (401, "no"), "refused (401); put a valid token into KFP_TOKEN or --token-file"),
        (
            "/healthz",
            (302, "", "https://login.invalid/auth?state=x"),
            "redirects to https://login.invalid/auth;",
        ),
        ("/healthz", (200, "<html>Log in</html>"), "does not answer as Kubeflow Pipelines does"),
        ("/healthz", (404, "{}"), "does not answer as Kubeflow Pipelines does (status 404)"),
        ("/pipelines/upload", (403, "{}"), "refused (403)"),
        ("/runs", (400, {"message": "no quota\nleft"}), "400 Bad Request: no quota left"),
    ],
)
def test_refusal_is_one_line(cluster, capfd, monkeypatch, path, answer, message):
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    cluster.fails = {API + path: answer}
    assert submit.main(["--host", cluster.address, "ncf_synthetic"]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert TOKEN not in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ncf_synthetik"], "did you mean 'ncf_synthetic'?"),
        ([","], "RUN is empty"),
        (["ncf_synthetic", "sed=7"], "did you mean 'seed'?"),
        (
            ["ncf_synthetic", "source=../shared/data/ml-100k.zip"],
            "source=../shared/data/ml-100k.zip is a path",
        ),
        (["ncf_synthetic", "--token-file", "no/such/file"], "--token-file no/such/file: cannot be read"),
    ],
)
def test_wrong_command_line_asks_the_cluster_nothing(cluster, capfd, argv, message):
    assert submit.main(["--host", cluster.address, *argv]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert cluster.requests == []


def test_unreachable_host_is_one_line(capfd):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert submit.main(["--host", address, "ncf_synthetic"]) == 2
    error = capfd.readouterr().err
    assert f"--host {address}: cannot be reached" in error
    assert len(error.splitlines()) == 1


def test_host_without_a_scheme_is_refused(capfd):
    assert submit.main(["--host", "kubeflow.invalid", "ncf_synthetic"]) == 2
    assert "http://" in capfd.readouterr().err
