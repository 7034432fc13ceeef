"""What every transfer shares, whatever the protocol: the bytes so far, retries, progress, disk space."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any, TypeVar

import tenacity
from tqdm import tqdm

from recsys.step import UserError, atomic_write

log = logging.getLogger(__name__)
T = TypeVar("T")
Item = TypeVar("Item")

ATTEMPTS = 6  # in a row without a single new byte, before a download gives up
BACKOFF = 1.0  # seconds before the second attempt; doubles, with jitter, up to LONGEST_WAIT
LONGEST_WAIT = 30.0
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds without a byte
CHUNK = 8 << 20  # bytes of a large object that one request carries
CONNECTIONS = 16  # requests at a time: with CHUNK, what bounds the memory of an upload
SPARE = 64 << 20  # bytes of disk that stay free
LOG_EVERY = 10.0  # seconds between progress lines where no terminal shows a bar


class AccessError(UserError):
    """The server wants a login (``code`` 401) or does not let this one in (403)."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class TransientError(Exception):
    """A failure that another attempt may mend."""

    def __init__(self, message: str, retry_after: float = 0.0):
        super().__init__(message)
        self.retry_after = retry_after


def shown(address: str) -> str:
    """The address as messages may show it: a web address without its login and query, often a signature."""
    if not address.startswith(("http://", "https://")):
        return address
    return re.sub(r"(?<=://)[^/@?]*@", "", address.partition("?")[0])


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
        self.address, self.path = shown(address), path
        self.origin = hashlib.sha256(address.encode()).hexdigest()  # a signed address is a secret
        self.data = path.with_name(path.name + ".part")
        self.state = path.with_name(path.name + ".part.json")
        if path.exists():  # whole, from an attempt that died later on: the server says whether it is current
            os.replace(path, self.data)
        state = {}
        if self.state.exists():
            with contextlib.suppress(ValueError):
                state = json.loads(self.state.read_text())
        self.version: str | None = state.get("version") if state.get("origin") == self.origin else None
        kept = self.version and self.data.exists()
        self.chunks: set[int] = set(state.get("chunks", ())) if kept else set()
        if self.version is None:
            self.data.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        return self.data.stat().st_size if self.data.exists() else 0

    def forget(self) -> None:
        """Drops the bytes, so that the next attempt starts over."""
        self.data.unlink(missing_ok=True)
        self.version, self.chunks = None, set()

    def note(self, version: str | None) -> None:
        """Remembers what the bytes are, for a process that comes after this one."""
        self.version = version
        state = {"origin": self.origin, "version": version, "chunks": sorted(self.chunks)}
        atomic_write(self.state, json.dumps(state))

    @contextlib.contextmanager
    def writer(self, version: str | None, total: int | None, resumed: bool) -> Iterator["Progress"]:
        """Opens the part for the rest (``resumed``) or for everything of ``version``."""
        if not resumed:
            self.forget()
        self.note(version)
        if total is not None:
            require_space(self.path.parent, total - self.size, f"downloading {self.address}")
        if resumed and self.size:
            log.info("resuming %s at %.1f MB", self.path.name, self.size / 1e6)
        with (
            disk_errors(self.path),
            open(self.data, "ab") as stream,
            Progress(self.path.name, total, self.size, stream) as progress,
        ):
            yield progress
        if total is not None and self.size < total:
            raise TransientError(f"the connection closed after {self.size:,} of {total:,} bytes")

    def finish(self) -> None:
        """Gives the whole file its name."""
        os.replace(self.data, self.path)


class Progress:
    """Counts bytes on their way to ``stream``: a bar on a terminal, now and then a log line elsewhere."""

    def __init__(self, name: str, total: int | None, size: int = 0, stream: IO[bytes] | None = None):
        self.stream, self.name, self.size, self.total = stream, name, size, total
        self.bar = tqdm(
            desc=name, initial=size, total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()
        )
        self.next_line = time.monotonic() + LOG_EVERY
        self.lock = threading.Lock()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def write(self, block: bytes) -> int:
        self.advance(len(block))
        return self.stream.write(block) if self.stream else 0

    def advance(self, count: int) -> None:
        with self.lock:  # several connections may tell of their bytes
            self.size += count
            self.bar.update(count)
            if self.bar.disable and time.monotonic() >= self.next_line:
                share = (
                    f" of {self.total / 1e6:,.1f} MB ({self.size / self.total:.0%})" if self.total else " MB"
                )
                log.info("%s: %s%s", self.name, f"{self.size / 1e6:,.1f}", share)
                self.next_line = time.monotonic() + LOG_EVERY


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
    """Repeats ``attempt`` while it fails in a way that may pass.

    No client retries below this: :data:`ATTEMPTS` bounds what one request may cost.
    """
    address = shown(address)

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
            f"{address}: {error}; gave up after {ATTEMPTS} attempts in a row. Run the step again later"
        ) from None


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Says which disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{path}: the disk is full ({os.strerror(error.errno)}); free space or choose another path"
        ) from None


def parallel(work: Callable[[Item], T], items: Iterable[Item], threads: int | None = None) -> list[T]:
    """``work`` of every item, several at a time; the first failure ends it and drops what has not begun."""
    with ThreadPoolExecutor(threads or CONNECTIONS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [future.result() for future in futures]


def one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
