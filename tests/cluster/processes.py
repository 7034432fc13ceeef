"""Starts, stops and watches the processes of the cluster; all end with the tests, whatever ends these."""

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BINARIES = Path(__file__).resolve().parents[2] / ".venv" / "cluster"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(what: str, check: Callable[[], Any], seconds: float = 30, *processes: "Process") -> Any:
    """Returns the first true value of ``check``; fails after ``seconds``, or when a process has ended.

    Errors of connections and answers of the API server count as "not yet".
    """
    end, error = time.monotonic() + seconds, None
    while time.monotonic() < end:
        for process in processes:
            if not process.running():
                raise AssertionError(f"{process.name} ended while waiting for {what}\n{process.tail()}")
        try:
            if value := check():
                return value
        except Exception as problem:
            error = problem
        time.sleep(0.05)
    tails = "\n".join(process.tail() for process in processes)
    raise AssertionError(f"no {what} after {seconds:g} s; last error: {error}\n{tails}")


class Process:
    """One process, to start again with the same arguments. It ends by itself when its input closes."""

    def __init__(self, name: str, *arguments: str, log: Path) -> None:
        self.name, self.arguments, self.log = name, arguments, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.running():
            return
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [BINARIES / "bin" / self.name, *self.arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={"PATH": "/usr/bin:/bin", "HOME": str(self.log.parent)},
            )

    def stop(self) -> None:
        """Kills: what tests want to see is how clients take a sudden end."""
        if self.process:
            self.process.kill()
            self.process.wait(timeout=30)
            assert self.process.stdin
            self.process.stdin.close()
            self.process = None

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tail(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([f"--- {self.log}", *text.splitlines()[-lines:]])
