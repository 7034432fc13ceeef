"""Runs a command in an image as a hardened cluster's pod does: ``python container.py FILE WORD ...``.

No capability, none to gain, a read-only root file system, no network but its own loopback or one that it is
given; writable are ``/tmp`` and what is mounted. FILE is a :class:`Pod` as JSON.
"""

import json
import os
import sys
import tempfile
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NO_CAPABILITIES: dict[str, list[str]] = {
    kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")
}


@dataclass(frozen=True)
class Pod:
    """How an image runs.

    Args:
        root: the image's files.
        config: the image's own configuration: ``Env``, ``WorkingDir``.
        user, group: that it runs as, known to the image or not.
        mounts: path outside to path inside; writable.
        hostname: of the pod.
        network: the process whose network it shares; 0: none.
    """

    root: str
    config: dict[str, Any]
    user: int = 1000
    group: int = 1000
    mounts: dict[str, str] = field(default_factory=dict)
    hostname: str = "pod"
    network: int = 0

    def command(self, folder: Path, *words: str) -> list[str]:
        """The command line on this machine; ``folder`` will hold what it needs."""
        file = folder / "pod.json"
        file.write_text(json.dumps(asdict(self)))
        return [sys.executable, str(Path(__file__).resolve()), str(file), *words]

    def as_python(self, folder: Path) -> Path:
        """A program that stands for the image's Python."""
        program = folder / "python"
        words = " ".join(self.command(folder, "python"))
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)
        return program


def specification(pod: Pod, words: list[str]) -> dict[str, Any]:
    """What runc is told; no resource limits, which a sandbox may refuse to set."""
    memory = {"type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]}
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
        {"destination": "/dev/shm", **memory},
        {"destination": "/tmp", **memory},
    ]
    for source, target in pod.mounts.items():
        mounts.append({"destination": target, "type": "bind", "source": source, "options": ["rbind", "rw"]})
    return {
        "ociVersion": "1.0.2",
        "hostname": pod.hostname,
        "root": {"path": pod.root, "readonly": True},
        "process": {
            "args": words,
            "cwd": pod.config["WorkingDir"],
            "env": pod.config["Env"],
            "user": {"uid": pod.user, "gid": pod.group},
            "capabilities": NO_CAPABILITIES,
            "noNewPrivileges": True,
        },
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
    }


def main() -> None:
    pod = Pod(**json.loads(Path(sys.argv[1]).read_text()))
    bundle = Path(tempfile.mkdtemp(dir=Path(sys.argv[1]).parent))
    (bundle / "config.json").write_text(json.dumps(specification(pod, sys.argv[2:])))
    # The container takes this process's network; runc would leave the loopback of a new one down.
    enter = ["nsenter", "--net", "--target", str(pod.network)] if pod.network else ["unshare", "--net"]
    script = 'ip link set lo up && exec runc --root "$0/state" run --bundle "$0" "$1"'
    os.execvp(enter[0], [*enter, "sh", "-c", script, str(bundle), uuid.uuid4().hex])


if __name__ == "__main__":
    main()
