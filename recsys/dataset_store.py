"""Where the files of a dataset are: beside its spec, or in a store, from which they are fetched when read.

The preprocess step publishes a dataset as ``<store>/<key>/feature_spec.yaml``. Its ``source_spec`` names
files by absolute URI, and its metadata hold a section ``dataset_store``:

``spec``
    the URI of that YAML file.
``address``
    the folder in which the files are.
``files``
    name in that folder to ``bytes``, ``sha256`` and, of Parquet, ``row_groups`` (rows of each).
``summary``
    what the dashboard shows of the dataset.

Such a file is fetched once per machine, into the folder ``RECSYS_CACHE`` (default: one below the temporary
folder) under the name of its SHA-256, which every process compares before it reads.
"""

import contextlib
import fcntl
import functools
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recsys.feature_spec_rules import local_path
from recsys.step import UserError

SECTION = "dataset_store"


class Files:
    """The files that a spec names.

    Args:
        folder: what relative names are relative to: a path, or the URI of a folder.
        metadata: of the spec.
    Raises:
        UserError: the section ``dataset_store`` is not what the preprocess step writes.
    """

    def __init__(self, folder: Path | str, metadata: Mapping[str, Any]):
        self.folder = folder
        section = metadata.get(SECTION, {"address": "", "files": {}})
        try:
            self._base = f"{section['address']}/"
            self._stored = {
                self._base + name: (entry["sha256"], entry.get("row_groups"))
                for name, entry in section["files"].items()
            }
        except (AttributeError, KeyError, TypeError):
            raise UserError(
                f"{folder}: metadata {SECTION} is not as preprocess writes it; take its feature_spec.yaml"
            ) from None

    def address(self, file: str) -> str:
        """Where a file is, for messages and for a client of its store."""
        if file in self._stored:
            return file
        beside = "://" not in file and isinstance(self.folder, str)
        return f"{self.folder}/{file}" if beside else str(local_path(self.folder, file) or file)

    def name(self, file: str) -> str:
        """A file's name in its folder, wherever that is."""
        return file.removeprefix(self._base) if file in self._stored else file

    def local(self, file: str) -> Path | None:
        """A path with the content of a file; ``None`` for an object that the section does not list.

        Raises:
            UserError: the file cannot be fetched, or its SHA-256 is not the one that was published.
        """
        path = local_path(self.folder, file)
        if file not in self._stored:
            return path
        sha256, _ = self._stored[file]
        return _verified(path, sha256) if path else _fetched(file, sha256)

    def sha256(self, file: str) -> str | None:
        """What was published of a file, without reading it."""
        return self._stored.get(file, (None, None))[0]

    def row_groups(self, file: str) -> list[int] | None:
        """Rows of each row group, without reading the file; ``None`` where that is not published."""
        return self._stored.get(file, (None, None))[1]


def published(content: Mapping[str, Any]) -> str:
    """The URI that the content of a ``feature_spec.yaml`` is published at; empty for none."""
    section = (content.get("metadata") or {}).get(SECTION) or {}
    chunks = [chunk for chunks in content["source_spec"].values() for chunk in chunks]
    inside = all(file.startswith(f"{section.get('address')}/") for chunk in chunks for file in chunk["files"])
    return section.get("spec", "") if inside else ""


def cache_folder() -> Path:
    """Where fetched files are kept."""
    default = Path(tempfile.gettempdir()) / f"recsys-cache-{os.getuid()}"
    return Path(os.environ.get("RECSYS_CACHE") or default)


@functools.cache  # once per process: the content of a file in use does not change
def _verified(path: Path, sha256: str) -> Path:
    from recsys import storage

    try:
        found = storage.digest(path, "sha256")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if found != sha256:
        raise _changed(str(path), found, sha256)
    return path


@functools.cache
def _fetched(address: str, sha256: str) -> Path:
    from recsys import storage  # and its clients, which only a store needs

    folder = cache_folder()
    path = folder / sha256
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder / f"{sha256}.lock"):  # ranks of one machine fetch a file once
            if path.exists() and storage.digest(path, "sha256") == sha256:
                return path
            path.unlink(missing_ok=True)
            storage.fetch(address, path)
            found = storage.digest(path, "sha256")
            if found != sha256:
                path.unlink()
                raise _changed(address, found, sha256)
    except OSError as error:
        raise UserError(f"RECSYS_CACHE {folder}: {error.strerror or error}") from None
    return path


def _changed(address: str, found: str, wanted: str) -> UserError:
    return UserError(
        f"{address}: its SHA-256 is {found[:12]}..., but {wanted[:12]}... was published: it has changed; "
        "delete the dataset's folder in the store and run preprocess again"
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
