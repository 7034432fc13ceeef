"""The train step with several workers, on a real API server and the real operator; tests play the kubelet.

The step has the rights of ``manifests/base/access.yaml`` and no others, and a pod and a workflow of its own.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from kubernetes import client

from components.train import workspace
from recsys import storage
from tests.cluster.harness import GROUP
from tests.cluster.processes import wait
from tests.stores import servers

ROOT = Path(__file__).resolve().parents[2]
ROLE = next(
    entry
    for entry in yaml.safe_load_all((ROOT / "manifests/base/access.yaml").read_text())
    if entry["kind"] == "Role"
)
# Sets what only a pod has, and what a test wants to be otherwise, before the program starts.
PROGRAM = """
import sys
from pathlib import Path
from components.train import kube, mpijob
kube.ACCOUNT = Path(sys.argv[1])
exec(sys.argv[2])
del sys.argv[1:3]
from components.train import {0}
sys.exit({0}.main())
"""
QUICK = {"poll_seconds": 0.2, "results_seconds": 1, "lost_seconds": 1}


class Attempt:
    """One attempt of the step: a process, and what it prints."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def saw(self, text, seconds=40):
        """Waits for a line with this text."""

        def found():
            assert self.process.poll() is None or any(text in line for line in self.lines), self.output
            return any(text in line for line in self.lines)

        end = time.monotonic() + seconds
        while not found():
            assert time.monotonic() < end, f"no {text!r} in\n{self.output}"
            time.sleep(0.05)

    @property
    def output(self):
        return "\n".join(self.lines)

    def end(self, seconds=60):
        """Exit code."""
        code = self.process.wait(seconds)
        self.reader.join(10)
        return code


class Step:
    """The train step of one run."""

    def __init__(self, cluster, namespace, folder):
        self.cluster, self.namespace, self.folder = cluster, namespace, folder
        self.account = cluster.service_account(ROLE["rules"])
        self.workflow = cluster.create_workflow("recsys-abcde")
        owner = {key: self.workflow[key] for key in ("apiVersion", "kind")}
        owner |= {key: self.workflow["metadata"][key] for key in ("name", "uid")}
        pod = {
            "metadata": {"name": "step", "labels": {"pipeline/runid": "run-1"}, "ownerReferences": [owner]},
            "spec": {"containers": [{"name": "main", "image": "somewhere/recsys-train:7"}]},
        }
        cluster.core.create_namespaced_pod(namespace, pod)
        self.workspace = folder / "workspace"
        self.workspace.mkdir()
        (folder / "dataset").mkdir()
        (folder / "dataset/feature_spec.yaml").write_text("{}")
        self.attempts = []

    def start(self, *flags, before="", program="launch", **settings):
        executor = {"outputs": {"outputFile": str(self.folder / "out/executor_output.json")}}
        executor["outputs"]["artifacts"] = {
            name: {"artifacts": [{"name": name, "uri": str(self.folder / "out" / name)}]}
            for name in workspace.OUTPUTS
        }
        arguments = ["--executor_input", json.dumps(executor)]
        if program == "launch":
            arguments += ["--dataset", str(self.folder / "dataset"), "--model", "ncf", "--num_workers", "2"]
            arguments += ["--workspace", str(self.workspace), "--cluster", json.dumps(QUICK | settings)]
            for name in workspace.OUTPUTS:
                arguments += [f"--{name}", str(self.folder / "out" / name)]
        command = [sys.executable, "-c", PROGRAM.format(program), str(self.account), before]
        environment = {
            **os.environ,
            **self.cluster.environment,
            "KFP_POD_NAME": "step",
            "PYTHONUNBUFFERED": "1",
        }
        attempt = Attempt([*command, *arguments, *flags], environment)
        self.attempts.append(attempt)
        return attempt

    def job(self):
        """The name of the one job that there is."""

        def only():
            jobs = self.jobs()
            return jobs[0]["metadata"]["name"] if len(jobs) == 1 else None

        return wait("one job", only, 30)

    def jobs(self):
        return self.cluster.custom.list_namespaced_custom_object(**GROUP, namespace=self.namespace)["items"]

    def train(self, name):
        """Workers and launcher run; returns the launcher's pod."""
        self.cluster.play_workers(name, 2)
        return self.cluster.play_launcher(name)

    def results(self, name):
        """What the trainer would have written."""
        shared = self.workspace / name
        assert (shared / "dataset/feature_spec.yaml").is_file()
        (shared / "checkpoint").mkdir()
        (shared / "checkpoint/model.keras").write_text("weights")
        (shared / "history").write_text("{}")
        (shared / "learning_curve").write_text("<html>")
        written = {n: {"artifacts": [{"name": n, "metadata": {"hr@10": 0.5}}]} for n in workspace.OUTPUTS}
        (shared / "executor_output.json").write_text(json.dumps({"artifacts": written}))

    def succeed(self, name, launcher):
        self.results(name)
        self.cluster.play_pod(launcher, "Succeeded")

    def kill(self):
        for attempt in self.attempts:
            attempt.process.kill()
            attempt.process.wait()


@pytest.fixture
def step(cluster, namespace, tmp_path):
    step = Step(cluster, namespace, tmp_path)
    yield step
    step.kill()


def failed(attempt, code, *texts, seconds=60):
    """The attempt ended with this code, and its last line says why."""
    assert attempt.end(seconds) == code, attempt.output
    last = attempt.lines[-1]
    for text in texts:
        assert text in last, attempt.output
    assert "Traceback" not in attempt.output


def test_success_brings_log_results_and_metadata_and_leaves_nothing(cluster, step):
    attempt = step.start()
    name = step.job()
    job = cluster.mpijob(name)
    [owner] = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Workflow", step.workflow["metadata"]["uid"])
    assert job["metadata"]["labels"]["recsys/run-id"] == "run-1"
    launcher = step.train(name)
    pod = cluster.core.read_namespaced_pod(launcher, step.namespace)
    assert pod.spec.containers[0].image == "somewhere/recsys-train:7"
    cluster.log(launcher).write("[1,0]<stdout>:epoch 1\n[1,1]<stderr>:hello")
    attempt.saw("[0] epoch 1")
    attempt.saw("2 workers train")
    cluster.log(launcher).write("[1,0]<stdout>:epoch 2")
    step.succeed(name, launcher)
    assert attempt.end() == 0, attempt.output
    said = [line for line in attempt.lines if line.startswith("[")]
    assert said == ["[0] epoch 1", "[1] hello", "[0] epoch 2"]
    out = step.folder / "out"
    assert (out / "checkpoint/model.keras").read_text() == "weights"
    written = json.loads((out / "executor_output.json").read_text())["artifacts"]
    assert written["history"]["artifacts"][0]["metadata"] == {"hr@10": 0.5}
    wait("end of the job", lambda: not step.jobs())
    assert list(step.workspace.iterdir()) == []


STORED = """
source_spec: {{train: [{{type: parquet, features: [user], files: ["{0}/1/train.parquet"]}}]}}
metadata: {{dataset_store: {{spec: "{0}/feature_spec.yaml", address: "{0}/1", files: {{}}}}}}
"""


def test_with_dataset_and_artifacts_in_a_store_no_volume_is_needed(cluster, step, monkeypatch):
    if not servers.built():
        pytest.skip("no object store to test with: `make setup-stores` builds one, with Go")
    store = servers.start_google(step.folder / "store")
    try:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.address)
        in_a_store(cluster, step, f"gs://{servers.BUCKET}")
    finally:
        store.stop()


def in_a_store(cluster, step, bucket):
    (step.folder / "dataset/feature_spec.yaml").write_text(STORED.format(f"{bucket}/data"))
    step.workspace.rmdir()
    root = f"{bucket}/artifacts"
    artifacts = {name: {"artifacts": [{"name": name, "uri": f"{root}/{name}"}]} for name in workspace.OUTPUTS}
    marker = step.folder / "out/executor_output.json"
    given = {"outputs": {"outputFile": str(marker), "artifacts": artifacts}}
    storage.write(f"{root}/executor_output.json", json.dumps({"artifacts": artifacts}).encode())  # of before
    flags = ["--executor_input", json.dumps(given)]

    attempt = step.start(*flags)
    launcher = step.train(step.job())
    assert "workspace" not in json.dumps(cluster.mpijob(step.job())["spec"])
    assert json.loads(storage.read_if_present(f"{root}/executor_output.json")) == {}
    storage.write(f"{root}/checkpoint/last.npz", b"state")
    cluster.play_pod(launcher, "Failed", exit_code=2)
    failed(attempt, 2, f"continue with resume={root}/checkpoint")
    wait("end of the job", lambda: not step.jobs())

    attempt = step.start(*flags)
    launcher = step.train(step.job())
    for name in ("history", "learning_curve"):
        storage.write(f"{root}/{name}", name.encode())
    for artifact in artifacts.values():
        artifact["artifacts"][0]["metadata"] = {"hr@10": 0.5}
    storage.write(f"{root}/executor_output.json", json.dumps({"artifacts": artifacts}).encode())
    cluster.play_pod(launcher, "Succeeded")
    assert attempt.end() == 0, attempt.output
    assert sorted(path.name for path in marker.parent.iterdir()) == [marker.name, "history", "learning_curve"]
    assert (marker.parent / "history").read_text() == "history"
    assert json.loads(marker.read_text())["artifacts"] == artifacts


def test_a_launcher_that_fails_once_is_started_again(cluster, step):
    attempt = step.start()
    name = step.job()
    first = step.train(name)
    cluster.log(first).write("[1,0]<stdout>:first")
    cluster.play_pod(first, "Failed", exit_code=1)
    attempt.saw("waiting for the operator to start it again")
    second = wait("second launcher", lambda: (n := cluster.launcher(name)) != first and n, 60)
    cluster.play_pod(second, "Running")
    cluster.log(second).write("[1,0]<stdout>:second")
    step.succeed(name, second)
    assert attempt.end() == 0, attempt.output
    assert attempt.lines.index("[0] first") < attempt.lines.index("[0] second")


def test_a_launcher_that_fails_for_good_gives_its_exit_code(cluster, step):
    attempt = step.start(before="mpijob.Run = mpijob.Run; original = mpijob.template\n" + NO_RETRY)
    name = step.job()
    launcher = step.train(name)
    (step.workspace / name / "checkpoint.partial").mkdir()
    (step.workspace / name / "checkpoint.partial/last.npz").write_text("state")
    cluster.log(launcher).write("[1,1]<stderr>:boom")
    cluster.play_pod(launcher, "Failed", exit_code=7)
    failed(
        attempt, 7, "BackoffLimitExceeded", f"continue with resume={step.workspace}/{name}/checkpoint.partial"
    )
    assert "[1] boom" in attempt.lines
    wait("end of the job", lambda: not step.jobs())
    assert [path.name for path in (step.workspace / name).iterdir()] == ["checkpoint.partial"]


NO_RETRY = """
def template(overlay):
    job = original(overlay)
    job["spec"]["runPolicy"]["backoffLimit"] = 0
    return job
mpijob.template = template
"""


def test_a_users_mistake_is_not_tried_again(cluster, step):
    attempt = step.start()
    launcher = step.train(step.job())
    cluster.log(launcher).write("[1,0]<stderr>:unknown key 'epoch'")
    cluster.play_pod(launcher, "Failed", exit_code=2)
    failed(attempt, 2, "a mistake in the run's parameters")
    assert "[0] unknown key 'epoch'" in attempt.lines
    wait("end of the job", lambda: not step.jobs())


@pytest.mark.parametrize(
    ("death", "text"),
    [
        ({"exit_code": 137, "reason": "OOMKilled"}, "worker-1: OOMKilled, exit code 137"),
        (
            {"pod_reason": "Evicted", "message": "The node was low on memory."},
            "worker-1: Evicted, The node was low",
        ),
    ],
)
def test_a_dead_worker_fails_the_job(cluster, step, death, text):
    attempt = step.start()
    name = step.job()
    step.train(name)
    attempt.saw("2 workers train")
    cluster.log(f"{name}-worker-1").write("sshd: connection lost")
    cluster.play_pod(f"{name}-worker-1", "Failed", **death)
    failed(attempt, 1, text)
    assert f"[{name}-worker-1] sshd: connection lost" in attempt.lines
    wait("end of the job", lambda: not step.jobs())


def test_an_image_that_cannot_be_pulled_fails_the_job(cluster, step):
    attempt = step.start(pull_seconds=1)
    for worker in cluster.wait_workers(step.job(), 2):
        options = {"container_state": "waiting", "reason": "ImagePullBackOff", "message": "no such image"}
        cluster.play_pod(worker, "Pending", **options)
    failed(attempt, 1, "ImagePullBackOff no such image; gave up after 1 s (pull_seconds)")


def test_workers_without_a_node_fail_the_job(cluster, step):
    attempt = step.start(pending_seconds=1)
    for worker in cluster.wait_workers(step.job(), 2):
        cluster.play_unschedulable(worker)
    failed(attempt, 1, "worker-0: 0/1 nodes are available: 1 Insufficient gpu.", "(pending_seconds)")


def test_a_queued_job_waits_and_goes_on(cluster, step):
    attempt = step.start(pending_seconds=5, queue_seconds=60)
    name = step.job()
    suspend(cluster, step, name, True)
    attempt.saw("the job is suspended")
    time.sleep(6)
    suspend(cluster, step, name, False)
    step.succeed(name, step.train(name))
    assert attempt.end() == 0, attempt.output


def test_a_job_is_not_queued_for_ever(cluster, step):
    attempt = step.start(queue_seconds=1)
    suspend(cluster, step, step.job(), True)
    failed(attempt, 1, "gave up after 1 s (queue_seconds)")


def suspend(cluster, step, name, value):
    body = {"spec": {"runPolicy": {"suspend": value}}}
    cluster.custom.patch_namespaced_custom_object(**GROUP, namespace=step.namespace, name=name, body=body)


def test_without_an_operator_the_step_gives_up(cluster, step):
    cluster.stop_operator()
    failed(step.start(accept_seconds=2), 1, "no MPI operator has taken note of the job", "(accept_seconds)")
    assert step.jobs() == []


CHANGED = """
original = mpijob.template
def template(overlay):
    job = original(overlay)
    {}
    return job
mpijob.template = template
"""


def test_a_job_that_the_operator_refuses_fails_by_its_event(step):
    change = CHANGED.format('job["spec"]["runPolicy"]["cleanPodPolicy"] = "Sometimes"')
    failed(step.start(before=change), 1, "the operator refuses the job", "cleanPodPolicy")


def test_a_job_that_the_api_server_refuses_is_one_line(step):
    change = CHANGED.format('job["spec"]["mpiImplementation"] = "Telex"')
    failed(step.start(before=change), 2, "the cluster refuses the mpijobs", "Telex")


def test_a_job_that_somebody_deletes_fails_the_step(cluster, step):
    attempt = step.start()
    name = step.job()
    step.train(name)
    attempt.saw("2 workers train")
    cluster.custom.delete_namespaced_custom_object(**GROUP, namespace=step.namespace, name=name)
    failed(attempt, 1, "deleted by someone else")


def test_a_job_that_somebody_makes_anew_is_not_taken_for_the_steps_own(cluster, step):
    attempt = step.start()
    name = step.job()
    step.train(name)
    attempt.saw("2 workers train")
    job = cluster.mpijob(name)
    attempt.process.send_signal(signal.SIGSTOP)  # so that it never looks while there is none
    cluster.custom.delete_namespaced_custom_object(**GROUP, namespace=step.namespace, name=name)
    wait("end of the job", lambda: not step.jobs())
    metadata = {key: job["metadata"][key] for key in ("name", "labels", "annotations")}
    cluster.create_mpijob({**job, "metadata": metadata, "status": {}})
    attempt.process.send_signal(signal.SIGCONT)
    failed(attempt, 1, "made anew by someone else")
    assert step.job() == name, "that one is not this step's to delete"
    assert (step.workspace / name).exists(), "nor is its folder"


def test_the_api_server_may_go_and_come_back(cluster, step):
    attempt = step.start()
    name = step.job()
    uid = cluster.mpijob(name)["metadata"]["uid"]
    launcher = step.train(name)
    cluster.log(launcher).write("[1,0]<stdout>:one\n[1,0]<stdout>:two")
    attempt.saw("[0] two")
    cluster.stop_apiserver()
    attempt.saw("does not answer")
    cluster.log(launcher).write("[1,0]<stdout>:three")
    time.sleep(3)
    cluster.start_apiserver()
    cluster.start_operator()
    attempt.saw("[0] three")
    assert cluster.mpijob(name)["metadata"]["uid"] == uid
    cluster.log(launcher).cut()
    cluster.log(launcher).write("[1,0]<stdout>:four")
    step.succeed(name, launcher)
    assert attempt.end() == 0, attempt.output
    said = [line for line in attempt.lines if line.startswith("[0]")]
    assert said == ["[0] one", "[0] two", "[0] three", "[0] four"]


def test_an_api_server_that_stays_away_ends_the_step_and_not_the_job(cluster, step):
    attempt = step.start(api_seconds=3)
    name = step.job()
    step.train(name)
    cluster.stop_apiserver()
    failed(attempt, 1, "has not answered for", f"MPIJob {name} may still run")
    cluster.start_apiserver()
    assert step.job() == name


def test_a_rotated_token_is_read_again(cluster, step):
    attempt = step.start()
    name = step.job()
    launcher = step.train(name)
    attempt.saw("2 workers train")
    cluster.rotate_token()
    step.succeed(name, launcher)
    assert attempt.end() == 0, attempt.output


def test_the_next_attempt_adopts_the_job_of_a_killed_one(cluster, step):
    first = step.start()
    name = step.job()
    uid = cluster.mpijob(name)["metadata"]["uid"]
    launcher = step.train(name)
    cluster.log(launcher).write("[1,0]<stdout>:one")
    first.saw("[0] one")
    first.process.kill()
    second = step.start()
    second.saw(f"MPIJob {name} is there already; this attempt adopts it")
    second.saw("[0] one")
    assert cluster.mpijob(name)["metadata"]["uid"] == uid
    step.succeed(name, launcher)
    assert second.end() == 0, second.output


def test_two_attempts_at_once_make_one_job(cluster, step):
    attempts = [step.start(), step.start()]
    name = step.job()
    step.train(name)
    for attempt in attempts:
        attempt.saw("2 workers train")
    assert sum(f"MPIJob {name} created" in attempt.output for attempt in attempts) == 1
    assert sum("this attempt adopts it" in attempt.output for attempt in attempts) == 1
    assert len(step.jobs()) == 1
    attempts[0].process.kill()
    step.succeed(name, cluster.launcher(name))
    assert attempts[1].end() == 0, attempts[1].output


def test_a_failed_job_of_an_earlier_attempt_makes_room(cluster, step):
    first = step.start("--keep", lost_seconds=1)
    name = step.job()
    uid = cluster.mpijob(name)["metadata"]["uid"]
    launcher = step.train(name)
    cluster.play_pod(launcher, "Failed", exit_code=2)
    failed(first, 2)
    assert cluster.mpijob(name)["metadata"]["uid"] == uid, "--keep leaves the job"
    second = wait_for_end_of(cluster, name, step)
    assert cluster.mpijob(name)["metadata"]["uid"] != uid
    step.succeed(name, step.train(name))
    assert second.end() == 0, second.output


def wait_for_end_of(cluster, name, step):
    """Lets the kept job fail for good, then starts the next attempt, which makes a new one."""
    last = wait("second launcher", lambda: cluster.launcher(name), 60)
    cluster.play_pod(last, "Failed", exit_code=2)
    cluster.wait_condition(name, "Failed")
    attempt = step.start()
    attempt.saw("it makes room for a new one")
    attempt.saw("created in namespace")
    return attempt


def test_success_without_results_is_a_failure(cluster, step):
    attempt = step.start()
    name = step.job()
    cluster.play_pod(step.train(name), "Succeeded")
    failed(attempt, 1, "it succeeded, but did not leave its results in")


@pytest.mark.parametrize("spec", [{"activeDeadlineSeconds": 0}, {"shutdown": "Terminate"}])
def test_a_terminated_run_takes_its_job_along_at_once(cluster, step, spec):
    attempt = step.start()
    name = step.job()
    step.train(name)
    attempt.saw("2 workers train")
    workflows = {"group": "argoproj.io", "version": "v1alpha1", "plural": "workflows"}
    cluster.custom.patch_namespaced_custom_object(
        **workflows, namespace=step.namespace, name="recsys-abcde", body={"spec": spec}
    )
    started = time.monotonic()
    attempt.process.send_signal(signal.SIGTERM)
    assert attempt.end() == 143
    assert time.monotonic() - started < 0.5
    assert f"SIGTERM: MPIJob {name} is deleted" in attempt.output
    wait("end of the job", lambda: not step.jobs())


def test_a_pod_that_is_taken_away_leaves_its_job_to_the_next_attempt(cluster, step):
    attempt = step.start()
    name = step.job()
    step.train(name)
    attempt.saw("2 workers train")
    attempt.process.send_signal(signal.SIGTERM)
    assert attempt.end() == 143
    assert f"MPIJob {name} goes on" in attempt.output
    assert step.job() == name


def test_cleanup_deletes_what_a_run_has_left_and_nothing_else(cluster, step):
    killed = step.start()
    name = step.job()
    job = cluster.mpijob(name)
    killed.process.kill()
    for other, labels in (("another", {"recsys/run-id": "run-2"}), ("kept", {"recsys/keep": "true"})):
        metadata = {"name": other, "labels": {**job["metadata"]["labels"], **labels}}
        cluster.create_mpijob({**job, "metadata": metadata, "status": {}})
    attempt = step.start(program="cleanup")
    assert attempt.end() == 0, attempt.output
    assert f"MPIJob {name} deleted" in attempt.output
    wait("end of the job", lambda: {j["metadata"]["name"] for j in step.jobs()} == {"another", "kept"})


def test_a_step_that_may_not_says_which_role_it_needs(cluster, step):
    rbac = client.RbacAuthorizationV1Api(cluster.api)
    rbac.patch_namespaced_role("step", step.namespace, {"rules": ROLE["rules"][1:]})
    attempt = step.start(before="kube.REFUSED_SECONDS = 1")
    failed(attempt, 2, "may not GET mpijobs in namespace", "Role recsys-launch")


@pytest.mark.parametrize("overlay", sorted(path.name for path in (ROOT / "manifests/overlays").iterdir()))
def test_an_overlay_is_applied_and_the_operator_makes_its_pods(cluster, namespace, tmp_path, overlay):
    kustomization = {
        "namespace": namespace,
        "resources": [os.path.relpath(ROOT / "manifests/overlays" / overlay, tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    cluster.kubectl("apply", "-k", str(tmp_path))
    assert cluster.kubectl("diff", "-k", str(tmp_path)) == ""
    replicas = cluster.mpijob("recsys-train")["spec"]["mpiReplicaSpecs"]["Worker"]["replicas"]
    cluster.play_workers("recsys-train", replicas)
    launcher = cluster.play_launcher("recsys-train")
    cluster.wait_condition("recsys-train", "Running")
    assert re.match(r"recsys-train-launcher-\w+", launcher)
    assert cluster.kubectl("diff", "-k", str(tmp_path)) == ""
