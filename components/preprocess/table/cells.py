"""What the cells of a raw table may hold, by the use of their column; a fault names file, line and cell."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.step import UserError
from recsys.tables import filled_lists, split_texts

NO_NUMBER = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "\\N")  # a missing number, in text


@dataclass(frozen=True)
class Place:
    """Where a batch of rows comes from: the file, and the line (Parquet: the row) of its first row."""

    path: Path
    line: int

    def fault(self, name: str, wrong: pa.Array, column: pa.Array, allowed: str) -> UserError:
        """The error for the first row where ``wrong`` is true."""
        row = pc.index(wrong, True).as_py()
        return UserError(f"{self.path}: line {self.line + row}: {name} is {column[row].as_py()!r}; {allowed}")


def numbers(place: Place, name: str, column: pa.Array) -> pa.Array:
    """float64 with nulls for missing cells (in text: empty, NA, NaN, null, None or \\N)."""
    column = _decoded(column)
    if _is_text(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        known = pc.invert(pc.is_in(trimmed, value_set=pa.array(NO_NUMBER)))
        given = pc.if_else(known, trimmed, pa.scalar(None, pa.string()))
        try:
            values = given.cast(pa.float64())
        except pa.ArrowInvalid:
            wrong = pa.array([not _is_number(cell) for cell in given.to_pylist()])
            raise place.fault(name, wrong, column, "it must be a number") from None
    elif pa.types.is_boolean(column.type):
        values = column.cast(pa.int8()).cast(pa.float64())
    elif _is_number_type(column.type):
        values = column.cast(pa.float64(), safe=False)
    else:
        raise UserError(f"{place.path}: {name} holds {column.type}, not numbers")
    infinite = pc.fill_null(pc.is_inf(values), False)
    if pc.any(infinite).as_py():
        raise place.fault(name, infinite, column, "it must be finite")
    return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)


def labels(place: Place, name: str, column: pa.Array, threshold: float | None) -> pa.Array:
    """float32 zeros and ones."""
    values = numbers(place, name, column)
    refuse_missing(place, name, values, "label")
    if threshold is not None:
        return pc.greater_equal(values, threshold).cast(pa.float32())
    wrong = pc.and_(pc.not_equal(values, 0.0), pc.not_equal(values, 1.0))
    if pc.any(wrong).as_py():
        raise place.fault(name, wrong, column, "labels must be 0 or 1; set preparation label_threshold")
    return values.cast(pa.float32())


def times(place: Place, name: str, column: pa.Array) -> tuple[np.ndarray, str]:
    """Times as float64, and what they are: ``number`` or ``date`` (microseconds since 1970)."""
    column, clock = _decoded(column), "number"
    try:
        values = None if pa.types.is_temporal(column.type) else numbers(place, name, column)
    except UserError as error:
        values, no_number = None, error
    if values is None:
        values, clock = _microseconds(column), "date"
    if values is None:
        raise UserError(f"{no_number} or an ISO 8601 time") from None
    refuse_missing(place, name, values, "timestamp")
    return values.to_numpy(zero_copy_only=False), clock


def _microseconds(column: pa.Array) -> pa.Array | None:
    """Microseconds since 1970 as float64, of times that all have an offset or all have none."""
    for zone in ("UTC", None):
        try:
            return column.cast(pa.timestamp("us", zone)).cast(pa.int64()).cast(pa.float64())
        except pa.ArrowException:
            continue
    return None


def texts(place: Place, name: str, column: pa.Array) -> pa.Array:
    """One value in a cell, as text; null where it is missing (in text: empty)."""
    column = _decoded(column)
    if pa.types.is_nested(column.type):
        raise UserError(
            f"{place.path}: {name} holds {column.type}; one-hot columns hold one value, use multihot"
        )
    if pa.types.is_floating(column.type):
        try:
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column).cast(pa.int64())
        except pa.ArrowInvalid:
            wrong = pc.fill_null(pc.not_equal(pc.floor(column), column), False)
            raise place.fault(name, wrong, column, "a category is a whole number or text") from None
    column = column.cast(pa.string())
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


def lists(place: Place, name: str, column: pa.Array, separator: str) -> pa.Array:
    """Several values in a cell, as list<string> without nulls."""
    column = _decoded(column)
    if _is_text(column.type):
        return split_texts(column.cast(pa.string()), separator)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return filled_lists(column.cast(pa.list_(pa.string())))
    raise UserError(f"{place.path}: {name} holds {column.type}; multi-hot columns hold lists or text")


def refuse_missing(place: Place, name: str, values: pa.Array, what: str) -> None:
    """Every row needs its label, group and time."""
    if values.null_count:
        raise place.fault(
            name, pc.is_null(values), values, f"every row needs a {what}: drop or fill such rows"
        )


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number_type(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _is_number(cell: str | None) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return False
    return "_" not in (cell or "")
