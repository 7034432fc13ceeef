"""Zip, tar and gzip files that somebody sent: their regular files, and no way out of the target folder."""

import contextlib
import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from recsys.step import UserError
from recsys.transfer import one_line, require_space


class Member(NamedTuple):
    """A file in an archive: its size in bytes, and what opens it."""

    size: int
    opened: Callable[[], Any]

    def write(self, target: Path, address: str) -> None:
        """Unpacks it to ``target``, if the disk has room for it."""
        require_space(target.parent, self.size, f"unpacking {address}")
        with self.opened() as stream, open(target, "wb") as sink:
            shutil.copyfileobj(stream, sink, 1 << 20)


@contextlib.contextmanager
def members(path: Path, address: str) -> Iterator[dict[str, Member]]:
    """The files of a zip or tar archive by their path in it, in its order.

    Args:
        address: where the archive is from, for messages.
    Raises:
        UserError: no archive, damaged, or it holds a link or a path that leads out of it.
    """
    entries: list[tuple[str, bool, Member]] = []
    with errors(address), contextlib.ExitStack() as stack:
        if zipfile.is_zipfile(path):
            zipped = stack.enter_context(zipfile.ZipFile(path))
            for entry in zipped.infolist():
                regular = entry.is_dir() or not stat.S_ISLNK(entry.external_attr >> 16)
                member = Member(entry.file_size, partial(zipped.open, entry))
                entries.append((entry.filename.replace("\\", "/"), regular, member))
        elif tarfile.is_tarfile(path):
            tarred = stack.enter_context(tarfile.open(path))
            for info in tarred:
                member = Member(info.size, partial(tarred.extractfile, info))
                entries.append((info.name + "/" * info.isdir(), info.isreg() or info.isdir(), member))
        else:
            raise UserError(f"{address}: not a whole zip or tar archive; get it again")
        for name, regular, _ in entries:
            if not regular or name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise UserError(f"{address}: entry {name!r} is a link or points outside the archive")
        yield {name: member for name, _, member in entries if not name.endswith("/")}


@contextlib.contextmanager
def errors(address: str) -> Iterator[None]:
    """Says in one line what the libraries say in many ways."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{address}: damaged ({one_line(error)}); get it again") from None
    except RuntimeError as error:  # encrypted, or compressed in a way that Python does not know
        raise UserError(f"{address}: cannot be unpacked: {one_line(error)}") from None
