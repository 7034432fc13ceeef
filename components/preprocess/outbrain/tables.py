"""The raw csv files as checked batches: types, missing values, ranges, and faults with their line."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from recsys.outbrain_tables import COLUMNS, MISSING
from recsys.raw_data import RawOutbrain
from recsys.step import UserError

READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Kind:
    """What a column must hold: ``low .. high`` where given, and if ``required`` a value in every row."""

    type: pa.DataType
    words: str
    required: bool = True
    low: float | None = None
    high: float | None = None


ID = Kind(pa.int64(), "a whole number of 0 or more", low=0)
MAYBE_ID = Kind(pa.int64(), "a whole number of 0 or more, or missing", required=False, low=0)
KINDS = {
    "clicked": Kind(pa.int64(), "0 or 1", low=0, high=1),
    "timestamp": Kind(pa.int64(), "a whole number of milliseconds, or missing", required=False),
    "platform": Kind(pa.string(), "text", required=False),
    "geo_location": Kind(pa.string(), "text", required=False),
    "publish_time": Kind(pa.string(), "text", required=False),
    "entity_id": Kind(pa.string(), "text"),
    "confidence_level": Kind(
        pa.float64(), "a finite number of 0 or more", low=0, high=float(np.finfo(np.float32).max)
    ),
    "topic_id": ID,
    "category_id": ID,
}
KEYS = {"clicks_train": ("display_id", "ad_id"), "events": ("display_id",), "promoted_content": ("ad_id",)}
NOT_READ = ("uuid",)


def paths(raw: RawOutbrain, source: Path) -> dict[str, Path]:
    """The file of each table.

    Raises:
        UserError: a table is missing from ``raw.yaml``.
    """
    for table in COLUMNS:
        if table not in raw.tables:
            raise UserError(
                f"{source}: raw.yaml names no file for table {table!r}; needed: {', '.join(COLUMNS)}"
            )
    return {table: source / raw.tables[table] for table in COLUMNS}


def kinds(table: str) -> dict[str, Kind]:
    """The columns of a table that are read."""
    keys = KEYS.get(table, ("document_id",))
    return {
        name: KINDS.get(name, ID if name in keys else MAYBE_ID)
        for name in COLUMNS[table]
        if name not in NOT_READ
    }


def batches(path: Path, table: str) -> Iterator[pa.RecordBatch]:
    """Streams a table's file: the columns of :func:`kinds`, in their types, null where missing.

    Raises:
        UserError: names file, line, value and rule: the file is empty, no UTF-8 or no table; a column is
            missing; a value is not of its kind.
    """
    wanted = kinds(table)
    line = 2  # after the header
    try:
        header = _header(path)
        for name in wanted:
            if header.count(name) != 1:
                many = "several columns" if name in header else "no column"
                raise UserError(
                    f"{path}: {many} {name!r}; the file has {', '.join(header) or 'no header'}, "
                    f"it needs {', '.join(COLUMNS[table])}"
                )
        for batch in _open(path, wanted):
            _check(path, batch, wanted, line)
            line += batch.num_rows
            yield batch
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UserError(_explained(path, wanted, error)) from None


def _header(path: Path) -> list[str]:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as stream:
        return next(csv.reader(stream), [])


def _open(path: Path, wanted: dict[str, Kind], threads: bool = True) -> pa.csv.CSVStreamingReader:
    return pa.csv.open_csv(
        path,
        pa.csv.ReadOptions(use_threads=threads, block_size=READ_BYTES),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(wanted),
            column_types={name: kind.type for name, kind in wanted.items()},
            null_values=["", MISSING],
            strings_can_be_null=True,
        ),
    )


def _check(path: Path, batch: pa.RecordBatch, wanted: dict[str, Kind], line: int) -> None:
    for column, (name, kind) in zip(batch.columns, wanted.items(), strict=True):
        wrong = pc.is_null(column, nan_is_null=True) if kind.required else None
        if kind.low is not None:
            least = pc.min_max(column)
            if least["min"].is_valid and least["min"].as_py() < kind.low:
                wrong = pc.less(column, kind.low)
            elif kind.high is not None and least["max"].is_valid and least["max"].as_py() > kind.high:
                wrong = pc.greater(column, kind.high)
        row = -1 if wrong is None else pc.index(wrong, True).as_py()
        if row >= 0:
            value = column[row].as_py()
            raise UserError(
                f"{path}: line {line + row}: {name} is {'missing' if value is None else value}; "
                f"it must be {kind.words}; mend or drop the line"
            )


def _explained(path: Path, wanted: dict[str, Kind], error: Exception) -> str:
    """One line for what pyarrow.csv says, which tells a line only when it reads on one thread."""
    try:
        for _ in _open(path, wanted, threads=False):
            pass
    except (pa.ArrowInvalid, UnicodeDecodeError) as again:
        error = again
    text = " ".join(str(error).split())
    row = re.search(r"Row #(\d+)", text)
    where = f"{path}: line {row[1]}: " if row else f"{path}: "
    if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in text:
        return f"{where}not UTF-8 text; save it as UTF-8"
    conversion = re.search(r"CSV column #(\d+): .*error to .*?: (.*)", text)
    if conversion:
        name = _header(path)[int(conversion[1])]
        return f"{where}{name}: {conversion[2]}; it must be {wanted[name].words}; mend or drop the line"
    return where + re.sub(r"^.*Row #\d+: ", "", text)
