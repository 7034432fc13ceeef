"""The train image as launcher and worker of the MPIJob that the train step creates, joined by a network."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from components.train import mpijob, mpirun
from tests.hosts.hosts import expand, keys, start
from tests.images.conftest import run
from tests.images.container import Pod

OUTPUTS = ("checkpoint", "history", "learning_curve")
NCF = {"factors": 4, "layers": [8, 4], "batch_size": 1000, "epochs": 1}
HOSTS = "127.0.0.1 localhost\n10.77.0.1 launcher\n10.77.0.2 worker\n"


@pytest.fixture
def networks():
    """Two processes with a network each, joined by a wire: 10.77.0.1 and 10.77.0.2."""
    ends = [start(["unshare", "--net", "sleep", "infinity"]) for _ in range(2)]
    try:
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{end.pid}/ns/net").readlink() == own_network() for end in ends):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first, second = (str(end.pid) for end in ends)
        wire = ["eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second]
        run("ip", "link", "add", *wire)
        for number, end in enumerate((first, second), 1):
            inside = ["nsenter", "--net", "--target", end, "ip"]
            run(*inside, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "up")
        yield int(first), int(second)
    finally:
        for end in ends:
            end.kill()
            end.wait()


def own_network() -> Path:
    return Path("/proc/self/ns/net").readlink()


def test_launcher_and_worker_train_over_ssh(images, smoke, networks, tmp_path):
    image = images["train"]
    workspace, settings = tmp_path / "workspace", tmp_path / "mpi"
    shutil.copytree(smoke / "preprocess/dataset", workspace / "dataset")
    workspace.chmod(0o777)
    settings.mkdir()
    (settings / "hostfile").write_text("worker slots=1\n")
    (tmp_path / "hosts").write_text(HOSTS)
    arguments = {
        "dataset": "/workspace/dataset",
        "model": "ncf",
        "hyperparameters": NCF,
        "seed": 1,
        "resume": "",
    }
    arguments |= {name: f"/workspace/{name}" for name in OUTPUTS}
    job = mpijob.render(
        mpijob.Settings(),
        mpijob.Run("recsys-ncf-0", "ana", "", 1, 0, mpirun.flags(arguments), "claim", "/workspace"),
    )
    mounts = {
        str(workspace): "/workspace",
        str(settings): "/etc/mpi",
        str(tmp_path / "hosts"): "/etc/hosts",
        str(keys(tmp_path / "ssh")): job["spec"]["sshAuthMountPath"],
    }

    def command(role: str, network: int) -> list[str]:
        (container,) = job["spec"]["mpiReplicaSpecs"][role]["template"]["spec"]["containers"]
        variables = {entry["name"]: entry["value"] for entry in container.get("env", ()) if "value" in entry}
        config = {**image.config, "Env": image.config["Env"] + [f"{k}={v}" for k, v in variables.items()]}
        security = job["spec"]["mpiReplicaSpecs"][role]["template"]["spec"]["securityContext"]
        user = (security["runAsUser"], security["runAsGroup"])
        pod = Pod(image.root, config, *user, mounts, hostname=role.lower(), network=network)
        (tmp_path / role).mkdir()
        words = [expand(word, variables) for word in container["command"] + container["args"]]
        return pod.command(tmp_path / role, *words)

    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(command("Worker", networks[1]), stderr=output)
    try:
        deadline = time.monotonic() + 30
        while "Server listening" not in log.read_text():
            assert worker.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        printed = run(*command("Launcher", networks[0]))
    finally:
        worker.terminate()
        worker.wait(30)
    assert "Accepted publickey for mpiuser" in log.read_text()
    assert "epoch 1/1" in printed
    assert (workspace / "checkpoint/model.keras").stat().st_uid == 1000
