"""Chunks: columns of a dataset stored as Parquet or headerless csv, read and checked value by value."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq

from recsys.dataset_store import Files
from recsys.feature_spec_rules import AUTO, DTYPES, Chunk
from recsys.step import UserError

MANY = 1 << 31  # ids are int32, so this is the largest cardinality
ARROW_TYPES = {dtype: pa.type_for_alias(dtype) for dtype in DTYPES}


def read_chunk(
    chunk: Chunk, files: Files, wanted: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, np.ndarray], int]:
    """Reads some of the chunk's columns.

    Args:
        files: of the dataset.
        wanted: feature name to its properties in ``feature_spec``.

    Returns:
        feature name to its values (see :func:`checked_values`), and the number of rows.

    Raises:
        UserError: a file cannot be read, lacks a column, or holds values that the properties forbid.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    rows = 0
    for file in chunk.files:
        table = _read_file(chunk, files, file, wanted)
        rows += table.num_rows
        for name, properties in wanted.items():
            values = checked_values(
                f"{files.address(file)}: feature {name!r}", table.column(name), properties
            )
            if parts[name] and values.dtype != parts[name][0].dtype:
                raise UserError(
                    f"{files.address(file)}: feature {name!r} holds {values.dtype}, but "
                    f"{parts[name][0].dtype} in {chunk.files[0]}; files of one chunk must agree"
                )
            parts[name].append(values)
    return {name: _joined(arrays) for name, arrays in parts.items()}, rows


def _read_file(chunk: Chunk, files: Files, file: str, wanted: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    try:
        with open_file(files, file) as stream:
            if chunk.type == "csv":
                return _read_csv(chunk, stream, wanted)
            parquet = pq.ParquetFile(stream, pre_buffer=True)
            present = parquet.schema_arrow.names
            for name in chunk.features:
                if name not in present:
                    raise UserError(
                        f"{files.address(file)}: source_spec promises the column {name!r}, "
                        f"the file has {', '.join(present)}"
                    )
            return parquet.read(columns=list(wanted))
    except (pa.ArrowException, OSError) as error:
        hint = " (csv has no header line)" if chunk.type == "csv" else ""
        line = " ".join(str(error).split())
        raise UserError(f"{files.address(file)}: cannot be read as {chunk.type}{hint}: {line}") from None


def _read_csv(chunk: Chunk, stream: pa.NativeFile, wanted: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Columns of a headerless csv; text that is not of the declared dtype is an ``ArrowInvalid``."""
    types = {name: ARROW_TYPES[entry["dtype"]] for name, entry in wanted.items() if "dtype" in entry}
    return pa.csv.read_csv(
        stream,
        pa.csv.ReadOptions(column_names=list(chunk.features)),
        # A chunk none of whose columns is wanted still has a row count to compare.
        convert_options=pa.csv.ConvertOptions(
            column_types=types, include_columns=list(wanted) or [chunk.features[0]]
        ),
    )


def open_file(files: Files, file: str) -> pa.NativeFile:
    """Opens a file for random access, local or in an object store."""
    path = files.local(file)
    local = pa.fs.LocalFileSystem()
    filesystem, name = (local, str(path)) if path else pa.fs.FileSystem.from_uri(files.address(file))
    return filesystem.open_input_file(name)


def checked_values(
    where: str, column: pa.ChunkedArray | pa.Array, properties: Mapping[str, Any]
) -> np.ndarray:
    """A column as NumPy, after the checks that its dtype and its values must pass.

    Args:
        where: what the column is, for messages.
        properties: of the feature in ``feature_spec``.
    Returns:
        shape (rows,); of a feature with ``max_hotness`` int32 (rows, max_hotness), filled up with -1.
    Raises:
        UserError: the wrong type, a missing value, NaN, an id beyond the cardinality, a list too long.
    """
    if "max_hotness" in properties:
        return _padded(*checked_ids(where, column, properties), properties["max_hotness"])
    declared = properties.get("dtype")
    if declared and column.type != ARROW_TYPES[declared]:
        raise UserError(f"{where} holds {column.type}, feature_spec says dtype {declared}")
    if column.type not in ARROW_TYPES.values():
        raise UserError(f"{where} holds {column.type}; allowed: {', '.join(DTYPES)}")
    if column.null_count:
        raise UserError(f"{where} has {column.null_count} missing values; fill them or drop the rows")
    values = np.ascontiguousarray(column.to_numpy(zero_copy_only=False))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        faulty = int((~np.isfinite(values)).sum())
        raise UserError(f"{where} has {faulty} values that are NaN or infinite; allowed: finite numbers")
    cardinality = properties.get("cardinality")
    cardinality = MANY if cardinality == AUTO else cardinality
    if cardinality is not None:
        if values.dtype.kind != "i":
            raise UserError(f"{where} holds {values.dtype}, but it has a cardinality: ids must be integers")
        if len(values) and (values.min() < 0 or values.max() >= cardinality):
            raise UserError(
                f"{where} has ids from {values.min()} to {values.max()}; "
                f"its cardinality {cardinality} allows 0 .. {cardinality - 1}"
            )
    return values


def checked_ids(
    where: str, column: pa.ChunkedArray | pa.Array, properties: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all lists of a multi-hot column, and the length of each list, after the same checks."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise UserError(f"{where} holds {column.type}, but it has a max_hotness: each row must be a list")
    if column.null_count:
        raise UserError(f"{where} has {column.null_count} missing lists; an empty list means none")
    scalar = {key: value for key, value in properties.items() if key != "max_hotness"}
    ids = checked_values(where, column.flatten(), scalar)
    lengths = np.asarray(column.value_lengths())
    hotness = properties["max_hotness"]
    if len(lengths) and lengths.max() > hotness:
        raise UserError(f"{where} has a list of {lengths.max()} values; its max_hotness allows {hotness}")
    return ids, lengths


def _padded(ids: np.ndarray, lengths: np.ndarray, hotness: int) -> np.ndarray:
    padded = np.full((len(lengths), hotness), -1, np.int32)
    padded[np.arange(hotness) < lengths[:, None]] = ids
    return padded


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
