"""Parquet files of ratings as typed batches."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.preprocess.ratings.columns import MEANING, checked, find
from recsys.raw_data import RawRatings
from recsys.step import UserError

BATCH_ROWS = 1 << 18


def batches(raw: RawRatings, folder: Path, roles: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Streams the columns of ``roles`` of all files.

    Raises:
        UserError: a column is missing or of no usable type, files differ, a value is missing.
    """
    first: dict[str, pa.DataType] = {}
    for path in raw.paths(folder):
        try:
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            found = {role: find(path, raw.columns[role], role, names, True) for role in roles}
            types = {
                role: _typed(path, role, file.schema_arrow.field(name).type) for role, name in found.items()
            }
            for role, kind in types.items():
                if first.setdefault(role, kind) != kind:
                    raise UserError(f"{path}: {role} is {kind}, in the files before it is {first[role]}")
            rows = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=list(found.values())):
                columns = [batch.column(batch.schema.get_field_index(name)) for name in found.values()]
                yield checked(path, columns, types, rows)
                rows += batch.num_rows
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise UserError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from None


def _typed(path: Path, role: str, kind: pa.DataType) -> pa.DataType:
    """The type in which a Parquet column is stored in a block."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if role in ("user", "item"):
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return pa.string()
        if number:  # 3.0 is id 3; pyarrow refuses to cast 3.5
            return pa.int64()
    elif number:
        return pa.int64() if role == "timestamp" and pa.types.is_integer(kind) else pa.float64()
    elif role == "timestamp" and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        return pa.timestamp("us", getattr(kind, "tz", None))
    raise UserError(f"{path}: the {role} column holds {kind}, not {MEANING[role]}")
