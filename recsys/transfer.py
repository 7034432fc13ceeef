"""What every download shares, whatever the protocol: the bytes so far, retries, progress, disk space."""

import contextlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import tenacity
from tqdm import tqdm

from recsys.step import UserError, atomic_write

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 6  # in a row without a single new byte, before a download gives up
BACKOFF = 1.0  # seconds before the second attempt; doubles, with jitter, up to LONGEST_WAIT
LONGEST_WAIT = 30.0
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds without a byte
SPARE = 64 << 20  # bytes of disk that stay free
LOG_EVERY = 10.0  # seconds between progress lines where no terminal shows a bar


class TransientError(Exception):
    """A failure that another attempt may mend."""

    def __init__(self, message: str, retry_after: float = 0.0):
        super().__init__(message)
        self.retry_after = retry_after


def require_space(folder: Path, size: int, purpose: str) -> None:
    """Fails unless ``size`` bytes fit on the disk of ``folder``."""
    free = shutil.disk_usage(folder).free
    if size + SPARE > free:
        raise UserError(
            f"{purpose} needs {size / 1e6:,.0f} MB in {folder}, {free / 1e6:,.0f} MB are free; "
            f"free {(size + SPARE - free) / 1e6:,.0f} MB or choose another output path"
        )


class Part:
    """The bytes of a download so far (``<path>.part``) and what they are (``<path>.part.json``)."""

    def __init__(self, address: str, path: Path):
        self.address, self.path = address, path
        self.data = path.with_name(path.name + ".part")
        self.state = path.with_name(path.name + ".part.json")
        if path.exists():  # whole, from an attempt that died later on: the server says whether it is current
            os.replace(path, self.data)
        state = {}
        if self.state.exists():
            with contextlib.suppress(ValueError):
                state = json.loads(self.state.read_text())
        self.version: str | None = state.get("version") if state.get("address") == address else None
        if self.version is None:
            self.data.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        return self.data.stat().st_size if self.data.exists() else 0

    def forget(self) -> None:
        """Drops the bytes, so that the next attempt starts over."""
        self.data.unlink(missing_ok=True)
        self.version = None

    @contextlib.contextmanager
    def writer(self, version: str | None, total: int | None, resumed: bool) -> Iterator["Progress"]:
        """Opens the part for the rest (``resumed``) or for everything of ``version``."""
        if not resumed:
            self.forget()
        self.version = version
        atomic_write(self.state, json.dumps({"address": self.address, "version": version}))
        if total is not None:
            require_space(self.path.parent, total - self.size, f"downloading {self.address}")
        if resumed and self.size:
            log.info("resuming %s at %.1f MB", self.path.name, self.size / 1e6)
        with open(self.data, "ab") as stream, Progress(stream, self.path.name, self.size, total) as progress:
            yield progress
        if total is not None and self.size < total:
            raise TransientError(f"the connection closed after {self.size:,} of {total:,} bytes")

    def finish(self) -> None:
        """Gives the whole file its name."""
        os.replace(self.data, self.path)


class Progress:
    """A stream that counts what is written to it: a bar on a terminal, now and then a log line elsewhere."""

    def __init__(self, stream: IO[bytes], name: str, size: int, total: int | None):
        self.stream, self.name, self.size, self.total = stream, name, size, total
        self.bar = tqdm(
            desc=name, initial=size, total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()
        )
        self.next_line = time.monotonic() + LOG_EVERY

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def write(self, block: bytes) -> int:
        self.size += len(block)
        self.bar.update(len(block))
        if self.bar.disable and time.monotonic() >= self.next_line:
            share = f" of {self.total / 1e6:,.1f} MB ({self.size / self.total:.0%})" if self.total else " MB"
            log.info("%s: %s%s", self.name, f"{self.size / 1e6:,.1f}", share)
            self.next_line = time.monotonic() + LOG_EVERY
        return self.stream.write(block)


class _Stalled:
    """Stops after :data:`ATTEMPTS` attempts in a row that brought no new byte."""

    def __init__(self, size: Callable[[], int]):
        self.size, self.seen, self.attempts = size, size(), 0

    def __call__(self, _: tenacity.RetryCallState) -> bool:
        size = self.size()
        self.attempts = 1 if size > self.seen else self.attempts + 1
        self.seen = size
        return self.attempts >= ATTEMPTS


def persist(address: str, attempt: Callable[[], T], size: Callable[[], int] = lambda: 0) -> T:
    """Repeats ``attempt`` while it fails in a way that may pass."""

    def wait(state: tenacity.RetryCallState) -> float:
        asked = min(getattr(state.outcome and state.outcome.exception(), "retry_after", 0.0), 60.0)
        return max(asked, tenacity.wait_random_exponential(BACKOFF, LONGEST_WAIT)(state))

    def tell(state: tenacity.RetryCallState) -> None:
        log.info("%s: %s; trying again", address, state.outcome and state.outcome.exception())

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=_Stalled(size),
        wait=wait,
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except TransientError as error:
        raise UserError(
            f"{address}: {error}; gave up. Run the step again later (it resumes), or give a copy with source"
        ) from None


def one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
