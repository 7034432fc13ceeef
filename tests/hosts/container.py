"""Becomes one container: run as root in network, mount and host-name namespaces of its own.

Its files are this machine's, under a layer of its own that ends with it; its rights are those that
``manifests/base`` leaves a container: none. Takes a :class:`tests.hosts.hosts.Container` as JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

UID = "1000"
# No rights and none to gain; what it started ends with it, and it with the tests.
UNPRIVILEGED = [
    *("setpriv", "--reuid", UID, "--regid", UID, "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all", "--bounding-set=-all", "--pdeathsig=KILL", "--reset-env"),
]


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


def join_switch(container: dict[str, Any]) -> None:
    port, switch = container["port"], container["switch"]
    run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
    run("nsenter", "--target", switch, "--net", "ip", "link", "set", port, "master", "switch", "up")
    run("ip", "address", "add", f"{container['address']}/24", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    run("ip", "link", "set", "lo", "up")
    run("hostname", container["name"])


def make_root(container: dict[str, Any]) -> Path:
    layer = Path(container["folder"])
    run("mount", "-t", "tmpfs", "tmpfs", layer)
    root, upper, work = (layer / name for name in ("root", "upper", "work"))
    for folder in (root, upper, work):
        folder.mkdir()
    run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", root)
    for name in ("dev", "sys"):
        run("mount", "--rbind", f"/{name}", root / name)
    for name in ("dev/shm", "tmp"):
        run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / name)
    for path in map(Path, container["readable"]):
        let_read(root, path)
    etc = root / "etc"
    users = [line for line in (etc / "passwd").read_text().splitlines() if line.split(":")[2] != UID]
    users.append(f"mpiuser:x:{UID}:{UID}::/home/mpiuser:/bin/bash")
    (etc / "passwd").write_text("\n".join(users) + "\n")
    (etc / "hosts").write_text(container["hosts"])
    (etc / "resolv.conf").unlink(missing_ok=True)
    home = root / "home/mpiuser"
    home.mkdir(parents=True)
    os.chown(home, int(UID), int(UID))
    for target, source in container["mounts"].items():
        (root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", source, root / target.lstrip("/"))
    return root


def let_read(root: Path, path: Path) -> None:
    """Opens a folder of this machine, which may lie where only root may look, to the container's user."""
    inside = root / path.relative_to("/")
    if path.stat().st_dev != Path("/").stat().st_dev or not inside.exists():  # or below /tmp
        inside.mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", path, inside)
        inside = inside.parent
    while inside != root:
        inside.chmod(inside.stat().st_mode | 0o555)
        inside = inside.parent


def main() -> None:
    container = json.loads(sys.argv[1])
    join_switch(container)
    root = make_root(container)
    environment = {"HOME": "/home/mpiuser", "HOSTNAME": container["name"], **container["environment"]}
    process = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process += [f"--root={root}", f"--wd={container['work_folder']}", *UNPRIVILEGED]
    process += ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
    os.execvp(process[0], [*process, *container["command"]])


if __name__ == "__main__":
    main()
