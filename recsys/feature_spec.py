"""The dataset contract: a folder with ``feature_spec.yaml`` in it.

The file has four sections, after the feature specification of NVIDIA's NCF-PyTorch and Wide & Deep
references:

``feature_spec``
    feature name to its properties: ``dtype``, ``cardinality`` (ids are 0 .. cardinality-1; before transcoding
    perhaps ``auto``), ``max_hotness`` (longest list of a multi-hot feature), ``embedding_size``.
``source_spec``
    mapping name (``train``, ``test``, ...) to chunks. A chunk is ``type``, ``features`` (columns, in file
    order for headerless csv) and ``files`` (rows of the first file, then of the second, ...): paths relative
    to the YAML or absolute URIs (``file://``, ``gs://``, ``s3://``, ``minio://``). The chunks of one mapping
    hold different columns of the same rows.
``channel_spec``
    channel to the features that fill it; the channels are fixed (``CHANNELS`` in
    :mod:`recsys.feature_spec_rules`).
``metadata``
    anything else: how the data was split, who made it.

Everything is checked at this boundary: the structure by :meth:`FeatureSpec.read`, the values as columns are
read. A fault is one line that names file, feature, rule and what is allowed.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recsys.chunks import read_chunk
from recsys.dataset_store import SECTION, Files
from recsys.feature_spec_rules import AUTO, Chunk, Sections, parse
from recsys.step import UserError, atomic_write

FILE_NAME = "feature_spec.yaml"


@dataclass(frozen=True)
class FeatureSpec:
    """A dataset: its features, where their values are, and what they are for.

    Args:
        folder: what relative file names are relative to; text is a URI.
    """

    folder: Path | str
    feature_spec: Mapping[str, Mapping[str, Any]]
    source_spec: Mapping[str, tuple[Chunk, ...]]
    channel_spec: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path, with_files: bool = True) -> "FeatureSpec":
        """Reads and checks a spec.

        Args:
            path: the YAML file, or the dataset folder that holds ``feature_spec.yaml``; or the URI of one.
            with_files: the local files in ``source_spec`` must exist.
        Raises:
            UserError: the file is missing, is not YAML, or breaks a rule of the contract.
        """
        remote = isinstance(path, str) and "://" in path
        file = f"{path}".removesuffix(f"/{FILE_NAME}") + f"/{FILE_NAME}" if remote else _yaml_file(Path(path))
        try:
            content = yaml.safe_load(_text(file))
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; a dataset is a folder with a {FILE_NAME}") from None
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise UserError(f"{file}: not a YAML file: {' '.join(str(error).split())}") from None
        folder = file.parent if isinstance(file, Path) else file.rpartition("/")[0]
        return cls(folder, *_parsed(file, content, with_files))

    def write(self, folder: str | Path | None = None) -> Path:
        """Checks the spec and writes it as ``folder/feature_spec.yaml``; returns that path."""
        path = Path(folder or self.folder) / FILE_NAME
        content = self.as_dict()
        _parsed(path, content)
        atomic_write(path, yaml.safe_dump(content, sort_keys=False))
        return path

    def as_dict(self) -> dict[str, Any]:
        """The four sections as plain dicts and lists."""
        return {
            "feature_spec": {name: dict(properties) for name, properties in self.feature_spec.items()},
            "source_spec": {
                mapping: [
                    {"type": c.type, "features": list(c.features), "files": list(c.files)} for c in chunks
                ]
                for mapping, chunks in self.source_spec.items()
            },
            "channel_spec": {channel: list(features) for channel, features in self.channel_spec.items()},
            "metadata": dict(self.metadata),
        }

    def require(self, reader: str, channels: Iterable[str] = (), mappings: Iterable[str] = ()) -> None:
        """Fails unless every one of ``channels`` has exactly one feature and every mapping exists.

        Args:
            reader: who asks (a model's name), for the message.
        Raises:
            UserError: also where a cardinality is still ``auto``, which no model can be built from.
        """
        for name, properties in self.feature_spec.items():
            if properties.get("cardinality") == AUTO:
                raise UserError(
                    f"{self.path}: model {reader} needs a cardinality of feature {name!r}, not {AUTO!r}; "
                    "dataset=feature_spec and python -m recsys.transcode find it"
                )
        for channel in channels:
            self._one_feature(channel, f"model {reader} needs")
        for mapping in mappings:
            if mapping not in self.source_spec:
                raise UserError(
                    f"{self.path}: model {reader} needs mapping {mapping!r} in source_spec, this dataset "
                    f"has {', '.join(self.source_spec) or 'none'}; was it prepared for another model?"
                )

    def feature(self, channel: str) -> str:
        """The one feature of a channel (see :meth:`require`)."""
        return self._one_feature(channel, "there must be")

    def cardinality(self, channel: str) -> int:
        """Number of ids of the channel's feature."""
        return int(self.feature_spec[self.feature(channel)]["cardinality"])

    def columns(self, mapping: str, features: Iterable[str]) -> dict[str, np.ndarray]:
        """Reads whole columns of a mapping and checks their values.

        Returns:
            feature name to a NumPy array of shape (rows,), with the dtype that the spec declares; multi-hot
            features int32 of shape (rows, max_hotness), filled up with -1.
        Raises:
            UserError: a file or column is missing, a dtype differs, a value is null or NaN, an id lies
                outside its cardinality, or chunks differ in length.
        """
        wanted = list(features)
        columns: dict[str, np.ndarray] = {}
        lengths: dict[str, int] = {}
        try:
            for chunk in self._chunks(mapping, wanted):
                here = {name: self.feature_spec[name] for name in wanted if name in chunk.features}
                values, lengths[", ".join(chunk.files)] = read_chunk(chunk, self.files, here)
                columns.update(values)
        except UserError as error:
            raise UserError(f"{error} (mapping {mapping!r})") from None
        if len(set(lengths.values())) > 1:
            rows = "; ".join(f"{files}: {count} rows" for files, count in lengths.items())
            raise UserError(f"{self.path}: the chunks of mapping {mapping!r} differ in length: {rows}")
        return {name: columns[name] for name in wanted}

    def digest(self) -> str:
        """SHA-256 over the spec and the bytes of its files: what a checkpoint was trained on.

        It is the same in a store as beside the spec. An object that no ``dataset_store`` lists counts by its
        URI.
        """
        from recsys import storage  # and requests, which only this needs

        content = self.as_dict()
        content["metadata"].pop(SECTION, None)
        named: dict[str, str] = {}
        for chunk in (chunk for chunks in content["source_spec"].values() for chunk in chunks):
            named |= {self.files.name(file): file for file in chunk["files"]}
            chunk["files"] = [self.files.name(file) for file in chunk["files"]]
        sha = hashlib.sha256(yaml.safe_dump(content).encode())
        for name, file in sorted(named.items()):
            sha.update(name.encode())
            if published := self.files.sha256(file):
                sha.update(bytes.fromhex(published))
            elif path := self.files.local(file):
                sha.update(bytes.fromhex(storage.digest(path, "sha256")))
        return sha.hexdigest()

    @functools.cached_property
    def files(self) -> Files:
        """The files in ``source_spec``."""
        return Files(self.folder, self.metadata)

    @property
    def path(self) -> Path | str:
        """The YAML file."""
        return self.folder / FILE_NAME if isinstance(self.folder, Path) else f"{self.folder}/{FILE_NAME}"

    def _one_feature(self, channel: str, demand: str) -> str:
        features = self.channel_spec.get(channel, ())
        if len(features) != 1:
            filled = ", ".join(f"{name}: {list(value)}" for name, value in self.channel_spec.items())
            raise UserError(
                f"{self.path}: {demand} exactly one feature in channel {channel!r}, this dataset has "
                f"{len(features)} (channels: {filled})"
            )
        return features[0]

    def _chunks(self, mapping: str, wanted: list[str]) -> tuple[Chunk, ...]:
        if mapping not in self.source_spec:
            raise UserError(f"{self.path}: there is no such mapping; it has {', '.join(self.source_spec)}")
        present = [name for chunk in self.source_spec[mapping] for name in chunk.features]
        for name in wanted:
            if name not in present:
                raise UserError(f"{self.path}: there is no feature {name!r}; it has {', '.join(present)}")
        return self.source_spec[mapping]


def _yaml_file(path: Path) -> Path:
    return path / FILE_NAME if path.is_dir() else path


def _text(file: Path | str) -> str:
    """Raises FileNotFoundError."""
    if isinstance(file, Path):
        return file.read_text(encoding="utf-8")
    from recsys import storage

    content = storage.read_if_present(file)
    if content is None:
        raise FileNotFoundError(file)
    return content.decode()


def _parsed(path: Path | str, content: Any, with_files: bool = True) -> Sections:
    folder = path.parent if isinstance(path, Path) else path.rpartition("/")[0]
    try:
        return parse(folder if with_files else None, content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
