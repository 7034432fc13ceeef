"""The structural rules of ``feature_spec.yaml``: which sections, names and properties it may have."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from recsys.step import UserError

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
CHUNK_TYPES = ("parquet", "csv")
DTYPES = ("int8", "int16", "int32", "int64", "float32", "float64")
SCHEMES = ("file", "gs", "s3", "minio")
AUTO = "auto"  # a cardinality that is found while the dataset is transcoded
CHUNK_KEYS = ("type", "features", "files")


@dataclass(frozen=True)
class Chunk:
    """Columns ``features`` of one mapping, stored as ``type`` in ``files`` (rows in file order)."""

    type: str
    features: tuple[str, ...]
    files: tuple[str, ...]


class Sections(NamedTuple):
    """The four sections of a spec that keeps every rule."""

    feature_spec: dict[str, dict[str, Any]]
    source_spec: dict[str, tuple[Chunk, ...]]
    channel_spec: dict[str, tuple[str, ...]]
    metadata: dict[str, Any]


def local_path(folder: Path | str, file: str) -> Path | None:
    """The local path of a name in ``files``; None for an object store's URI, also that of ``folder``."""
    scheme, separator, path = file.partition("://")
    if not separator:
        return folder / file if isinstance(folder, Path) else None
    return Path(unquote(path)) if scheme == "file" else None


def parse(folder: Path | str | None, content: Any) -> Sections:
    """Checks the content of a ``feature_spec.yaml``.

    A user or item feature without a cardinality gets the cardinality ``auto``.

    Args:
        folder: what relative file names are relative to; local files must exist. ``None`` does not look.
        content: the parsed YAML.

    Raises:
        UserError: a rule is broken; the message names the place, the value and what is allowed.
    """
    _check_sections(content)
    features = {name: _parse_feature(name, value) for name, value in content["feature_spec"].items()}
    return Sections(
        features,
        {
            mapping: _parse_mapping(folder, mapping, chunks, features)
            for mapping, chunks in content["source_spec"].items()
        },
        {
            channel: _parse_channel(channel, names, features)
            for channel, names in content["channel_spec"].items()
        },
        content.get("metadata") or {},
    )


def _check_sections(content: Any) -> None:
    if not isinstance(content, dict):
        raise UserError(f"must be a mapping with the sections {', '.join(SECTIONS)}")
    for section in content:
        _check_allowed("section", section, SECTIONS)
    for section in SECTIONS[:3]:
        if not isinstance(content.get(section), dict) or not content[section]:
            raise UserError(f"section {section!r} is missing, empty or not a mapping")
    if not isinstance(content.get("metadata", {}), dict | None):
        raise UserError("section 'metadata' must be a mapping")


def _parse_feature(name: Any, properties: Any) -> dict[str, Any]:
    if not isinstance(name, str):
        raise UserError(f"feature {name!r}: its name must be text; write it in quotes")
    properties = {} if properties is None else properties
    if not isinstance(properties, dict):
        raise UserError(
            f"feature {name!r}: its properties must be a mapping; allowed: {', '.join(PROPERTIES)}"
        )
    for key, value in properties.items():
        _check_allowed(f"feature {name!r}: property", key, PROPERTIES)
        if key == "dtype":
            _check_allowed(f"feature {name!r}: dtype", value, DTYPES)
        elif (key, value) == ("cardinality", AUTO):
            continue
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            auto = f", or {AUTO!r} before transcoding," if key == "cardinality" else ""
            raise UserError(
                f"feature {name!r}: {key} must be a whole number of at least 1{auto} not {value!r}"
            )
    return dict(properties)


def _parse_mapping(
    folder: Path | str | None, mapping: str, chunks: Any, features: Mapping
) -> tuple[Chunk, ...]:
    where = f"mapping {mapping!r}"
    if not isinstance(chunks, list) or not chunks:
        raise UserError(f"{where} must be a list of chunks, each with {', '.join(CHUNK_KEYS)}")
    parsed = tuple(_parse_chunk(where, chunk) for chunk in chunks)
    seen: set[str] = set()
    for chunk in parsed:
        for name in chunk.features:
            _check_defined(where, name, features)
            if name in seen:
                raise UserError(f"{where}: feature {name!r} is listed twice; one chunk may hold a feature")
            seen.add(name)
        for file in chunk.files:
            _check_file(where, folder, file)
    return parsed


def _parse_chunk(where: str, chunk: Any) -> Chunk:
    if not isinstance(chunk, dict):
        raise UserError(f"{where}: a chunk must be a mapping with {', '.join(CHUNK_KEYS)}, not {chunk!r}")
    for key in chunk:
        _check_allowed(f"{where}: chunk key", key, CHUNK_KEYS)
    for key in CHUNK_KEYS:
        if key not in chunk:
            raise UserError(f"{where}: a chunk has no {key!r}; it needs {', '.join(CHUNK_KEYS)}")
    _check_allowed(f"{where}: chunk type", chunk["type"], CHUNK_TYPES)
    for key in ("features", "files"):
        _check_names(f"{where}: {key} of a chunk", chunk[key])
        if not chunk[key]:
            raise UserError(f"{where}: {key} of a chunk is empty; name at least one")
    return Chunk(chunk["type"], tuple(chunk["features"]), tuple(chunk["files"]))


def _check_file(where: str, folder: Path | str | None, file: str) -> None:
    scheme, separator, _ = file.partition("://")
    if separator and scheme not in SCHEMES:
        schemes = ", ".join(f"{name}://" for name in SCHEMES)
        raise UserError(f"{where}: file {file!r}; allowed: paths relative to the YAML, {schemes}")
    path = local_path(folder, file) if folder else None
    if path is not None and not path.is_file():
        raise UserError(f"{where}: file {file!r} does not exist; paths are relative to the YAML")


def _parse_channel(channel: Any, names: Any, features: Mapping) -> tuple[str, ...]:
    _check_allowed("channel", channel, CHANNELS)
    where = f"channel {channel!r}"
    _check_names(where, names)
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: feature {repeated[0]!r} is listed twice")
    needed = ["cardinality"] if channel in CATEGORICAL_CHANNELS else []
    needed += ["max_hotness"] if channel == "multihot_categorical" else []
    for name in names:
        _check_defined(where, name, features)
        if channel in ("user", "item"):
            features[name].setdefault("cardinality", AUTO)
        for key in needed:
            if key not in features[name]:
                raise UserError(f"{where}: feature {name!r} needs a {key} in feature_spec")
        if "max_hotness" in features[name] and channel != "multihot_categorical":
            raise UserError(
                f"{where}: feature {name!r} has a max_hotness; it belongs to multihot_categorical"
            )
        dtype = features[name].get("dtype", "int")
        if channel in (*CATEGORICAL_CHANNELS, "group") and not dtype.startswith("int"):
            raise UserError(
                f"{where}: feature {name!r} has dtype {dtype}; allowed: int8, int16, int32, int64"
            )
    return tuple(names)


def _check_names(where: str, names: Any) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where} must be a list of names, not {names!r}")


def _check_defined(where: str, name: str, features: Mapping) -> None:
    if name not in features:
        raise UserError(f"{where}: feature {name!r} is not defined in feature_spec{_close(name, features)}")


def _check_allowed(what: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{what} {value!r} is unknown{_close(value, allowed)}; allowed: {', '.join(allowed)}")


def _close(name: Any, allowed: Iterable[str]) -> str:
    match = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
