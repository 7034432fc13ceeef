"""Prepared datasets in a store: found by what they were made of, or published for the next run.

``<store>/<key>/feature_spec.yaml`` is a dataset's description, written last, when all files of
``<store>/<key>/<attempt>/`` are there; see :mod:`recsys.dataset_store`. Of two runs that publish at once, the
first wins and the other takes its dataset. What else lies in ``<key>`` is left by a run that lost or was
killed, and may be deleted.
"""

import ast
import dataclasses
import hashlib
import json
import logging
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from components.preprocess.prepared import Prepared
from recsys import storage
from recsys.dataset_store import SECTION
from recsys.feature_spec import FILE_NAME, FeatureSpec
from recsys.feature_spec_rules import Chunk
from recsys.raw_data import RawData
from recsys.step import UserError

log = logging.getLogger(__name__)
PAGE = "statistics.html"
ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("nvtabular", "numpy", "pandas", "pyarrow")  # which decide what the files hold


def key(raw: RawData, folder: Path, model: str, options: Mapping[str, Any], seed: int) -> str:
    """What a dataset is made of, hashed: raw data (wherever they came from), parameters, code, libraries."""
    about = dataclasses.asdict(raw)
    del about["source"]
    files = {name: storage.digest(folder / name, "sha256") for name in raw.files}
    sources = {str(path.relative_to(ROOT)): storage.digest(path, "sha256") for path in code()}
    made_of = [raw.kind, about, files, model, options, seed, sources, [_version(name) for name in LIBRARIES]]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def code() -> set[Path]:
    """The files of the preparation and those that they import at their head; others change no dataset."""
    found = {path for path in (ROOT / "components/preprocess").rglob("*.py") if path.name != "publication.py"}
    todo = list(found)
    while todo:
        for node in ast.parse(todo.pop().read_text()).body:
            if not isinstance(node, ast.ImportFrom):
                continue
            names = [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
            paths = {ROOT / f"{name.replace('.', '/')}.py" for name in names}
            new = {path for path in paths - found if path.is_file()}
            found |= new
            todo += new
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


class Publication:
    """The place of one dataset in a store.

    Args:
        address: ``<store>/<key>``, local or remote.
    """

    def __init__(self, address: str):
        path = storage.local_path(address)
        self.address = address if path is None else path.absolute().as_uri()
        self._gone: bytes | None = None  # a description whose files are

    def find(self) -> tuple[FeatureSpec, Prepared] | None:
        """The dataset, or ``None`` where there is none, or none with files.

        Raises:
            UserError: the store cannot be read, or holds something else under this name.
        """
        file = f"{self.address}/{FILE_NAME}"
        content = storage.read_if_present(file)
        if content is None:
            return None
        spec = FeatureSpec.read(file, with_files=False)
        section = spec.metadata.get(SECTION)
        if not section:
            raise UserError(f"{file}: was not written by the preprocess step; choose another dataset_store")
        page = storage.read_if_present(f"{section['address']}/{PAGE}")
        if page is None:  # say, by a rule of the bucket that deletes what is old
            log.info("%s names files that are gone", file)
            self._gone = content
            return None
        return spec, Prepared(section["summary"], page.decode())

    def check(self) -> None:
        """Fails before the work where its result could not be written."""
        try:
            storage.write(f"{self.address}/started", b"a run has begun to prepare this dataset\n")
        except OSError as error:  # of a local store
            raise UserError(f"--dataset_store: {self.address}: {error.strerror or error}") from None

    def publish(self, folder: Path, prepared: Prepared) -> None:
        """Uploads a prepared dataset, then makes it the one of this address unless another one is."""
        (folder / PAGE).write_text(prepared.page)
        attempt = f"{self.address}/{uuid.uuid4().hex[:12]}"
        files = storage.upload(folder, attempt)["files"]
        described = yaml.safe_dump(self._described(folder, attempt, files, prepared.summary), sort_keys=False)
        file = f"{self.address}/{FILE_NAME}"
        stale = self._gone is not None and storage.read_if_present(file) == self._gone
        if storage.write(file, described.encode(), only_if_absent=not stale):
            size = sum(entry["bytes"] for entry in files.values())
            log.info("published %s: %d files, %.1f MB", self.address, len(files), size / 1e6)
        else:
            log.info("%s was published by another run meanwhile; taking that dataset", self.address)

    def _described(
        self, folder: Path, attempt: str, files: Mapping[str, Any], summary: Mapping[str, Any]
    ) -> dict[str, Any]:
        spec = FeatureSpec.read(folder)
        entries = {name: dict(entry) for name, entry in files.items()}
        for chunk in (chunk for chunks in spec.source_spec.values() for chunk in chunks):
            for name in chunk.files:
                metadata = pq.read_metadata(folder / name)
                groups = range(metadata.num_row_groups)
                entries[name]["row_groups"] = [metadata.row_group(group).num_rows for group in groups]
        section = {
            "spec": f"{self.address}/{FILE_NAME}",
            "address": attempt,
            "summary": dict(summary),
            "files": entries,
        }
        sources = {
            mapping: tuple(
                Chunk(chunk.type, chunk.features, tuple(f"{attempt}/{name}" for name in chunk.files))
                for chunk in chunks
            )
            for mapping, chunks in spec.source_spec.items()
        }
        metadata = {**spec.metadata, SECTION: section}
        return dataclasses.replace(spec, source_spec=sources, metadata=metadata).as_dict()
