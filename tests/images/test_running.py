"""The images at work as a hardened cluster runs them: no capability, a read-only root, any user."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.images.conftest import CHOSEN, NAMES, Image, run

USERS = {"the image's own": (1000, 1000), "root": (0, 0), "one that the cluster chose": CHOSEN}
IMPORTS = {
    "download": "boto3, google.cloud.storage, kubernetes",
    "preprocess": "boto3, google.cloud.storage, nvtabular",
    "train": "boto3, google.cloud.storage, horovod.tensorflow, keras, kubernetes, tensorflow",
}
ALLREDUCE = r"""
import sys, horovod.tensorflow as hvd, tensorflow as tf
hvd.init()
total = hvd.allreduce(tf.constant([1.0 + hvd.rank()]), op=hvd.Sum)
sys.stdout.write(f"rank {hvd.rank()} of {hvd.size()} sum {float(total[0])}\n")
"""
# A worker and a login as mpirun makes it, in one container: manifests/base has the same commands.
LOGIN = """
set -e
/usr/sbin/sshd -t -f "$HOME/.sshd_config"
/usr/sbin/sshd -D -e {options} 2> /tmp/sshd.log &
for attempt in $(seq 50); do ssh 127.0.0.1 true 2> /dev/null && break; sleep 0.2; done
ssh 127.0.0.1 'set -e; id -u; pwd; command -v orted' || {{ cat /tmp/sshd.log; exit 1; }}
"""
WORKER = "-f /dev/null -p 2222 -h /home/mpiuser/.ssh/id_rsa -o StrictModes=no -o PidFile=none"
UPSTREAM = "-f /home/mpiuser/.sshd_config"  # as the operator's own examples do


@pytest.fixture
def start(tmp_path: Path):
    """Runs a command in an image; returns what it prints."""

    def start(image: Image, *words: str, user=(1000, 1000), mounts: dict[str, str] | None = None) -> str:
        return run(*image.pod(user, mounts).command(tmp_path, *words))

    return start


@pytest.mark.parametrize("user", USERS.values(), ids=USERS.keys())
@pytest.mark.parametrize("name", NAMES)
def test_a_step_starts_whoever_it_runs_as(name, user, images, start):
    code = f"import {IMPORTS[name]}, os; print(os.getuid(), os.access(os.environ['HOME'], os.R_OK | os.X_OK))"
    printed = start(images[name], "python", "-c", code, user=user)
    assert printed.split()[-2:] == [str(user[0]), "True"]
    assert "--executor_input" in start(images[name], *images[name].config["Cmd"], user=user)


@pytest.mark.parametrize("name", NAMES)
def test_home_is_writable_for_the_group_that_every_cluster_gives(name, images):
    home = next(word[5:] for word in images[name].config["Env"] if word.startswith("HOME="))
    status = Path(images[name].root, home[1:]).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o775) == (1000, 0, 0o775)


def test_the_smoke_pipeline_has_run_step_by_step_inside_the_images(smoke):
    summary = json.loads((smoke / "summary.json").read_text())
    assert summary["status"] == "succeeded"
    assert list(summary["step_seconds"]) == [
        "download",
        "preprocess",
        "train",
        "evaluate",
        "benchmark",
        "gate",
        "cleanup",
    ]
    assert (smoke / "train/checkpoint/model.keras").stat().st_uid == CHOSEN[0]
    assert "[1] " in (smoke / "train/log.txt").read_text(), "the second rank said nothing"


@pytest.mark.parametrize("user", USERS.values(), ids=USERS.keys())
def test_two_ranks_reduce_whoever_they_run_as(user, images, start):
    mpirun = ["mpirun", "-np", "2", "--oversubscribe", "--bind-to", "none"]
    printed = start(images["train"], *mpirun, "python", "-c", ALLREDUCE, user=user)
    assert sorted(printed.splitlines())[-2:] == ["rank 0 of 2 sum 3.0", "rank 1 of 2 sum 3.0"]


@pytest.mark.parametrize("options", [WORKER, UPSTREAM])
def test_a_worker_lets_the_launcher_in_as_uid_1000(options, images, start, tmp_path):
    secret = tmp_path / "ssh"
    secret.mkdir()
    run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-N", "", "-f", secret / "id_rsa")
    (secret / "id_rsa.pub").rename(secret / "authorized_keys")
    for path in (secret, *secret.iterdir()):  # as a kubelet mounts a Secret for fsGroup 1000
        path.chmod(0o750 if path.is_dir() else 0o640)
        subprocess.run(["chgrp", "1000", path], check=True)
    login = LOGIN.format(options=options)
    printed = start(images["train"], "sh", "-c", login, mounts={str(secret): "/home/mpiuser/.ssh"})
    assert printed.split() == ["1000", "/home/mpiuser", "/usr/bin/orted"]
