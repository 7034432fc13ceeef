"""Raw rating files -> checked, typed Parquet blocks.

Files are streamed in blocks of about a million rows, so memory does not grow with the file. Columns of a
block: ``user`` and ``item`` (int64, or text as soon as one id is no integer), ``rating`` (float64) and
``timestamp`` (int64 or float64) where the data has them. Ids that look like integers are read as integers:
``007`` is user 7.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.preprocess.ratings import csv_files, parquet_files
from recsys.raw_data import RawRatings
from recsys.step import UserError

BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class Blocks:
    """Typed ratings on disk.

    Attributes:
        files: Parquet files in file order, each with at least one positive row.
        columns: ``user``, ``item`` and those of ``rating``, ``timestamp`` that the data has.
        rows: rows read.
        positives: rows with a rating of at least the threshold.
    """

    files: list[str]
    columns: tuple[str, ...]
    rows: int
    positives: int


def write_blocks(raw: RawRatings, folder: Path, target: Path, threshold: float | None) -> Blocks:
    """Reads and checks the raw files and writes them as typed Parquet blocks.

    A block without any positive row is counted and not stored: NVTabular (23.8) silently undoes a filter
    that leaves nothing of a partition.

    Args:
        folder: the raw folder.
        target: a new folder for the blocks.
        threshold: a rating of at least this is a positive; ``None`` or no rating column takes every row.
    Raises:
        UserError: a column is missing; a value is missing or is no number; the text is not UTF-8; there is
            no row. Names the file, and the line where there is one.
    """
    roles = tuple(role for role, column in raw.columns.items() if column is not None)
    if raw.format == "parquet":
        return _store(parquet_files.batches(raw, folder, roles), roles, target, threshold)
    attempt = dict.fromkeys(roles, 0)
    furthest: csv_files.Unconvertible | None = None
    while True:
        try:
            types = {role: csv_files.CSV_TYPES[role][attempt[role]] for role in roles}
            return _store(csv_files.batches(raw, folder, types), roles, target, threshold)
        except csv_files.Unconvertible as failure:
            # The type that came furthest is what the column meant to be: its message is the helpful one.
            if furthest is None or furthest.role != failure.role or failure.place > furthest.place:
                furthest = failure
            attempt[failure.role] += 1
            if attempt[failure.role] == len(csv_files.CSV_TYPES[failure.role]):
                raise UserError(furthest.message) from None


def _store(
    batches: Iterator[pa.RecordBatch], roles: tuple[str, ...], target: Path, threshold: float | None
) -> Blocks:
    target.mkdir(parents=True, exist_ok=True)
    for stale in target.iterdir():  # of an attempt with a narrower type
        stale.unlink()
    files: list[str] = []
    rows = positives = 0
    for table in _blocks(batches):
        positive = table.num_rows
        if threshold is not None and "rating" in roles:
            positive = pc.sum(pc.greater_equal(table["rating"], threshold)).as_py()
        rows, positives = rows + table.num_rows, positives + positive
        if positive:
            files.append(str(target / f"{len(files):06d}.parquet"))
            pq.write_table(table, files[-1], row_group_size=table.num_rows, use_dictionary=["rating"])
    return Blocks(files, roles, rows, positives)


def _blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(part.num_rows for part in pending) >= BLOCK_ROWS:
            yield pa.Table.from_batches(pending).combine_chunks()
            pending = []
    table = pa.Table.from_batches(pending) if pending else None
    if table is not None and table.num_rows:
        yield table.combine_chunks()
