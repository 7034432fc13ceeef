"""The dataset contract: a folder with ``feature_spec.yaml`` in it.

The file has four sections, after the feature specification of NVIDIA's NCF-PyTorch and Wide & Deep
references:

``feature_spec``
    feature name to its properties: ``dtype``, ``cardinality`` (ids are 0 .. cardinality-1),
    ``max_hotness`` (longest list of a multi-hot feature), ``embedding_size``.
``source_spec``
    mapping name (``train``, ``test``, ...) to chunks. A chunk is ``type``, ``features`` (columns, in file
    order for headerless csv) and ``files`` (rows of the first file, then of the second, ...): paths relative
    to the YAML or absolute URIs. The chunks of one mapping hold different columns of the same rows.
``channel_spec``
    channel to the features that fill it; the list of channels is fixed (:data:`CHANNELS`).
``metadata``
    anything else: how the data was split, who made it.

Everything is checked at this boundary. A fault is one line that names file, feature, rule and what is allowed.
"""

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
import yaml

from recsys.step import UserError, atomic_write

FILE_NAME = "feature_spec.yaml"
SECTIONS = ("feature_spec", "source_spec", "channel_spec", "metadata")
CHANNELS = (
    "user",
    "item",
    "label",
    "numerical",
    "onehot_categorical",
    "multihot_categorical",
    "group",
    "timestamp",
)
CATEGORICAL_CHANNELS = ("user", "item", "onehot_categorical", "multihot_categorical")
PROPERTIES = ("dtype", "cardinality", "max_hotness", "embedding_size")
DTYPES = ("int8", "int16", "int32", "int64", "float32", "float64")
CHUNK_TYPES = ("parquet", "csv")


@dataclass(frozen=True)
class Chunk:
    """Columns ``features`` of one mapping, stored as ``type`` in ``files`` (rows in file order)."""

    type: str
    features: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class FeatureSpec:
    """A dataset: its features, where their values are, and what they are for.

    Args:
        folder: what relative file names are relative to.
    """

    folder: Path
    feature_spec: Mapping[str, Mapping[str, Any]]
    source_spec: Mapping[str, tuple[Chunk, ...]]
    channel_spec: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "FeatureSpec":
        """Reads and checks a spec.

        Args:
            path: the YAML file, or the dataset folder that holds ``feature_spec.yaml``.
        Raises:
            UserError: the file is missing, is not YAML, or breaks a rule of the contract.
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; a dataset is a folder with a {FILE_NAME}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
        return _parse(path, content)

    def write(self, folder: str | Path | None = None) -> Path:
        """Checks the spec and writes it as ``folder/feature_spec.yaml``; returns that path."""
        path = Path(folder or self.folder) / FILE_NAME
        content = self.as_dict()
        _parse(path, content)
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
        """
        for channel in channels:
            features = self.channel_spec.get(channel, ())
            if len(features) != 1:
                filled = ", ".join(f"{name}: {list(value)}" for name, value in self.channel_spec.items())
                raise UserError(
                    f"{self.folder / FILE_NAME}: model {reader} needs exactly one feature in channel "
                    f"{channel!r}, this dataset has {len(features)} (channels: {filled or 'none'})"
                )
        for mapping in mappings:
            if mapping not in self.source_spec:
                raise UserError(
                    f"{self.folder / FILE_NAME}: model {reader} needs mapping {mapping!r} in source_spec, this "
                    f"dataset has {', '.join(self.source_spec) or 'none'}; was it prepared for another model?"
                )

    def feature(self, channel: str) -> str:
        """The one feature of a channel (see :meth:`require`)."""
        return self.channel_spec[channel][0]

    def cardinality(self, channel: str) -> int:
        """Number of ids of the channel's feature."""
        return int(self.feature_spec[self.feature(channel)]["cardinality"])

    def columns(self, mapping: str, features: Iterable[str]) -> dict[str, np.ndarray]:
        """Reads whole columns of a mapping and checks their values.

        Returns:
            feature name to a NumPy array of shape (rows,), with the dtype that the spec declares.
        Raises:
            UserError: a file or column is missing, a dtype differs, a value is null or NaN, an id lies
                outside its cardinality, or chunks differ in length.
        """
        wanted = list(features)
        columns: dict[str, np.ndarray] = {}
        lengths: dict[str, int] = {}
        for chunk in self.source_spec[mapping]:
            here = [name for name in wanted if name in chunk.features]
            table = self._read_chunk(mapping, chunk, here)
            lengths[", ".join(chunk.files)] = table.num_rows
            for name in here:
                columns[name] = self._checked(mapping, chunk, name, table.column(name))
        if len(set(lengths.values())) > 1:
            rows = "; ".join(f"{files}: {count} rows" for files, count in lengths.items())
            raise UserError(
                f"{self.folder / FILE_NAME}: chunks of mapping {mapping!r} differ in length: {rows}"
            )
        missing = [name for name in wanted if name not in columns]
        if missing:
            raise UserError(
                f"{self.folder / FILE_NAME}: mapping {mapping!r} has no feature {', '.join(missing)}"
            )
        return columns

    def digest(self) -> str:
        """SHA-256 over the spec and the bytes of its local files: what a checkpoint was trained on."""
        sha = hashlib.sha256(yaml.safe_dump(self.as_dict()).encode())
        for name in sorted(
            {file for chunks in self.source_spec.values() for c in chunks for file in c.files}
        ):
            sha.update(name.encode())
            if _is_local(name):
                with open(self.folder / _local_path(name), "rb") as stream:
                    while block := stream.read(1 << 20):
                        sha.update(block)
        return sha.hexdigest()

    def _read_chunk(self, mapping: str, chunk: Chunk, features: list[str]) -> pa.Table:
        tables = []
        for name in chunk.files:
            try:
                filesystem, path = _open(self.folder, name)
                if chunk.type == "parquet":
                    present = pq.read_schema(path, filesystem=filesystem).names
                    absent = [feature for feature in chunk.features if feature not in present]
                    if absent:
                        raise UserError(
                            f"{name}: mapping {mapping!r} promises column {absent[0]!r}, the file has {present}"
                        )
                    # A chunk none of whose columns is wanted still has a row count to compare.
                    tables.append(
                        pq.read_table(path, columns=features or [chunk.features[0]], filesystem=filesystem)
                    )
                else:
                    with filesystem.open_input_stream(path) as stream:
                        tables.append(
                            pa.csv.read_csv(stream, pa.csv.ReadOptions(column_names=list(chunk.features)))
                        )
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(
                    f"{self.folder / name}: cannot be read as {chunk.type}: {_line(error)}"
                ) from None
        try:
            return pa.concat_tables(tables)
        except pa.ArrowInvalid as error:
            raise UserError(f"files of mapping {mapping!r} differ in their columns: {_line(error)}") from None

    def _checked(self, mapping: str, chunk: Chunk, name: str, column: pa.ChunkedArray) -> np.ndarray:
        where = f"{self.folder / chunk.files[0]}: feature {name!r} of mapping {mapping!r}"
        properties = self.feature_spec[name]
        declared = properties.get("dtype")
        # Text has no types: a csv column may be narrower than the spec says, but not a float for an integer.
        same = str(column.type) == _arrow_name(declared or "")
        widens = chunk.type == "csv" and not (pa.types.is_floating(column.type) and "int" in (declared or ""))
        if declared and not same and not widens:
            raise UserError(f"{where}: the file holds {column.type}, the spec says dtype {declared}")
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise UserError(f"{where}: the file holds {column.type}; allowed: {', '.join(DTYPES)}")
        if column.null_count:
            raise UserError(f"{where}: {column.null_count} missing values; fill or drop them")
        values = column.to_numpy()
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserError(f"{where}: {int((~np.isfinite(values)).sum())} values are NaN or infinite")
        cardinality = properties.get("cardinality")
        if cardinality is not None and len(values):
            low, high = pc.min_max(column).as_py().values()
            if low < 0 or high >= cardinality:
                raise UserError(
                    f"{where}: ids run from {low} to {high}, cardinality {cardinality} allows 0 .. {cardinality - 1}"
                )
        return np.ascontiguousarray(values, dtype=declared or values.dtype)


def _parse(path: Path, content: Any) -> FeatureSpec:
    """Checks every structural rule of the contract; ``path`` is for messages and for relative files."""

    def fail(text: str) -> UserError:
        return UserError(f"{path}: {text}")

    if not isinstance(content, dict):
        raise fail(f"must be a mapping with the sections {', '.join(SECTIONS)}")
    for key in content:
        if key not in SECTIONS:
            raise fail(f"unknown section {key!r}{_close(key, SECTIONS)}; allowed: {', '.join(SECTIONS)}")
    for key in SECTIONS[:3]:
        if not isinstance(content.get(key), dict) or not content[key]:
            raise fail(f"section {key!r} is missing, empty or not a mapping")
    features = {name: _parse_feature(fail, name, value) for name, value in content["feature_spec"].items()}
    sources = {
        name: _parse_mapping(fail, path.parent, name, chunks, features)
        for name, chunks in content["source_spec"].items()
    }
    channels = {}
    for channel, names in content["channel_spec"].items():
        if channel not in CHANNELS:
            raise fail(
                f"unknown channel {channel!r}{_close(channel, CHANNELS)}; allowed: {', '.join(CHANNELS)}"
            )
        if not isinstance(names, list):
            raise fail(f"channel {channel!r} must be a list of features")
        for name in names:
            _parse_channel_feature(fail, channel, name, features)
        channels[channel] = tuple(names)
    metadata = content.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise fail("section 'metadata' must be a mapping")
    return FeatureSpec(path.parent, features, sources, channels, metadata)


def _parse_feature(fail, name: str, properties: Any) -> dict[str, Any]:
    properties = {} if properties is None else properties
    if not isinstance(properties, dict):
        raise fail(f"feature {name!r}: its properties must be a mapping; allowed: {', '.join(PROPERTIES)}")
    for key, value in properties.items():
        if key not in PROPERTIES:
            raise fail(f"feature {name!r}: unknown property {key!r}; allowed: {', '.join(PROPERTIES)}")
        if key == "dtype":
            if value not in DTYPES:
                raise fail(f"feature {name!r}: dtype {value!r} is not allowed; allowed: {', '.join(DTYPES)}")
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise fail(f"feature {name!r}: {key} must be a whole number of at least 1, not {value!r}")
    return properties


def _parse_mapping(fail, folder: Path, mapping: str, chunks: Any, features: Mapping) -> tuple[Chunk, ...]:
    if not isinstance(chunks, list) or not chunks:
        raise fail(f"mapping {mapping!r} must be a list of chunks, each with type, features and files")
    parsed, seen = [], set()
    for chunk in chunks:
        if not isinstance(chunk, dict) or set(chunk) != {"type", "features", "files"}:
            keys = sorted(chunk) if isinstance(chunk, dict) else chunk
            raise fail(f"mapping {mapping!r}: a chunk has exactly the keys type, features, files, not {keys}")
        if chunk["type"] not in CHUNK_TYPES:
            raise fail(
                f"mapping {mapping!r}: chunk type {chunk['type']!r}; allowed: {', '.join(CHUNK_TYPES)}"
            )
        for key in ("features", "files"):
            if not isinstance(chunk[key], list) or not chunk[key]:
                raise fail(f"mapping {mapping!r}: {key} of a chunk must be a list that is not empty")
        for name in chunk["features"]:
            if name not in features:
                raise fail(
                    f"mapping {mapping!r}: feature {name!r} is not in feature_spec{_close(name, features)}"
                )
            if name in seen:
                raise fail(f"mapping {mapping!r}: feature {name!r} is listed twice")
            seen.add(name)
        for name in chunk["files"]:
            if _is_local(str(name)) and not (folder / _local_path(str(name))).is_file():
                raise fail(
                    f"mapping {mapping!r}: file {name!r} does not exist (paths are relative to the YAML)"
                )
        parsed.append(Chunk(chunk["type"], tuple(chunk["features"]), tuple(map(str, chunk["files"]))))
    return tuple(parsed)


def _parse_channel_feature(fail, channel: str, name: str, features: Mapping) -> None:
    if name not in features:
        raise fail(f"channel {channel!r}: feature {name!r} is not in feature_spec{_close(name, features)}")
    needed = ["cardinality"] if channel in CATEGORICAL_CHANNELS else []
    needed += ["max_hotness"] if channel == "multihot_categorical" else []
    for key in needed:
        if key not in features[name]:
            raise fail(f"feature {name!r} of channel {channel!r} needs {key} in feature_spec")


def _close(name: Any, allowed: Iterable[str]) -> str:
    match = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _is_local(name: str) -> bool:
    return urlparse(name).scheme in ("", "file")


def _local_path(name: str) -> str:
    return urlparse(name).path if name.startswith("file:") else name


def _open(folder: Path, name: str) -> tuple[pa.fs.FileSystem, str]:
    if _is_local(name):
        return pa.fs.LocalFileSystem(), str(folder / _local_path(name))
    return pa.fs.FileSystem.from_uri(name)


def _arrow_name(dtype: str) -> str:
    return {"float32": "float", "float64": "double"}.get(dtype, dtype)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
