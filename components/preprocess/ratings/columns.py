"""What a column of raw ratings must hold, whatever file it comes from."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from recsys.step import UserError

MEANING = {
    "user": "an id",
    "item": "an id",
    "rating": "a number",
    "timestamp": "a number or an ISO 8601 time",
}


def find(path: Path, column: str | int | None, role: str, names: list[str], header: bool) -> str:
    """The name in the file of the column that ``raw.yaml`` gives for ``role``: by name, or by position.

    Args:
        names: the file's column names; without a header, whatever pyarrow calls the columns.
    """
    if not header:
        if int(column or 0) >= len(names):
            raise UserError(
                f"{path}: no column {column} for the {role}; the file has columns 0 to {len(names) - 1}"
            )
        return names[int(column or 0)]
    if names.count(str(column)) != 1:
        many = "several columns" if column in names else "no column"
        raise UserError(f"{path}: {many} {column!r} for the {role}; the file has: {', '.join(names)}")
    return str(column)


def checked(
    path: Path, columns: list[pa.Array], types: dict[str, pa.DataType], rows_before: int
) -> pa.RecordBatch:
    """One batch without missing or infinite values, in the stored types; times become integers."""
    stored = []
    for column, (role, kind) in zip(columns, types.items(), strict=True):
        column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        wrong = pc.is_null(column, nan_is_null=True)
        if pa.types.is_floating(column.type):
            wrong = pc.or_kleene(wrong, pc.is_inf(column))
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            wrong = pc.or_kleene(wrong, pc.equal(column, ""))
        row = pc.index(wrong, True).as_py()
        if row >= 0:
            raise UserError(
                f"{path}: line {rows_before + row + 1}: the {role} is missing or infinite ({column[row]}); "
                "every row needs a value: drop or fill such rows"
            )
        column = column.cast(kind)
        stored.append(column.cast(pa.int64()) if pa.types.is_timestamp(kind) else column)
    return pa.RecordBatch.from_arrays(stored, list(types))
