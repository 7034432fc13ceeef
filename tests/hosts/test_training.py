"""The MPIJob's own mpirun and sshd train over several hosts; one is cut off, one is missing."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from planted import ncf_dataset

from components.train import mpijob, mpirun
from tests.hosts.hosts import ROOT, Hosts

__all__ = ["ncf_dataset"]
TOOLS = ("ip", "ss", "ps", "unshare", "nsenter", "setpriv", "sshd", "ssh-keygen", "mpirun")
OUTPUTS = ("checkpoint", "history", "learning_curve")
NCF = {"factors": 8, "layers": [16, 12, 6], "batch_size": 500, "epochs": 3, "learning_rate": 0.01}
# From the cut to the end: 25 s until it is missed, 10 s for a rank to end, the rest for a busy machine.
ANSWER_SECONDS = 60


def missing() -> str:
    if os.geteuid():
        return "root"
    tools = [name for name in TOOLS if not shutil.which(name)]
    if tools:
        return f"{', '.join(tools)}: apt-get install iproute2 procps openssh-server openmpi-bin"
    if not importlib.util.find_spec("horovod"):
        return "Horovod: make setup-horovod"
    allowed = subprocess.run(["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "true"])
    return "the right to make namespaces" if allowed.returncode else ""


MISSING = missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"hosts on this machine need {MISSING}")


def flags(output: Path, dataset: Path, resume: Path | str = "", **changes) -> list[str]:
    values = {
        "dataset": dataset,
        "model": "ncf",
        "hyperparameters": {**NCF, **changes},
        "seed": 3,
        "resume": resume,
    }
    return mpirun.flags({**values, **{name: output / name for name in OUTPUTS}})


def job(workers: int = 2, **flag) -> mpijob.Object:
    """What the train step would create."""
    run = mpijob.Run(
        name="recsys-ncf-0123456789",
        namespace="ana",
        image="",
        workers=workers,
        gpus=0,
        arguments=flags(**{"dataset": Path("/workspace/dataset"), **flag}),
        claim="recsys-workspace",
        workspace="/workspace",
    )
    return mpijob.render(mpijob.Settings(), run)


@pytest.fixture
def hosts(tmp_path, ncf_dataset):
    workspace = tmp_path / "workspace"
    shutil.copytree(ncf_dataset, workspace / "dataset")
    (workspace / "dataset").chmod(0o755)  # pytest's folders are the owner's alone
    os.chown(workspace, 1000, 1000)
    hosts = Hosts(tmp_path, job(output=Path("/workspace/out")), workspace)
    yield hosts
    hosts.stop()
    for log in sorted(tmp_path.glob("*.log")):  # shown when the test has failed
        print(log.name, log.read_text(), sep="\n")


def wait_for(path: Path, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def weights(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "checkpoint" / "last.npz") as saved:
        return {name: saved[name] for name in saved.files if name.startswith("weight/")}


def cause(log: Path) -> str:
    """The line that ends the train step's log."""
    found, lines = mpirun.Cause(), mpirun.Lines()
    for line in log.read_text().splitlines():
        for entry in lines.feed(line):
            found.read(*entry)
    return str(found)


def test_two_hosts_reach_what_one_process_reaches(hosts, ncf_dataset, tmp_path):
    process, log = hosts.launch(job(output=Path("/workspace/out")), hosts.workers)
    assert process.wait(300) == 0, log.read_text()
    assert f"2 workers: {', '.join(hosts.workers)}" in log.read_text()
    alone = [sys.executable, "-m", "components.train.main", *flags(tmp_path / "alone", ncf_dataset)]
    subprocess.run(alone, cwd=ROOT, check=True, timeout=300)
    expected = weights(tmp_path / "alone")
    for name, value in weights(hosts.workspace / "out").items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-4, atol=2e-4, err_msg=name)
    found, wanted = (
        json.loads((f / "history").read_text()) for f in (hosts.workspace / "out", tmp_path / "alone")
    )
    for name in ("validation_hr@10", "train_loss", "steps"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-3)


def test_a_host_that_is_cut_off_ends_the_job_and_the_rest_can_go_on(hosts):
    lasting = job(output=Path("/workspace/out"), epochs=100_000, checkpoint_seconds=1)
    process, log = hosts.launch(lasting, hosts.workers)
    state = hosts.workspace / "out" / "checkpoint.partial"
    wait_for(state / "last.npz", process, log)
    rest, lost = hosts.workers
    hosts.cut(lost)
    begin = time.monotonic()
    assert process.wait(ANSWER_SECONDS) != 0
    print(f"ended {time.monotonic() - begin:.1f} s after the cut")
    assert cause(log) == f"lost contact with {lost}.{hosts.domain}"
    while any("components.train.main" in hosts.programs(name) for name in hosts.workers):
        assert time.monotonic() - begin < ANSWER_SECONDS, "a rank has outlived the job"
        time.sleep(0.5)

    resume = Path("/workspace/out/checkpoint.partial")
    process, log = hosts.launch(job(1, output=Path("/workspace/on"), resume=resume, epochs=1), [rest])
    assert process.wait(300) == 0, log.read_text()
    assert "resumed after epoch" in log.read_text()
    assert (hosts.workspace / "on" / "checkpoint" / "model.keras").is_file()


def test_fewer_hosts_than_asked_for_are_named(hosts):
    first = hosts.workers[0]
    asked = job(output=Path("/workspace/out"))
    asked["spec"]["slotsPerWorker"] = 2
    process, log = hosts.launch(asked, [first])
    assert process.wait(120) == 2
    assert f"RECSYS_NUM_HOSTS is 2, there is 1 ({first}, {first})" in log.read_text()
    assert not (hosts.workspace / "out").exists()
