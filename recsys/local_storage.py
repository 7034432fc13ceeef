"""Local paths and ``file://`` for :mod:`recsys.storage`, with the functions of the object stores."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from recsys.step import UserError
from recsys.transfer import disk_errors

WRITABLE = "a local path, file://, gs://, s3:// or minio://"
SCHEMES = f"{WRITABLE}; http:// and https:// to read"


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
    if parts.scheme in ("http", "https", "gs", "s3", "minio") and parts.netloc:
        return None
    raise UserError(f"{address}: not an address of a kind that is known; allowed: {SCHEMES}")


def here(address: str) -> Path:
    path = local_path(address)
    assert path is not None, "not a local address"
    return path


def read(address: str) -> bytes | None:
    path = here(address)
    return path.read_bytes() if path.is_file() else None


def list_folder(address: str) -> list[str]:
    path = here(address)
    return sorted(str(entry) for entry in path.iterdir() if entry.is_file()) if path.is_dir() else []


def write(address: str, content: bytes, only_if_absent: bool) -> bool:
    # A link, unlike a rename, fails where there is a file of that name.
    name = os.link if only_if_absent else os.replace
    return _place(here(address), lambda temporary: temporary.write_bytes(content), name)


def upload(address: str, path: Path) -> None:
    _place(here(address), lambda temporary: shutil.copyfile(path, temporary))


def remove(address: str) -> None:
    here(address).unlink(missing_ok=True)


def _place(
    path: Path, fill: Callable[[Path], object], name: Callable[[Path, Path], object] = os.replace
) -> bool:
    """Fills a temporary file, then gives it its name; False where ``name`` finds that one taken."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with disk_errors(path):
            fill(temporary)
            name(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True
