"""Several ranks on this machine: mpirun, its output with the rank before each line, its end within bounds."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psutil

from recsys.step import UserError

# mpirun waits a second between SIGTERM and SIGKILL of a rank, so the ranks get the signal from here, and may
# take this long to save; they leave together.
STOP_SECONDS = 60
TAG = re.compile(r"\[(?:[^\]\s]*@)?\d+,(\d+)\]<std(\w+)>:")  # Open MPI 5 has a name and @ in it
BOILERPLATE = re.compile(
    r"-{20,}$|$|Primary job  terminated normally|a non-zero exit code\. Per user-direction"
    r"|mpirun detected that one or more|the job to be terminated\. The first|  Process name: |  Exit code: "
)
KILLED, TRAINER, FOLLOWER = (
    "mpirun noticed that",
    "python -m components.train.main: ",
    "another worker has ended",
)
LOST = re.compile(r"  Remote daemon: \S+ on node (\S+)")  # the one line of that message that says which
UNREACHABLE = "ssh: "
PR_SET_PDEATHSIG = 1


def flags(values: Mapping[str, Any]) -> list[str]:
    """``--name value`` of each, as :class:`recsys.step.Step` reads them."""
    texts = {
        name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in values.items()
    }
    return [word for name, text in texts.items() for word in (f"--{name}", text)]


class Lines:
    """Whole lines of ranks out of what ``mpirun --tag-output`` prints.

    A rank that writes a line in pieces gets a tag before each, with other ranks' pieces between them.
    """

    def __init__(self) -> None:
        self._begun: dict[tuple[str, str], str] = {}  # rank and stream to what it has written of a line

    def feed(self, line: str) -> Iterator[tuple[str, str]]:
        """The lines that a printed line (without its end) completes: stream (``err``, ``out``) and text."""
        before, *rest = TAG.split(line)
        if before or not rest:
            yield "", before
        pieces = [(rest[i], rest[i + 1], rest[i + 2]) for i in range(0, len(rest), 3)]
        for number, (rank, stream, text) in enumerate(pieces, 1):
            self._begun[rank, stream] = self._begun.get((rank, stream), "") + text
            if number == len(pieces):
                yield stream, f"[{rank}] {self._begun.pop((rank, stream)).lstrip(' ')}"


class Cause:
    """The line that best says why a run failed, of all that it prints.

    That is mpirun's or ssh's on a host that is gone, else mpirun's on a rank that was killed, else the first
    that a trainer ended with, else the last error, else the last line.
    """

    def __init__(self) -> None:
        self._gone = self._killed = self._told = self._error = self._last = ""

    def read(self, stream: str, line: str) -> None:
        """Takes a line as :class:`Lines` gives it."""
        self._last = line
        if lost := LOST.match(line):
            self._gone = f"lost contact with {lost[1]}"
        elif line.startswith(UNREACHABLE):
            self._gone = self._gone or line
        elif KILLED in line:
            self._killed = line
        elif TRAINER in line and FOLLOWER not in line:
            self._told = self._told or line
        elif stream == "err":
            self._error = line

    @property
    def certain(self) -> str:
        """The same without errors and last lines, which may be no reason at all."""
        return self._gone or self._killed or self._told.partition(TRAINER)[2]

    def __str__(self) -> str:
        return self.certain or self._error or self._last


def run(ranks: int, arguments: Sequence[str], program: str) -> int:
    """Trains with ``ranks`` processes; returns mpirun's exit code: that of the first rank that failed.

    Raises:
        UserError: there is no mpirun.
    """
    mpirun = shutil.which("mpirun")
    if not mpirun:
        raise UserError(f"{ranks} workers need mpirun: apt-get install openmpi-bin, then make setup-horovod")
    command = [
        mpirun,
        "-np",
        str(ranks),
        "--tag-output",
        "--bind-to",
        "none",
        "--map-by",
        "slot:OVERSUBSCRIBE",
        "--mca",  # Horovod's thread would spin on a core of the trainer's: a third of a step on full cores
        "mpi_yield_when_idle",
        "1",
    ]
    command += [sys.executable, "-m", "components.train.main", *arguments]
    environment = {**os.environ, "RECSYS_NUM_WORKERS": str(ranks), "RECSYS_NUM_HOSTS": "1"}
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a signal to our group is ours to hand on
        preexec_fn=_end_with_parent,
    )
    try:
        with _passing_signals(process) as asked:
            cause = _copy(process)
            code = process.wait()
    finally:
        _end_session(process.pid)
    if asked:
        return 128 + asked[0]
    code = code if code >= 0 else 128 - code
    if code:  # once more and last, for ranks and mpirun talk on after what was the cause
        print(f"{program}: {cause.certain or f'exit code {code}: {cause}'}", file=sys.stderr, flush=True)
    return code


def _copy(process: subprocess.Popen[bytes]) -> Cause:
    """Copies mpirun's output; returns why it failed, if it has."""
    assert process.stdout is not None
    cause, lines = Cause(), Lines()
    for raw in process.stdout:
        for stream, line in lines.feed(raw.decode(errors="replace").rstrip("\n")):
            if not BOILERPLATE.match(line):
                print(line, flush=True)
                cause.read(stream, line)
    return cause


@contextlib.contextmanager
def _passing_signals(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Within: SIGTERM and Ctrl-C go to every rank, and what does not end in time is killed.

    Yields:
        the signals that came.
    """
    asked: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        with contextlib.suppress(psutil.NoSuchProcess):
            mpirun = psutil.Process(process.pid)
            for rank in mpirun.children() or [mpirun]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    rank.send_signal(number)
        timer = threading.Timer(STOP_SECONDS, _end_session, [process.pid])
        timer.daemon = True
        timer.start()

    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, pass_on) for number in numbers]
    try:
        yield asked
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def _end_session(session: int) -> None:
    """Kills what is left of mpirun and its ranks, each of which is a process group of its own."""
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == session:
                os.kill(pid, signal.SIGKILL)


def _end_with_parent() -> None:
    """In the child: mpirun gets SIGTERM when this program is killed, and ends its ranks."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
