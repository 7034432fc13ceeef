"""A step's container as a process: its environment, its log, its live output, its end.

What a container would give is kept: the step is alone in its process group, and nothing of it survives it.
Ctrl-C and SIGTERM go to the running step, which may take its time to save its state.
"""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from recsys.step import USER_MISTAKE, UserError

# What TensorFlow's C++ says on stderr whatever its log level; it stays in log.txt.
NOISE = re.compile(r"(?:\[\d+\] )?(?:[IW]\d{4} \d\d:|I0000 |WARNING: All log messages before absl)")


class StepFailedError(Exception):
    """A step that did not succeed: ``step``, its ``code`` (2: a user's mistake, else 1), and the reason."""

    def __init__(self, step: str, code: int, reason: str):
        super().__init__(f"{step}: {reason}")
        self.step, self.code, self.reason = step, code, reason


class InterruptedRunError(Exception):
    """The run was asked to stop by signal ``number`` while ``step`` ran (empty: between steps)."""

    def __init__(self, step: str, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.step, self.number = step, number


@dataclass
class StepProcesses:
    """Runs steps, one at a time.

    Args:
        root: the folder that holds ``components``; every step's working folder.
        environments: image name (without registry and tag) to the Python that has the image's packages.
        console: where live output goes.
        width: of the step names before each line.
    """

    root: Path
    environments: Mapping[str, Path]
    console: IO[str]
    width: int = 10
    seconds: dict[str, float] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None
    _signal: int | None = None

    def launch(self, image: str, command: Sequence[str], executor_input: Mapping[str, Any]) -> None:
        """Runs one step to its end; its folder is the one of its executor output.

        Raises:
            UserError: the image's environment does not exist.
            StepFailedError: the step failed, or ended without what it promised.
            InterruptedRunError: a signal came; the step has ended.
        """
        marker = Path(executor_input["outputs"]["outputFile"])
        step = marker.parent.name
        if self._signal:
            raise InterruptedRunError("", self._signal)
        command = [str(self._python(image)), *command[1:]] if command[0] == "python" else command
        marker.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        self._say(step, "started")
        code, last_line = self._run(step, command, marker.parent / "log.txt")
        self.seconds[step] = round(time.monotonic() - started, 3)
        if self._signal:
            raise InterruptedRunError(step, self._signal)
        reason = _failure(code, last_line, marker, executor_input)
        self._say(step, f"{'failed' if reason else 'done'} after {self.seconds[step]:.1f} s")
        if reason:
            raise StepFailedError(step, USER_MISTAKE if code == USER_MISTAKE else 1, reason)

    @contextlib.contextmanager
    def passing_signals(self) -> Iterator[None]:
        """Within: Ctrl-C and SIGTERM go to the running step instead of ending this process."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(number, self._pass_on) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)

    def _python(self, image: str) -> Path:
        name = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
        if name not in self.environments:
            raise UserError(f"image {image!r}: no environment; images: {', '.join(self.environments)}")
        python = self.environments[name]
        if not python.exists():
            raise UserError(f"image {image!r}: its environment {python} does not exist; run make setup")
        return python

    def _run(self, step: str, command: Sequence[str], log: Path) -> tuple[int, str]:
        """Returns the exit code and the last line of output."""
        path = [str(self.root), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
        with open(log, "w", encoding="utf-8") as log_file:
            log_file.write(f"$ {shlex.join(command)}\n")
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            self._process = process
            if self._signal:  # it came while the process was being started
                _signal_group(process, self._signal)
            with ThreadPoolExecutor(1) as reader:
                last_line = reader.submit(self._stream, step, process, log_file)
                code = process.wait()
                # As in a container, no child outlives the step's program (and keeps the pipe open).
                _signal_group(process, signal.SIGKILL)
            self._process = None
        return code, last_line.result()

    def _stream(self, step: str, process: subprocess.Popen[bytes], log_file: IO[str]) -> str:
        """Copies the step's output to its log and to the console; returns the last line."""
        assert process.stdout is not None
        last = ""
        try:
            # newline="": progress bars end their lines with \r, and only those.
            for line in io.TextIOWrapper(process.stdout, encoding="utf-8", errors="replace", newline=""):
                text = line.rstrip()
                if line.endswith("\r"):
                    if self.console.isatty() and text:
                        self._write(f"\r\x1b[K{step:<{self.width}} | {text}")
                    continue
                log_file.write(text + "\n")
                log_file.flush()
                if text and not NOISE.match(text):
                    last = text
                    self._say(step, text, "|")
        except OSError:  # disk full, or nobody reads our output any more: do not leave the step waiting
            _signal_group(process, signal.SIGKILL)
            raise
        return last

    def _say(self, step: str, text: str, mark: str = ">") -> None:
        clear = "\r\x1b[K" if self.console.isatty() else ""
        self._write(f"{clear}{step:<{self.width}} {mark} {text}\n")

    def _write(self, text: str) -> None:
        self.console.write(text)
        self.console.flush()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        # os.write: a print could be what the signal has interrupted.
        if self._signal is None:
            self._signal = number
            os.write(2, f"\n{name}: waiting for the running step to save its state; again: end it\n".encode())
        else:
            number = signal.SIGKILL
        if self._process:
            _signal_group(self._process, number)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _failure(code: int, last_line: str, marker: Path, executor_input: Mapping[str, Any]) -> str:
    """Why a step that has ended did not succeed; empty when it did."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -9 else "")
    if code:
        return last_line or f"exit code {code}"
    if not marker.is_file():
        return f"exit code 0, but no {marker.name}: the program ended before its work did"
    written = json.loads(marker.read_text()).get("artifacts", {})
    for name, artifact in executor_input["outputs"].get("artifacts", {}).items():
        path = Path(artifact["artifacts"][0]["uri"])
        if name not in written or not path.exists():
            return f"exit code 0, but output {name!r} is missing: {path}"
    return ""
