"""Submits runs to a cluster: ``python -m pipelines.submit --host URL RUN[,RUN...] [key=value ...]``.

Uploads the compiled pipeline (a new version when the cluster holds another one), creates the experiment when
it is new, starts the runs and prints their dashboard links; with ``--wait``, follows them to their end.

Who submits is said by a bearer token, in the variable KFP_TOKEN or in the file ``--token-file``; it is never
a flag, so that it shows in no process list, and it is never printed. Set REGISTRY (and TAG) to where the
images are.

Exit code: 0 when submitted (with ``--wait``: when all succeeded), 1 when a run did not succeed, 2 for a
user's mistake, which includes a host that cannot be reached or refuses the token.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import requests
import urllib3

from pipelines import parameters
from pipelines.pipeline import NAME, compile_pipeline
from recsys.step import USER_MISTAKE, UserError

SECONDS_TO_CONNECT = 10
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")


def main(argv: list[str] | None = None) -> int:
    """Submits; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.submit", allow_abbrev=False)
    parser.add_argument("runs", metavar="RUN[,RUN...]", help="file names in pipelines/runs/, without .yaml")
    parser.add_argument("words", nargs="*", metavar="key=value", help="pipeline parameters of all these runs")
    parser.add_argument("--params", default="", help="more key=value words, quoted as in a shell")
    parser.add_argument("--host", required=True, help="address of Kubeflow Pipelines, http(s)://...")
    parser.add_argument("--experiment", default=NAME, help=f"default: {NAME}")
    parser.add_argument("--namespace", default="", help="the profile, where Kubeflow has several users")
    parser.add_argument("--service-account", default="", help="of the pods; default: the cluster's")
    parser.add_argument("--token-file", type=Path, help="file with a bearer token; else variable KFP_TOKEN")
    parser.add_argument("--wait", action="store_true", help="wait for the runs to end")
    parser.add_argument("--poll-seconds", type=float, default=10.0, help="between two looks at a run")
    arguments = parser.parse_intermixed_args(argv)
    try:
        return submit(arguments)
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print(f"{parser.prog}: no longer waiting; what was started goes on in the cluster", file=sys.stderr)
        return 128 + signal.SIGINT


def submit(arguments: argparse.Namespace) -> int:
    """Uploads and starts the runs; returns 1 when it waited for one that did not succeed."""
    words = [*parameters.split(arguments.params), *arguments.words]
    names = [part.strip() for part in arguments.runs.split(",") if part.strip()]
    with tempfile.TemporaryDirectory() as folder:
        package = compile_pipeline(Path(folder) / "pipeline.yaml")
        runs = [(name, _for_cluster(parameters.resolve(name, words, package))) for name in names]
        if not runs:
            raise UserError(f"RUN is empty; runs: {', '.join(parameters.names())}")
        token = _token(arguments.token_file)
        host = _reachable(arguments.host, token)
        with _one_line_errors(host):
            client = _client(host, arguments.namespace, token)
            pipeline, version = _upload(client, package, arguments.namespace)
            experiment = client.create_experiment(arguments.experiment, namespace=arguments.namespace or None)
            started = []
            for name, values in runs:
                run = client.run_pipeline(
                    experiment.experiment_id,
                    f"{name}-{datetime.now():%Y%m%d-%H%M%S}",
                    pipeline_id=pipeline,
                    version_id=version,
                    params=values,
                    service_account=arguments.service_account or None,
                )
                _say(f"{name}: {host}/#/runs/details/{run.run_id}")
                started.append((name, run.run_id))
            if not arguments.wait:
                return 0
            states = [_wait(client, name, run_id, arguments.poll_seconds) for name, run_id in started]
            return int(any(state != "SUCCEEDED" for state in states))


def _for_cluster(values: Mapping[str, Any]) -> dict[str, Any]:
    for key in parameters.PATHS:
        if parameters.is_local(values[key]) or values[key].startswith("file://"):
            raise UserError(
                f"{key}={values[key]} is a path of this machine, which a cluster cannot read; "
                "give an address such as gs://... or https://..."
            )
    return dict(values)


def _token(path: Path | None) -> str:
    if path is None:
        return os.environ.get("KFP_TOKEN", "").strip()
    try:
        return path.expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {path}: cannot be read: {type(error).__name__}") from None


def _reachable(host: str, token: str) -> str:
    """Asks the API for its health once: kfp's client would retry for minutes before it complains.

    Returns:
        The host without a trailing slash.
    """
    if not host.startswith(("http://", "https://")):
        raise UserError(f"--host {host!r}: must be an address that starts with http:// or https://")
    host = host.rstrip("/")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = requests.get(
            f"{host}/apis/v2beta1/healthz", headers=headers, timeout=SECONDS_TO_CONNECT, allow_redirects=False
        )
    except requests.RequestException as error:
        raise UserError(
            f"--host {host}: cannot be reached ({type(error).__name__}); "
            "is the address right, and the port-forward running?"
        ) from None
    if answer.status_code in (401, 403):
        raise _refused(host, str(answer.status_code))
    if answer.is_redirect:
        target = answer.headers["location"].partition("?")[0]  # the query may hold secrets of a login
        raise UserError(
            f"--host {host}: redirects to {target}; give that address, or, when it is a login page, "
            "put a token into KFP_TOKEN or --token-file"
        )
    try:
        answer.raise_for_status()
        answer.json()
    except (requests.HTTPError, ValueError):
        raise UserError(
            f"--host {host}: does not answer as Kubeflow Pipelines does (status {answer.status_code})"
        ) from None
    return host


def _client(host: str, namespace: str, token: str) -> kfp.Client:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        client = kfp.Client(host, namespace=namespace or "kubeflow", existing_token=token or None)
    return client


def _upload(client: kfp.Client, package: Path, namespace: str) -> tuple[str, str]:
    """Returns pipeline and version id of these very bytes, uploading them when they are new."""
    digest = hashlib.sha256(package.read_bytes()).hexdigest()[:12]
    found = client.list_pipelines(filter=_called(NAME), namespace=namespace or None).pipelines
    if found:
        pipeline = found[0].pipeline_id
    else:
        pipeline = client.upload_pipeline(
            str(package), pipeline_name=NAME, namespace=namespace or None
        ).pipeline_id
    versions = client.list_pipeline_versions(pipeline, filter=_called(digest)).pipeline_versions
    if versions:
        _say(f"pipeline {NAME}: version {digest} is there")
        return pipeline, versions[0].pipeline_version_id
    version = client.upload_pipeline_version(str(package), digest, pipeline_id=pipeline)
    _say(f"pipeline {NAME}: uploaded version {digest}")
    return pipeline, version.pipeline_version_id


def _called(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _wait(client: kfp.Client, name: str, run_id: str, poll_seconds: float) -> str:
    """Follows a run to its end; kfp's own wait does not notice a cancelled run."""
    shown = ""
    while True:
        state = str(client.get_run(run_id).state)
        if state != shown:
            _say(f"{name}: {state.lower()}")
            shown = state
        if state in ENDED:
            return state
        time.sleep(poll_seconds)


@contextlib.contextmanager
def _one_line_errors(host: str) -> Iterator[None]:
    """Turns the API's errors into one line, and keeps kfp's own prints back: ours say it once."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except kfp_server_api.ApiException as error:
        if error.status in (401, 403):
            raise _refused(host, str(error.status)) from None
        raise UserError(f"--host {host}: {error.status} {error.reason}: {_message(error)}") from None
    except urllib3.exceptions.HTTPError as error:
        raise UserError(f"--host {host}: connection lost ({type(error).__name__})") from None


def _refused(host: str, status: str) -> UserError:
    return UserError(
        f"--host {host}: refused ({status}); put a valid token into KFP_TOKEN or --token-file, "
        "and name a --namespace that it may use"
    )


def _message(error: kfp_server_api.ApiException) -> str:
    try:
        return " ".join(str(json.loads(error.body)["message"]).split())[:300]
    except (ValueError, KeyError, TypeError):
        return " ".join(str(error.body).split())[:300]


def _say(text: str) -> None:
    print(text, file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    sys.exit(main())
