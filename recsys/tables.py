"""Streams of Arrow tables: cut to size, side by side; and text cells with several values as lists."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class UnequalLengths(Exception):
    """Streams that should hold the same rows do not; ``rows`` says how many each has."""

    def __init__(self, rows: list[int]):
        self.rows = rows


def sized(tables: Iterable[pa.Table], size: int, exactly: bool = False) -> Iterator[pa.Table]:
    """The same rows in tables of at least (or exactly) ``size`` rows; only the last may have fewer."""
    pending: list[pa.Table] = []
    rows = 0
    for table in tables:
        pending.append(table)
        rows += table.num_rows
        while rows >= size:
            whole = pa.concat_tables(pending)
            first = whole.slice(0, size) if exactly else whole
            yield first.combine_chunks()
            pending = [whole.slice(first.num_rows)]
            rows = pending[0].num_rows
    if rows:
        yield pa.concat_tables(pending).combine_chunks()


def side_by_side(streams: Sequence[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Joins streams of different columns of the same rows.

    Raises:
        UnequalLengths: at the end of the shortest, when another one goes on.
    """
    waiting: list[pa.Table | None] = [next(stream, None) for stream in streams]
    done = 0
    while True:
        for place, stream in enumerate(streams):
            while (table := waiting[place]) is not None and not table.num_rows:
                waiting[place] = next(stream, None)
        tables = [table for table in waiting if table is not None]
        if len(tables) < len(streams):
            break
        rows = min(table.num_rows for table in tables)
        yield pa.table({name: table[name][:rows] for table in tables for name in table.column_names})
        waiting = [table.slice(rows) for table in tables]
        done += rows
    if tables:
        left = [0 if table is None else table.num_rows for table in waiting]
        rest = [sum(table.num_rows for table in stream) for stream in streams]
        raise UnequalLengths([done + here + later for here, later in zip(left, rest, strict=True)])


def split_texts(column: pa.Array, separator: str) -> pa.ListArray:
    """Cuts each text at the separator; what is empty between two separators is no value.

    Args:
        column: text; a missing cell has no values.
    Returns:
        list<string> of the same length, without nulls.
    """
    return filled_lists(pc.split_pattern(pc.fill_null(column, ""), pattern=separator))


def filled_lists(lists: pa.ListArray) -> pa.ListArray:
    """list<string> without empty texts and nulls; a missing list is an empty one."""
    keep = pc.fill_null(pc.not_equal(lists.flatten(), ""), False)
    kept = np.concatenate([[0], np.cumsum(keep.to_numpy(zero_copy_only=False))])
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return as_lists(lists.flatten().filter(keep), np.diff(kept[np.concatenate([[0], np.cumsum(lengths)])]))


def as_lists(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    """Lists of the given lengths, from all their values in order."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
