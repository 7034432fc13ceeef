"""Hosts on this machine, as an MPIJob's pods are: a network, names, files and processes of their own.

What the operator and a kubelet make of a job is made here: names, the ssh keys and the hostfile as volumes,
environment variables. Everything else, commands above all, is the job's own.
"""

import contextlib
import ctypes
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SEARCH_PATH = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"
PR_SET_PDEATHSIG = 1
Object = dict[str, Any]


@dataclass(frozen=True)
class Container:
    """What ``container.py`` makes."""

    name: str
    address: str
    port: str  # at the switch
    switch: int  # process id
    folder: str
    hosts: str  # file
    mounts: dict[str, str]  # path inside to path outside
    environment: dict[str, str]
    command: list[str]
    work_folder: str = str(ROOT)
    readable: tuple[str, ...] = (str(ROOT), sys.prefix, sys.base_prefix)


class Hosts:
    """The pods of an MPIJob: workers from the start, a launcher when it is asked for.

    Args:
        folder: for what they need outside, and what they print.
        job: as ``components.train.mpijob.render`` makes it; decides names and number of the workers.
        workspace: folder that all of them see.
    """

    def __init__(self, folder: Path, job: Object, workspace: Path):
        self.folder, self.job, self.workspace = folder, job, workspace
        metadata = job["metadata"]
        self.name, self.domain = metadata["name"], f"{metadata['name']}.{metadata['namespace']}.svc"
        replicas = job["spec"]["mpiReplicaSpecs"]["Worker"]["replicas"]
        self.workers = [f"{self.name}-worker-{number}" for number in range(replicas)]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.launches = 0
        self.keys = keys(folder / "ssh")
        script = "ip link add switch type bridge; ip link set switch up; echo; exec sleep infinity"
        self.switch = start(["unshare", "--net", "sh", "-ec", script], stdout=subprocess.PIPE)
        assert self.switch.stdout
        self.switch.stdout.readline()
        for number, worker in enumerate(self.workers):
            self._start(worker, number + 2, job, "Worker", {})
        for worker in self.workers:
            self._wait_ready(worker)

    def launch(self, job: Object, hosts: list[str]) -> tuple[subprocess.Popen[bytes], Path]:
        """Starts the launcher of a job on these workers; returns it and the file of what it prints."""
        slots = job["spec"]["slotsPerWorker"]
        self.launches += 1
        config = self.folder / f"mpi-{self.launches}"
        config.mkdir()
        (config / "hostfile").write_text("".join(f"{h}.{self.domain} slots={slots}\n" for h in hosts))
        variables = {
            "K_MPI_JOB_ROLE": "launcher",
            "OMPI_MCA_orte_keep_fqdn_hostnames": "true",
            "OMPI_MCA_orte_default_hostfile": "/etc/mpi/hostfile",
            "OMPI_MCA_plm_rsh_args": "-o ConnectionAttempts=10",
            "OMPI_MCA_orte_set_default_slots": str(slots),
            "NVIDIA_VISIBLE_DEVICES": "",
            "NVIDIA_DRIVER_CAPABILITIES": "",
        }
        name = f"{self.name}-launcher"
        place = 100 + self.launches
        process = self._start(name, place, job, "Launcher", variables, {"/etc/mpi": str(config)})
        return process, self._log(name)

    def cut(self, worker: str) -> None:
        """Nothing reaches the worker any more, and nothing that it sends gets out."""
        port = f"port{self.workers.index(worker) + 2}"
        inside(self.switch.pid, "--net", "ip", "link", "set", port, "down")

    def programs(self, worker: str) -> str:
        """What runs there: one command line each."""
        (init,) = children(self.processes[worker].pid)
        return inside(init, "--pid", "--mount", "--root", "ps", "-eo", "args=")

    def stop(self) -> None:
        for process in (*self.processes.values(), self.switch):
            process.kill()
            process.wait()

    def _start(
        self,
        name: str,
        place: int,
        job: Object,
        role: str,
        variables: dict[str, str],
        mounts: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        (spec,) = job["spec"]["mpiReplicaSpecs"][role]["template"]["spec"]["containers"]
        # Without a value, one comes from a Secret, which is optional and is not there.
        environment = {entry["name"]: entry["value"] for entry in spec.get("env", ()) if "value" in entry}
        environment |= variables
        (workspace,) = (m["mountPath"] for m in spec["volumeMounts"] if m["name"] == "workspace")
        layer = self.folder / f"layer-{name}-{place}"
        layer.mkdir()
        names = {f"10.77.0.{number + 2}": worker for number, worker in enumerate(self.workers)}
        names[f"10.77.0.{place}"] = name
        lines = [f"{address} {host}.{self.domain} {host}" for address, host in names.items()]
        container = Container(
            name=name,
            address=f"10.77.0.{place}",
            port=f"port{place}",
            switch=self.switch.pid,
            folder=str(layer),
            hosts="\n".join(["127.0.0.1 localhost", *lines, ""]),
            mounts={
                job["spec"]["sshAuthMountPath"]: str(self.keys),
                workspace: str(self.workspace),
                **(mounts or {}),
            },
            environment={"PATH": SEARCH_PATH, **environment},
            command=[expand(word, environment) for word in spec["command"] + spec["args"]],
        )
        program = [
            sys.executable,
            str(Path(__file__).with_name("container.py")),
            json.dumps(asdict(container)),
        ]
        with self._log(name).open("wb") as log:
            namespaces = ["unshare", "--net", "--mount", "--uts", "--ipc"]
            process = start([*namespaces, *program], stdout=log, stderr=subprocess.STDOUT)
        self.processes[name] = process
        return process

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.{self.launches}.log"

    def _wait_ready(self, worker: str) -> None:
        """The readiness probe of ``manifests/base``: something listens on the port of sshd."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            assert self.processes[worker].poll() is None, self._log(worker).read_text()
            with contextlib.suppress(ValueError, subprocess.CalledProcessError):
                (init,) = children(self.processes[worker].pid)
                if ":2222 " in inside(init, "--net", "ss", "-Hltn"):
                    return
            time.sleep(0.1)
        raise AssertionError(f"{worker} is not ready\n{self._log(worker).read_text()}")


def expand(word: str, environment: dict[str, str]) -> str:
    """``$(NAME)`` in a command, as Kubernetes reads it; ``$$`` is a dollar sign."""
    found = re.compile(r"\$\$|\$\((\w+)\)")
    return found.sub(lambda m: "$" if m[0] == "$$" else environment.get(m[1], m[0]), word)


def keys(folder: Path) -> Path:
    """The operator's Secret as a kubelet mounts it for a group that is not root's: files by way of links."""
    data = folder / "..2026"
    data.mkdir(parents=True)
    command = [
        "ssh-keygen",
        "-q",
        "-t",
        "ecdsa",
        "-b",
        "521",
        "-m",
        "PEM",
        "-N",
        "",
        "-f",
        str(data / "id_rsa"),
    ]
    subprocess.run(command, check=True)
    (data / "authorized_keys").write_bytes((data / "id_rsa.pub").read_bytes())
    (folder / "..data").symlink_to(data.name)
    for path in data.iterdir():
        path.chmod(0o644)
        (folder / path.name).symlink_to(f"..data/{path.name}")
    return folder


def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """A process that ends with this one."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent, **options)


def end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def inside(process: int, *command: str) -> str:
    """Runs a command in namespaces of a process; returns what it prints."""
    done = subprocess.run(
        ["nsenter", "--target", str(process), *command], check=True, capture_output=True, text=True
    )
    return done.stdout


def children(process: int) -> list[int]:
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
