"""The launch step: what it decides of a job's objects, what it starts, and mpirun on this machine."""

import argparse
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from components.train import cleanup, launch, mpirun, workspace
from components.train.follow import Clock, look, verdict
from components.train.mpijob import Settings
from recsys.step import Outputs, UserError

ROOT = Path(__file__).resolve().parents[2]
NAME = "recsys-ncf-0123456789"


# Objects as the API returns them, cut down to what is looked at.


def condition(kind, status="True", reason="", message=""):
    return {"type": kind, "status": status, "reason": reason or f"MPIJob{kind}", "message": message}


CREATED = condition("Created")


def job(*conditions, completed=False, **metadata):
    status = {"conditions": list(conditions), "startTime": "2026-11-21T10:00:00Z"} if conditions else {}
    if completed:
        status["completionTime"] = "2026-11-21T11:00:00Z"
    return {
        "metadata": {"name": NAME, "uid": "u1", **metadata},
        "spec": {"mpiReplicaSpecs": {"Worker": {"replicas": 2}}},
        "status": status,
    }


def pod(name, role, phase, state=None, *, ready=None, node="node-1", created="10:00:00", **status):
    """A pod in a phase; ``state`` is its container's."""
    ready = phase == "Running" if ready is None else ready
    conditions = [{"type": "Ready", "status": str(ready)}]
    if node:
        conditions.append({"type": "PodScheduled", "status": "True"})
    return {
        "metadata": {
            "name": f"{NAME}-{name}",
            "labels": {"training.kubeflow.org/job-role": role},
            "creationTimestamp": f"2026-11-21T{created}Z",
        },
        "spec": {"nodeName": node} if node else {},
        "status": {
            "phase": phase,
            "conditions": conditions,
            "containerStatuses": [{"name": role, "state": state}] if state else [],
            **status,
        },
    }


RUNNING = {"running": {"startedAt": "2026-11-21T10:00:00Z"}}


def worker(number, phase="Running", state=RUNNING, **options):
    return pod(f"worker-{number}", "worker", phase, state, **options)


def launcher(phase="Running", state=RUNNING, suffix="abcde", **options):
    return pod(f"launcher-{suffix}", "launcher", phase, state, **options)


def terminated(code, reason="Error"):
    return {"terminated": {"exitCode": code, "reason": reason}}


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
}
WORKERS = [worker(0), worker(1)]
INVALID = {
    "type": "Warning",
    "reason": "ValidationError",
    "message": "Found validation errors: spec.slotsPerWorker: must be greater than or equal to 0",
}
OOM = worker(1, "Failed", terminated(137, "OOMKilled"))
EVICTED = worker(1, "Failed", None, reason="Evicted", message="The node was low on resource: memory.")

# What the objects are, the phase that is read from them, and words of the line that says so.
CASES = {
    "just made": (job(), [], "accept", "no MPI operator has taken note"),
    "accepted, no pods yet": (job(CREATED), [], "pending", "0 of 2 worker pods have been created"),
    "suspended by Kueue": (job(CREATED, condition("Suspended")), [], "queue", "queue's quota"),
    "resumed": (
        job(CREATED, condition("Suspended", "False"), condition("Running", "False")),
        WORKERS,
        "pull",
        "2 of 2 workers are ready",
    ),
    "unschedulable": (
        job(CREATED),
        [worker(0), worker(1, "Pending", None, node="", conditions=[UNSCHEDULABLE])],
        "pending",
        "worker-1: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
    ),
    "pulling": (
        job(CREATED),
        [worker(0), worker(1, "Pending", waiting("ContainerCreating"))],
        "pull",
        "1 of 2 workers are ready",
    ),
    "image cannot be pulled": (
        job(CREATED),
        [worker(0), worker(1, "Pending", waiting("ImagePullBackOff", "Back-off pulling image"))],
        "pull",
        "worker-1: ImagePullBackOff Back-off pulling image",
    ),
    "image name is none": (
        job(CREATED),
        [worker(0), worker(1, "Pending", waiting("InvalidImageName"))],
        "failed",
        "InvalidImageName",
    ),
    "secret is missing": (
        job(CREATED),
        [worker(0, "Pending", waiting("CreateContainerConfigError", 'secret "s3" not found'))],
        "failed",
        'CreateContainerConfigError secret "s3" not found',
    ),
    "sshd does not answer": (job(CREATED), [worker(0), worker(1, ready=False)], "pull", "1 of 2 workers"),
    "launcher's image is being pulled": (
        job(CREATED),
        [*WORKERS, launcher("Pending", waiting("ContainerCreating"))],
        "pull",
        "2 of 2 workers are ready",
    ),
    "trains": (job(CREATED, condition("Running")), [*WORKERS, launcher()], "run", "2 workers train"),
    "launcher failed, the operator will retry": (
        job(CREATED, condition("Running")),
        [*WORKERS, launcher("Failed", terminated(1))],
        "pull",
        "exit code 1; waiting for the operator to start it again",
    ),
    "launcher retried": (
        job(CREATED, condition("Running")),
        [*WORKERS, launcher("Failed", terminated(1)), launcher(suffix="fghij", created="10:05:00")],
        "run",
        "2 workers train",
    ),
    "user's mistake is not retried": (
        job(CREATED, condition("Running")),
        [*WORKERS, launcher("Failed", terminated(2))],
        "failed",
        "a mistake in the run's parameters",
    ),
    "worker ran out of memory": (
        job(CREATED, condition("Running")),
        [worker(0), OOM, launcher()],
        "lost",
        "worker-1: OOMKilled, exit code 137",
    ),
    "evicted: Failed, but not completed": (
        job(CREATED, condition("Failed", reason="MPIJobEvicted", message="1/2 workers are evicted")),
        [worker(0), EVICTED, launcher()],
        "lost",
        "worker-1: Evicted, The node was low on resource: memory.",
    ),
    "evicted, but somebody brought the worker back": (
        job(CREATED, condition("Failed", reason="MPIJobEvicted")),
        [*WORKERS, launcher()],
        "run",
        "2 workers train",
    ),
    "failed": (
        job(
            CREATED,
            condition("Running", "False"),
            condition("Failed", reason="BackoffLimitExceeded/", message="Job has reached the limit"),
            completed=True,
        ),
        [*WORKERS, launcher("Failed", terminated(7))],
        "failed",
        "exit code 7; BackoffLimitExceeded/: Job has reached the limit",
    ),
    "failed, for a worker was killed": (
        job(CREATED, condition("Failed", reason="BackoffLimitExceeded"), completed=True),
        [worker(0), OOM, launcher("Failed", terminated(1))],
        "failed",
        "worker-1: OOMKilled, exit code 137; BackoffLimitExceeded",
    ),
    "took too long": (
        job(CREATED, condition("Failed", reason="DeadlineExceeded", message="was active"), completed=True),
        [],
        "failed",
        "DeadlineExceeded: was active",
    ),
    "succeeded": (
        job(CREATED, condition("Running", "False"), condition("Succeeded"), completed=True),
        [launcher("Succeeded", terminated(0, "Completed"))],
        "succeeded",
        "",
    ),
    "succeeded, Running appended after it": (
        job(CREATED, condition("Succeeded"), condition("Running", "False"), completed=True),
        [],
        "succeeded",
        "",
    ),
    "succeeded after an eviction": (
        job(CREATED, condition("Failed", "False"), condition("Succeeded"), completed=True),
        [EVICTED],
        "succeeded",
        "",
    ),
    "Succeeded, but the time is not there yet": (
        job(CREATED, condition("Succeeded")),
        [*WORKERS, launcher("Succeeded", terminated(0, "Completed"))],
        "run",
        "2 workers train",
    ),
    "being deleted": (
        job(CREATED, deletionTimestamp="2026-11-21T10:30:00Z"),
        WORKERS,
        "failed",
        "being deleted by someone else",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_reads_the_phase_of_a_job(name):
    objects, pods, phase, words = CASES[name]
    before = copy.deepcopy((objects, pods))
    state = look(objects, pods)
    assert state.phase == phase
    assert words in state.detail
    assert "\n" not in state.detail
    assert (objects, pods) == before


@pytest.mark.parametrize("name", CASES)
def test_every_phase_that_is_no_end_has_a_limit(name):
    objects, pods, phase, _ = CASES[name]
    state = look(objects, pods)
    early, late = verdict(state, 0.0, Settings()), verdict(state, 1e9, Settings())
    assert early == state
    assert late.phase == ("succeeded" if phase == "succeeded" else "failed")
    if phase not in ("succeeded", "failed", "lost"):
        assert f"({phase}_seconds)" in late.detail


def test_the_order_of_the_conditions_means_nothing():
    done = job(CREATED, condition("Running", "False"), condition("Succeeded"), completed=True)
    done["status"]["conditions"].reverse()
    assert look(done, []).phase == "succeeded"


def test_an_invalid_job_fails_by_its_event_at_once():
    state = look(job(), [], [{"type": "Normal", "reason": "x", "message": ""}, INVALID])
    assert (state.phase, state.code) == ("failed", 1)
    assert "spec.slotsPerWorker: must be greater" in state.detail


@pytest.mark.parametrize(("code", "passed_on"), [(7, 7), (2, 2), (137, 137), (0, 1)])
def test_passes_the_launchers_exit_code_on(code, passed_on):
    ended = job(CREATED, condition("Failed", reason="BackoffLimitExceeded"), completed=True)
    first = launcher("Failed", terminated(1), suffix="aaaaa")
    last = launcher("Failed", terminated(code), suffix="bbbbb", created="10:20:00")
    assert look(ended, [last, first]).code == passed_on


def test_a_phase_is_timed_from_when_it_was_first_seen():
    now = [100.0]
    clock = Clock(lambda: now[0])
    assert clock.seconds("pending") == 0
    now[0] = 130.0
    assert clock.seconds("pending") == 30
    assert clock.seconds("run") == 0
    now[0] = 140.0
    assert clock.seconds("run") == 10
    assert clock.seconds("pending") == 0


def test_settings_refuse_what_makes_no_sense(capfd):
    for text, message in [
        ('{"que_seconds": 3}', "did you mean 'queue_seconds'?"),
        ('{"run_seconds": 0}', "run_seconds must be more than 0"),
        ('{"overlay": "dgx"}', "no overlay 'dgx'; allowed: cpu, dgx-8-gpu"),
    ]:
        assert launch.main([*FLAGS, "--num_workers", "2", "--dry_run", "--cluster", text]) == 2
        error = capfd.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


# What is started


FLAGS = ["--dataset", "/data", "--model", "wide_deep", "--checkpoint", "/out/c", "--history", "/out/h"]
FLAGS += ["--learning_curve", "/out/l"]


@pytest.fixture
def started(monkeypatch):
    """What launch starts instead of the trainer or mpirun."""
    calls = []
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(launch.trainer, "main", lambda argv: calls.append(("here", argv)) or 0)
    monkeypatch.setattr(mpirun, "run", lambda ranks, argv, program: calls.append((ranks, argv)) or 5)
    return calls


def test_one_worker_trains_in_this_process_with_its_flags(started):
    given = [*FLAGS, "--num_workers", "1", "--gpus", "1", "--hyperparameters", '{"epochs": 3}', "--seed=4"]
    assert launch.main([*given, "--cluster", "{}", "--executor_input", '{"outputs": {}}']) == 0
    [(where, argv)] = started
    assert where == "here"
    parsed = launch.trainer.STEP.parser.parse_args(argv)
    assert (parsed.model, parsed.seed, parsed.hyperparameters) == ("wide_deep", 4, {"epochs": 3})
    assert parsed.executor_input == {"outputs": {}}


@pytest.mark.parametrize(
    ("workers", "gpus", "inside", "ranks"),
    [
        ("2", "0", False, 2),
        ("2", "1", False, 2),
        ("1", "8", False, 8),
        ("1", "8", True, 8),
        ("3", "2", False, 6),
    ],
)
def test_several_ranks_on_one_machine_are_mpiruns(started, monkeypatch, workers, gpus, inside, ranks):
    if inside:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    assert launch.main([*FLAGS, "--num_workers", workers, "--gpus", gpus]) == 5
    assert started[0][0] == ranks


def test_one_worker_needs_no_kubernetes_client():
    program = (
        "import sys; from components.train import launch;"
        "launch.trainer.main = lambda argv: sys.exit(bool({'kubernetes', 'kfp'} & set(sys.modules)));"
        "launch.main(sys.argv[1:])"
    )
    assert subprocess.run([sys.executable, "-c", program, *FLAGS], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("wrong", [["--num_workers", "two"], ["--num_workers", "0"], ["--gpus", "-1"]])
def test_wrong_numbers_are_one_line(started, capfd, wrong):
    try:
        code = launch.main([*FLAGS, *wrong])
    except SystemExit as end:
        code = end.code
    error = capfd.readouterr().err
    assert (code, len(error.splitlines()), started) == (2, 1, [])


def test_dry_run_prints_the_job_and_touches_nothing(started, capfd):
    flags = [*FLAGS, "--num_workers", "4", "--gpus", "2", "--dry_run", "--resume", "/old/checkpoint"]
    assert launch.main([*flags, "--cluster", '{"queue": "q"}', "--keep"]) == 0
    printed = yaml.safe_load(capfd.readouterr().out)
    name = printed["metadata"]["name"]
    assert printed["kind"] == "MPIJob"
    assert name.startswith("recsys-wide-deep-")
    words = printed["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]["args"]
    argv = words[words.index("components.train.main") + 1 :]
    parsed = launch.trainer.STEP.parser.parse_args(argv)
    shared = Path("/workspace") / name
    assert parsed.dataset == shared / "dataset"
    assert parsed.checkpoint == shared / "checkpoint"
    assert parsed.resume == str(shared / "resume")
    assert parsed.executor_input["outputs"]["outputFile"] == str(shared / "executor_output.json")
    assert printed["metadata"]["labels"]["recsys/keep"] == "true"
    assert started == []


def test_cleanup_outside_a_cluster_does_nothing_and_succeeds(monkeypatch, tmp_path):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    marker = tmp_path / "executor_output.json"
    given = json.dumps({"outputs": {"outputFile": str(marker)}})
    assert cleanup.main(["--executor_input", given]) == 0
    assert json.loads(marker.read_text()) == {"artifacts": {}}


# The workspace


def volume(mounted, **given):
    """The folder of job ``job`` on a volume."""
    arguments = {"dataset": mounted / "data", "resume": "", "workspace_claim": "c", "num_workers": 2}
    arguments |= {"workspace": str(mounted), "executor_input": {}, **given}
    return workspace.place(argparse.Namespace(**arguments), "job")


def results(shared):
    (shared / "checkpoint").mkdir(parents=True)
    (shared / "checkpoint/model.keras").write_text("weights")
    (shared / "history").write_text("{}")
    (shared / "learning_curve").write_text("<html>")
    written = {
        name: {"artifacts": [{"name": name, "metadata": {"hr@10": 0.5}}]} for name in workspace.OUTPUTS
    }
    (shared / "executor_output.json").write_text(json.dumps({"artifacts": written}))


def test_a_dataset_is_shared_whole_and_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/feature_spec.yaml").write_text("one")
    shared = tmp_path / "shared/job"
    workspace.share(tmp_path / "data", shared / "dataset")
    (tmp_path / "data/feature_spec.yaml").write_text("two")
    workspace.share(tmp_path / "data", shared / "dataset")
    assert (shared / "dataset/feature_spec.yaml").read_text() == "one"
    assert os.listdir(shared) == ["dataset"]
    with pytest.raises(UserError, match="no such folder"):
        workspace.share(tmp_path / "none", shared / "resume")


def test_results_come_back_with_their_metadata(tmp_path):
    shared = volume(tmp_path)
    results(tmp_path / "job")
    assert shared.complete()
    outputs = Outputs({name: tmp_path / "out" / name for name in workspace.OUTPUTS})
    shared.take(outputs)
    outputs.publish()
    assert (tmp_path / "out/checkpoint/model.keras").read_text() == "weights"
    assert outputs._metadata["history"] == {"hr@10": 0.5}
    shared.clear()
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("missing", ["executor_output.json", "history", "checkpoint"])
def test_results_are_complete_or_not_there(tmp_path, missing):
    results(tmp_path / "job")
    path = tmp_path / "job" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not volume(tmp_path).complete(patience=0.05)


# Object storage


STORED = """
source_spec:
  train: [{type: parquet, features: [user], files: [s3://data/k/1/train.parquet]}]
metadata:
  dataset_store: {spec: s3://data/k/feature_spec.yaml, address: s3://data/k/1, files: {}}
"""


def artifacts(root):
    """What Kubeflow tells a step of its outputs."""
    given = {name: {"artifacts": [{"name": name, "uri": f"{root}/{name}"}]} for name in workspace.OUTPUTS}
    return {"outputs": {"outputFile": "/tmp/kfp/outputs/output_metadata.json", "artifacts": given}}


def dry_run(tmp_path, capfd, *flags, stored=STORED, root="minio://mlpipeline/run/7"):
    (tmp_path / "feature_spec.yaml").write_text(stored)
    arguments = [*FLAGS[2:], "--dataset", str(tmp_path), "--num_workers", "2", "--dry_run", *flags]
    code = launch.main([*arguments, "--executor_input", json.dumps(artifacts(root))])
    captured = capfd.readouterr()
    if code:
        return code, captured.err
    job = yaml.safe_load(captured.out)
    pods = [replica["template"]["spec"] for replica in job["spec"]["mpiReplicaSpecs"].values()]
    words = pods[0]["containers"][0]["args"]
    return pods, launch.trainer.STEP.parser.parse_args(words[words.index("components.train.main") + 1 :])


def test_a_dataset_and_artifacts_in_stores_need_no_volume(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    settings = '{"service_account": "reader"}'
    flags = ["--storage_secret", "mine", "--resume", "gs://old/checkpoint", "--cluster", settings]
    pods, parsed = dry_run(tmp_path, capfd, *flags)
    assert "workspace" not in json.dumps(pods)
    assert "planted-secret" not in json.dumps(pods)
    assert parsed.dataset == "s3://data/k/feature_spec.yaml"
    assert parsed.checkpoint == "minio://mlpipeline/run/7/checkpoint"
    assert parsed.resume == "gs://old/checkpoint"
    given = parsed.executor_input["outputs"]
    assert given["outputFile"] == "minio://mlpipeline/run/7/executor_output.json"
    launcher_env = {entry["name"]: entry for entry in pods[0]["containers"][0]["env"]}
    assert launcher_env["AWS_ENDPOINT_URL"]["value"] == "http://store:9000"
    secret = launcher_env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "mine", "key": "secretkey", "optional": True}
    words = pods[0]["containers"][0]["args"]
    exported = {name for flag, name in zip(words, words[1:], strict=False) if flag == "-x"}
    assert {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= exported
    assert {pod["serviceAccountName"] for pod in pods} == {"reader"}


@pytest.mark.parametrize(
    ("stored", "root"),
    [
        (STORED.replace("s3://data/k/feature_spec.yaml", "file:///data/feature_spec.yaml"), "s3://b/r"),
        (STORED.replace("[s3://data/k/1/train.parquet]", "[train.parquet]"), "s3://b/r"),
        ("source_spec: {}", "s3://b/r"),
        ("- no spec", "s3://b/r"),
        (STORED, "/tmp/outputs"),
    ],
    ids=["local store", "metadata of another dataset", "no store", "no spec at all", "local artifacts"],
)
def test_what_is_not_all_in_stores_goes_over_the_volume(tmp_path, capfd, stored, root):
    pods, parsed = dry_run(tmp_path, capfd, stored=stored, root=root)
    assert parsed.dataset.is_relative_to("/workspace")
    assert all("workspace" in [volume["name"] for volume in pod["volumes"]] for pod in pods)


def test_workers_without_a_volume_cannot_resume_from_a_path(tmp_path, capfd):
    code, error = dry_run(tmp_path, capfd, "--resume", "/old/checkpoint")
    assert code == 2
    assert "the workers share no volume; give the URI of a checkpoint" in error


# mpirun


RANK = """
import os, signal, sys, time
rank, mode = int(os.environ["OMPI_COMM_WORLD_RANK"]), os.environ["MODE"]
def stop(number, frame):
    print("rank", rank, "saves", flush=True)
    time.sleep(1.5)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
sizes = os.environ["OMPI_COMM_WORLD_SIZE"], os.environ["RECSYS_NUM_WORKERS"]
sys.stdout.write(f"size {sizes} {sys.argv[1:]}\\n")
sys.stdout.flush()
if mode == "mistake":
    if rank == 0:
        sys.stderr.write("python -m components.train.main: --seed must be 0 or more\\n")
        sys.stderr.flush()
        print("goes on", flush=True)
    time.sleep(0.5)
    sys.exit(2)
if mode == "crash" and rank == 1:
    raise RuntimeError("boom")
if mode == "killed" and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if mode != "good":
    time.sleep(60)
"""
needs_mpirun = pytest.mark.skipif(
    not shutil.which("mpirun"), reason="needs mpirun: apt-get install openmpi-bin"
)


@pytest.fixture
def ranks(tmp_path):
    """Starts two ranks of a stand-in for the trainer through ``mpirun.run``, in a process of its own."""
    folder = tmp_path / "components/train"
    folder.mkdir(parents=True)
    for name in ("components/__init__.py", "components/train/__init__.py"):
        (tmp_path / name).touch()
    shutil.copy(ROOT / "components/train/mpirun.py", folder)
    (folder / "main.py").write_text(RANK)
    program = (
        "import sys; from components.train import mpirun; sys.exit(mpirun.run(2, ['--seed', '1'], 'launch'))"
    )

    def start(mode):
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        environment = {**os.environ, "MODE": mode, "PYTHONPATH": path}
        return subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return start


@needs_mpirun
@pytest.mark.parametrize(
    ("mode", "code", "last"),
    [
        ("good", 0, "size ('2', '2') ['--seed', '1']"),
        ("mistake", 2, "launch: --seed must be 0 or more"),
        ("crash", 1, "launch: exit code 1: [1] RuntimeError: boom"),
        ("killed", 137, "launch: mpirun noticed that process rank 1"),
    ],
)
def test_ranks_end_with_the_first_that_fails_and_a_clear_last_line(ranks, mode, code, last):
    started = time.monotonic()
    process = ranks(mode)
    output, _ = process.communicate(timeout=50)
    assert process.returncode == code, output
    assert time.monotonic() - started < 30
    lines = output.splitlines()
    assert last in lines[-1]
    assert any(line.startswith(("[0] size", "[1] size")) for line in lines)
    assert not any(line.startswith("-----") for line in lines)


@needs_mpirun
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_every_rank_save(ranks, number):
    process = ranks("wait")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if len(lines) == 2:
            process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert sum("saves" in line for line in lines) == 2


@needs_mpirun
def test_no_rank_outlives_a_killed_launch(ranks):
    process = ranks("wait")
    for _ in range(2):
        process.stdout.readline()
    children = [int(pid) for pid in subprocess.check_output(["pgrep", "-P", str(process.pid)]).split()]
    found = [int(pid) for c in children for pid in subprocess.check_output(["pgrep", "-P", str(c)]).split()]
    assert len(found) == 2
    process.kill()
    process.wait(10)
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/stat").exists() for pid in found) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}/stat").exists() for pid in found)


def test_output_of_mpirun_becomes_whole_lines_with_their_rank():
    lines = mpirun.Lines()
    printed = [
        "[1,3]<stdout>:epoch 1",
        "[1,0]<stderr>:in[1,1]<stdout>:other's[1,0]<stderr>: pieces[1,0]<stderr>:",
        "[1,1]<stdout>: line",
        "[prterun-host-7@1,3]<stdout>: Open MPI 5",
        "mpirun noticed that",
        "",
    ]
    assert [found for line in printed for found in lines.feed(line)] == [
        ("out", "[3] epoch 1"),
        ("err", "[0] in pieces"),
        ("out", "[1] other's line"),
        ("out", "[3] Open MPI 5"),
        ("", "mpirun noticed that"),
        ("", ""),
    ]


def test_without_mpirun_the_remedy_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="apt-get install openmpi-bin"):
        mpirun.run(2, [], "launch")
