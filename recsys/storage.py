"""Bytes from elsewhere: local paths, ``file://``, ``http(s)://`` and ``gs://`` addresses.

:func:`fetch` downloads one file so that a broken connection, a killed process or an impatient user costs
only the bytes that had not arrived: it keeps them in ``<path>.part`` and asks for the rest, guarded by the
version (ETag, Last-Modified or object generation) that they belong to.
"""

import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from recsys import google_storage, http_storage
from recsys.step import UserError
from recsys.transfer import Part, persist

SCHEMES = "a local path, file://, http://, https:// or gs://"


def local_path(address: str) -> Path | None:
    """The path of a local address (plain or ``file://``), ``None`` for a remote one.

    Raises:
        UserError: the scheme is not one that this project reads.
    """
    parts = urlsplit(address)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    if "://" not in address:
        return Path(address).expanduser()
    if parts.scheme in ("http", "https", "gs") and parts.netloc:
        return None
    raise UserError(f"{address}: not an address that can be read; allowed: {SCHEMES}")


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
        raise UserError(f"{address}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{address}: no permission to read this file")
    return path


def fetch(address: str, path: Path, login: tuple[str, str] | None = None) -> None:
    """Downloads ``address`` to ``path``; resumes what an earlier attempt left, even one of a dead process.

    ``path`` appears only when it is whole. A changed or non-resumable source starts over.

    Args:
        address: ``http(s)://`` or ``gs://``.
        login: user and password for ``http(s)://``; a host that it redirects to does not see them.
    Raises:
        UserError: no such file, no permission, no disk space, or ``ATTEMPTS`` failures in a row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Part(address, path)
    on_google = address.startswith("gs://")
    persist(
        address,
        lambda: google_storage.fetch(part) if on_google else http_storage.fetch(part, login),
        lambda: part.size,
    )
    part.finish()


def read_if_present(address: str) -> bytes | None:
    """The content of a small file, or ``None`` if there is none (or none that we may see)."""
    path = local_path(address)
    if path is not None:
        return path.read_bytes() if path.is_file() else None
    read = google_storage.read if address.startswith("gs://") else http_storage.read
    return persist(address, lambda: read(address))


def list_folder(address: str) -> list[str]:
    """Addresses of the files directly in a local folder or under ``gs://bucket/folder/``, sorted by name."""
    path = local_path(address)
    if path is not None:
        return sorted(str(entry) for entry in path.iterdir() if entry.is_file())
    return persist(address, lambda: google_storage.list_folder(address))


def digest(path: Path, algorithm: str) -> str:
    """Hex digest (``md5`` or ``sha256``) of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def published_md5(address: str) -> str | None:
    """The MD5 (hex) in the ``.md5`` file beside ``address``, or ``None`` where there is no such file.

    Understands ``md5sum``'s lines, BSD's ``MD5 (name) = hash`` and a bare hash.
    """
    if urlsplit(address).query:
        return None  # a signed URL is good for one file
    content = read_if_present(address + ".md5")
    if content is None:
        return None
    lines = content.decode("utf-8", errors="replace").splitlines()
    # Where the file lists several archives, the line that names ours.
    lines.sort(key=lambda line: file_name(address) not in line)
    for line in lines:
        if match := re.search(r"(?<![0-9a-fA-F])[0-9a-fA-F]{32}(?![0-9a-fA-F])", line):
            return match.group().lower()
    raise UserError(f"{address}.md5: holds no MD5 (32 hexadecimal digits); mend or remove that file")
