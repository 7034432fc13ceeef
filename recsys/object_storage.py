"""Objects of ``gs://`` and ``s3://``: read in chunks, several at a time, each resumed where it broke off.

A store is a module with the functions of :class:`Store`, each of them one attempt; retries, chunks and checks
are here, so that both stores keep the same promises. (The clients' own transfer managers start a large object
over when its process dies, and retry by rules of their own.)
"""

import contextlib
import hashlib
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from recsys import transfer
from recsys.step import UserError
from recsys.transfer import CHUNK, Part, Progress, TransientError, persist

BLOCK = 256 << 10  # bytes that are read or written at a time


class Changed(Exception):
    """The object is not (any more) the one whose chunks are being read."""


@dataclass(frozen=True)
class Held:
    """What is known of an object before its bytes are read.

    Attributes:
        size: bytes.
        checksum: algorithm (``sha256``, ``md5``, ``crc32``, ``crc32c``) and hex digest, if one is known.
        version: what a read is guarded by (ETag, generation); ``None`` reads whatever is there.
    """

    size: int
    checksum: tuple[str, str] | None
    version: str | None = None

    @property
    def identity(self) -> str:
        return f"{self.version or '-'.join(self.checksum or ())} in {CHUNK}"


class Chunk:
    """The bytes from ``position`` to ``end`` of a file that are still to come."""

    def __init__(self, file: int, start: int, end: int, progress: Progress | None):
        self.file, self.position, self.end, self.progress = file, start, end, progress
        self.pending = bytearray()

    def write(self, block: bytes) -> int:
        """Takes bytes as they arrive: a few kilobytes at a time from some clients."""
        if len(block) > self.end - self.position - len(self.pending):
            raise TransientError("the server sent other bytes than were asked for")
        self.pending += block
        if len(self.pending) >= BLOCK:
            self.flush()
        return len(block)

    def flush(self) -> None:
        with memoryview(self.pending) as rest:
            written = 0
            while written < len(rest):
                written += os.pwrite(self.file, rest[written:], self.position + written)
        self.position += written
        self.pending.clear()
        if self.progress:
            self.progress.advance(written)


class Store(Protocol):
    """What the module of a store offers; failures that may pass are ``TransientError``."""

    def describe(self, address: str) -> Held: ...

    def read_into(self, address: str, chunk: Chunk, held: Held) -> None:
        """Writes bytes ``chunk.position`` to ``chunk.end`` of the object."""

    def read(self, address: str) -> bytes | None: ...

    def write(self, address: str, content: bytes, only_if_absent: bool) -> bool: ...

    def upload(self, address: str, path: Path) -> None: ...

    def remove(self, address: str) -> None: ...

    def list_folder(self, address: str) -> list[str]: ...


def split(address: str) -> tuple[str, str]:
    """``gs://bucket/some/object`` -> (``bucket``, ``some/object``); names may hold ``?`` and ``#``."""
    scheme, _, rest = address.partition("://")
    bucket, _, name = rest.partition("/")
    if not bucket or not name or name.endswith("/"):
        raise UserError(f"{address}: names no object; write {scheme}://BUCKET/PATH/FILE")
    return bucket, name


def split_folder(address: str) -> tuple[str, str]:
    """``gs://bucket/folder`` -> (``bucket``, ``folder/``); the prefix of a whole bucket is empty."""
    bucket, _, name = address.partition("://")[2].partition("/")
    if not bucket:
        raise UserError(f"{address}: names no bucket")
    return bucket, name.rstrip("/") + "/" if name.strip("/") else ""


def fetch(
    store: Store, address: str, path: Path, known: Held | None = None, progress: Progress | None = None
) -> None:
    """Downloads one object to ``path``, which appears when it is whole and its checksum is right.

    Chunks that an earlier process finished are kept if the object is still the same.

    Args:
        known: size and checksum, where the caller knows them: saves a request.
    """
    part = Part(address, path)

    def attempt() -> None:
        try:
            held = known or persist(address, lambda: store.describe(address))
            if part.version != held.identity:
                part.forget()
            _load(store, address, part, held, progress)
        except Changed as problem:
            part.forget()
            raise TransientError(str(problem)) from None

    with transfer.disk_errors(path):
        persist(address, attempt)
        part.finish()
    if known:
        part.state.unlink(missing_ok=True)


def _load(store: Store, address: str, part: Part, held: Held, progress: Progress | None) -> None:
    starts = range(0, held.size, CHUNK)
    missing = [start for start in starts if start not in part.chunks]
    arrived = held.size - sum(min(CHUNK, held.size - start) for start in missing)
    transfer.require_space(part.path.parent, held.size - arrived, f"downloading {address}")
    file = os.open(part.data, os.O_RDWR | os.O_CREAT, 0o666)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, file)
        if progress is None:
            progress = stack.enter_context(Progress(part.path.name, held.size, arrived))

        def load(start: int) -> None:
            chunk = Chunk(file, start, min(start + CHUNK, held.size), progress)

            def attempt() -> None:
                try:
                    store.read_into(address, chunk, held)
                finally:
                    chunk.flush()
                if chunk.position < chunk.end:
                    raise TransientError(f"the connection closed {chunk.end - chunk.position:,} bytes early")

            persist(address, attempt, lambda: chunk.position)

        hasher = _new_hash(held.checksum[0]) if held.checksum else None
        futures = {}
        if len(missing) > 1:
            pool = stack.enter_context(ThreadPoolExecutor(transfer.CONNECTIONS))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            futures = {start: pool.submit(load, start) for start in missing}
        for start in starts:  # in order: one thread hashes what has arrived while the others load the rest
            if start not in part.chunks:
                futures[start].result() if futures else load(start)
                part.chunks.add(start)
                if len(starts) > 1:
                    part.note(held.identity)
            if hasher:
                hasher.update(os.pread(file, CHUNK, start))
    if hasher and held.checksum and hasher.hexdigest() != held.checksum[1]:
        raise Changed(f"the bytes that arrived are not the object's ({held.checksum[0].upper()} differs)")


class _Crc32:
    def __init__(self) -> None:
        self.value = 0

    def update(self, block: bytes) -> None:
        self.value = zlib.crc32(block, self.value)

    def hexdigest(self) -> str:
        return f"{self.value:08x}"


def _new_hash(algorithm: str) -> Any:
    if algorithm == "crc32":
        return _Crc32()
    if algorithm == "crc32c":
        import google_crc32c

        return google_crc32c.Checksum()
    return hashlib.new(algorithm, usedforsecurity=False)
