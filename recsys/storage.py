"""Bytes elsewhere: local paths, ``file://``, ``http(s)://`` (to read), ``gs://``, ``s3://`` and ``minio://``.

:func:`fetch` downloads one file so that a broken connection, a killed process or an impatient user costs
only the bytes that had not arrived: it keeps them in ``<path>.part`` and asks for the rest, guarded by the
version (ETag, Last-Modified or object generation) that they belong to. :func:`upload` and :func:`download`
move whole folders, which exist for their readers from the moment their manifest does.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from recsys import google_storage, http_storage, local_storage, object_storage, s3_storage
from recsys.local_storage import SCHEMES, WRITABLE, local_path
from recsys.object_storage import Held
from recsys.step import UserError
from recsys.transfer import (
    CHUNK,
    AccessError,
    Part,
    Progress,
    one_line,
    parallel,
    persist,
    require_space,
    shown,
)

T = TypeVar("T")

OBJECT_STORES = (google_storage, s3_storage)


def file_name(address: str) -> str:
    """The last part of an address, without query and escapes (``.../ml-20m.zip?x=1`` -> ``ml-20m.zip``)."""
    name = PurePosixPath(unquote(urlsplit(address).path)).name if "://" in address else Path(address).name
    return name or "download"


def obtain(address: str, folder: Path) -> Path:
    """A local file with the content of ``address``: read in place if local, else fetched into ``folder``."""
    path = local_path(address)
    if path is None:
        path = folder / file_name(address)
        fetch(address, path)
    if not path.is_file():
        raise UserError(f"{shown(address)}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{address}: no permission to read this file")
    return path


def is_remote(address: str) -> bool:
    """Whether the address is not one of this machine's files."""
    return local_path(address) is None


def fetch(
    address: str,
    path: Path,
    login: tuple[str, str] | None = None,
    expect: tuple[int, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Brings a file to ``path``; resumes what an earlier attempt left, even one of a dead process.

    ``path`` appears only when it is whole. A changed or non-resumable source starts over. Two processes that
    fetch to the same path at once would be in each other's way: let each have its own.

    Args:
        login: user and password for ``http(s)://``; a host that it redirects to does not see them.
        expect: bytes and SHA-256 (hex) that the file must have.
        progress: counts the bytes, where they are of several files.
    Raises:
        UserError: no such file, no permission, no disk space, other bytes than expected, or ``ATTEMPTS``
            failures in a row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    store = _store(address)
    if store in OBJECT_STORES:
        known = Held(expect[0], ("sha256", expect[1])) if expect else None
        return object_storage.fetch(store, address, path, known, progress)
    part = Part(address, path)
    if store is local_storage:
        local_storage.upload(str(part.data), obtain(address, path.parent))
    else:
        persist(address, lambda: http_storage.fetch(part, address, login), lambda: part.size)
    if expect and (part.size, digest(part.data, "sha256")) != expect:
        part.forget()
        raise UserError(f"{shown(address)}: holds other bytes than were published there; publish it again")
    part.finish()
    if progress:
        progress.advance(path.stat().st_size)


def read_if_present(address: str, hidden: bool = False) -> bytes | None:
    """The content of a small file, or ``None`` if there is none.

    Args:
        hidden: also ``None`` where we may not see whether there is one (as it always is for ``http(s)://``).
    """
    try:
        return persist(address, lambda: _store(address).read(address))
    except AccessError:
        if hidden:
            return None
        raise


def list_folder(address: str) -> list[str]:
    """Addresses of the files directly in a folder, sorted by name."""
    return persist(address, lambda: _store(address, WRITABLE).list_folder(address))


def write(address: str, content: bytes, only_if_absent: bool = False) -> bool:
    """Writes a small file, whole or not at all.

    Args:
        only_if_absent: of many who write at once, one wins.
    Returns:
        False if it was there already (``only_if_absent``).
    """
    attempts = 0

    def attempt() -> bool:
        nonlocal attempts
        attempts += 1
        return _store(address, WRITABLE).write(address, content, only_if_absent)

    written = persist(address, attempt)
    # An attempt that seemed to fail may have arrived: then the file that was there already is ours.
    return written or (attempts > 1 and read_if_present(address) == content)


def put(path: Path, address: str) -> None:
    """Writes one file, perhaps a large one, whole or not at all."""
    _store(address, WRITABLE).upload(address, path)


def upload(folder: Path, address: str, manifest: str = "manifest.json") -> dict[str, Any]:
    """Publishes the files of a local folder, several at a time.

    The manifest, written last, is what makes the folder published: of an upload that was broken off nothing
    shows, and the next one completes it.

    Args:
        address: a folder, local or of an object store; files there that ``folder`` has no equal of stay.
    Returns:
        The manifest: ``{"files": {name relative to the folder: {"bytes": ..., "sha256": hex digest}}}``.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    paths.pop(manifest, None)
    if not paths:
        raise UserError(f"{folder}: holds no files to publish")
    sizes = {name: path.stat().st_size for name, path in sorted(paths.items())}
    there = _join(address, manifest)
    store = _store(there, WRITABLE)
    if read_if_present(there) is not None:  # what it tells would be untrue from the first file on
        persist(there, lambda: store.remove(there))

    with Progress(f"upload of {len(sizes)} files", sum(sizes.values())) as progress:

        def send(name: str) -> str:
            with ThreadPoolExecutor(1) as beside:  # a large file takes a while to hash
                sha256 = beside.submit(digest, paths[name], "sha256") if sizes[name] > CHUNK else None
                store.upload(_join(address, name), paths[name])
                progress.advance(sizes[name])
                return sha256.result() if sha256 else digest(paths[name], "sha256")

        digests = _each(send, sizes)
    content = {"files": {name: {"bytes": sizes[name], "sha256": digests[name]} for name in sizes}}
    write(there, json.dumps(content, indent=1).encode())
    return content


def download(
    address: str, folder: Path, names: Iterable[str] | None = None, manifest: str = "manifest.json"
) -> dict[str, Any]:
    """Brings a published folder here, several files at a time, each verified; right ones that are here stay.

    Args:
        names: only these files.
    Returns:
        The manifest.
    Raises:
        UserError: nothing (whole) is published there, or it lacks a name.
    """
    content = published(address, manifest)
    files = content["files"]
    chosen = sorted(files) if names is None else list(names)
    for name in chosen:
        if name not in files:
            raise UserError(f"{shown(address)}: holds no {name!r}; it holds {', '.join(sorted(files)[:10])}")
    sizes = {name: files[name]["bytes"] for name in chosen}
    folder.mkdir(parents=True, exist_ok=True)
    missing = sum(size for name, size in sizes.items() if not (folder / name).is_file())
    require_space(folder, missing, f"downloading {shown(address)}")
    with Progress(f"download of {len(sizes)} files", sum(sizes.values())) as progress:

        def bring(name: str) -> None:
            path, expect = folder / name, (sizes[name], files[name]["sha256"])
            if path.is_file():
                if (path.stat().st_size, digest(path, "sha256")) == expect:
                    return progress.advance(sizes[name])
                path.unlink()
            fetch(_join(address, name), path, expect=expect, progress=progress)

        _each(bring, sizes)
    return content


def published(address: str, manifest: str = "manifest.json") -> dict[str, Any]:
    """The manifest of a published folder, checked: its names stay inside the folder."""
    there = _join(address, manifest)
    text = read_if_present(there)
    if text is None:
        raise UserError(f"{shown(address)}: nothing is published there (no {manifest}); publish it first")
    try:
        content = json.loads(text)
        for name, file in content["files"].items():
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or len(file["sha256"]) != 64:
                raise ValueError(name)
            file["bytes"] = int(file["bytes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{shown(there)}: not a manifest of published files ({one_line(error)})") from None
    return content


def _each(work: Callable[[str], T], sizes: Mapping[str, int]) -> dict[str, T]:
    """``work`` of every file: many small ones at a time, two of those that use several connections each."""
    small = [name for name, size in sizes.items() if size <= CHUNK]
    large = [name for name, size in sizes.items() if size > CHUNK]
    return dict(zip(small + large, parallel(work, small) + parallel(work, large, threads=2), strict=True))


def _join(address: str, name: str) -> str:
    return f"{address.rstrip('/')}/{name}"


def _store(address: str, allowed: str = SCHEMES) -> Any:
    """The module that reads and writes addresses like this one."""
    if local_path(address) is not None:
        return local_storage
    if not address.startswith(("http://", "https://")):
        return google_storage if address.startswith("gs://") else s3_storage
    if allowed != SCHEMES:
        raise UserError(f"{shown(address)}: a web address can only be read; allowed here: {allowed}")
    return http_storage


def digest(path: Path, algorithm: str) -> str:
    """Hex digest (``md5`` or ``sha256``) of a file."""
    # Not hashlib.file_digest, which is of Python 3.11: the image with RAPIDS 23.08 has 3.10.
    digester = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digester.update(block)
    return digester.hexdigest()


def published_md5(address: str) -> str | None:
    """The MD5 (hex) in the ``.md5`` file beside ``address``, or ``None`` where there is no such file.

    Understands ``md5sum``'s lines, BSD's ``MD5 (name) = hash`` and a bare hash.
    """
    if urlsplit(address).query:
        return None  # a signed URL is good for one file
    content = read_if_present(address + ".md5", hidden=True)
    if content is None:
        return None
    lines = content.decode("utf-8", errors="replace").splitlines()
    # Where the file lists several archives, the line that names ours.
    lines.sort(key=lambda line: file_name(address) not in line)
    for line in lines:
        if match := re.search(r"(?<![0-9a-fA-F])[0-9a-fA-F]{32}(?![0-9a-fA-F])", line):
            return match.group().lower()
    raise UserError(f"{address}.md5: holds no MD5 (32 hexadecimal digits); mend or remove that file")
