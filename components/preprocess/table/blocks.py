"""A raw table -> checked, typed Parquet blocks.

Files are streamed, so memory does not grow with them (but for 8 bytes of timestamp a row). A categorical
column all of whose values are integers, with none missing, is read as integers, any other as text.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from components.preprocess.table import cells
from recsys.raw_data import RawTable
from recsys.step import UserError

BLOCK_ROWS = 1 << 18
READ_BYTES = 8 << 20
INTEGER = r"^(0|-?[1-9]\d{0,17})$"


@dataclass(frozen=True)
class Columns:
    """The columns of a raw table by use; ``onehot`` begins with the user and the item."""

    label: str
    onehot: list[str]
    multihot: list[str]
    numerical: list[str]
    group: str | None
    timestamp: str | None

    @classmethod
    def of(cls, raw: RawTable) -> "Columns":
        role, use = raw.columns, raw.features
        first = [column for column in (role["user"], role["item"]) if column]
        onehot, multihot, numerical = (
            list(dict.fromkeys(names))
            for names in ([*first, *use["onehot"]], use["multihot"], use["numerical"])
        )
        return cls(str(role["label"]), onehot, multihot, numerical, role["group"], role["timestamp"])

    @property
    def features(self) -> list[str]:
        return [*self.onehot, *self.multihot, *self.numerical]

    @property
    def group_feature(self) -> str | None:
        """The name of the group's raw values, which may not be that of a feature."""
        name = self.group
        while name in (*self.features, self.label):
            name = f"{name}_group"
        return name

    def names(self) -> list[str]:
        """Every column that is read, once."""
        others = [name for name in (self.group, self.timestamp) if name]
        return list(dict.fromkeys([self.label, *self.features, *others]))


class Blocks:
    """The typed blocks on disk.

    Args:
        raw, folder: the raw table and the folder that it lies in.
        target: a new folder for the blocks.
        label_threshold: a label of at least this is a 1; ``None`` requires labels of 0 and 1.
    Attributes:
        rows: of each block.
        time: seconds or any other number that grows, float64 of shape (rows,); ``None`` without a column.
        missing: column to its missing cells (for lists: rows without a value).
        max_hotness: multi-hot column to the length of its longest list, at least 1.
    Raises:
        UserError: a column is missing or repeated, or a value is not what its column must hold. Names the
            file and the line.
    """

    def __init__(self, raw: RawTable, folder: Path, target: Path, label_threshold: float | None):
        self.columns = Columns.of(raw)
        self.rows: list[int] = []
        self.missing: Counter[str] = Counter()
        self.max_hotness = dict.fromkeys(self.columns.multihot, 1)
        self._raw, self._threshold, self._target = raw, label_threshold, target
        self._text: set[str] = set()  # categorical columns that are not integers throughout
        self._groups: list[pa.Array] = []
        self._clocks: set[str] = set()
        times: list[np.ndarray] = []
        target.mkdir(parents=True)
        for path in raw.paths(folder):
            line = 2 if raw.format == "csv" else 1
            for batch in _batches(raw, path, self.columns.names()):
                table = self._typed(cells.Place(path, line), batch, times)
                pq.write_table(table, target / f"{len(self.rows):06d}.parquet")
                self.rows.append(len(table))
                line += len(table)
        self.time = np.concatenate(times) if times else None
        self._group_values = pa.chunked_array(self._groups or [pa.array([], pa.string())]).unique()

    def read(self, number: int, chosen: np.ndarray, names: list[str] | None = None) -> pa.Table:
        """Some rows of a block: label float32, categoricals int64 or text, numericals float64, group int64.

        Args:
            chosen: bool, shape (rows of the block,).
            names: the columns; ``None`` reads all.
        """
        table = pq.read_table(self._target / f"{number:06d}.parquet", columns=names)
        return self._interpreted(table.filter(pa.array(chosen)))

    def schema(self) -> pa.Schema:
        """The columns of :meth:`read` and their types."""
        return self.read(0, np.zeros(self.rows[0], bool)).schema

    def _interpreted(self, table: pa.Table) -> pa.Table:
        """Integers for what is integers throughout, and for the values of a group."""
        use = self.columns
        for place, name in enumerate(table.column_names):
            column = table.column(name)
            if name == use.group_feature:
                if use.group in self._text:
                    column = pc.index_in(column, value_set=self._group_values)
                column = column.cast(pa.int64())
            elif name in (*use.onehot, *use.multihot) and name not in self._text:
                column = column.cast(pa.list_(pa.int64()) if name in use.multihot else pa.int64())
            table = table.set_column(place, name, column)
        return table

    def _typed(self, place: cells.Place, batch: pa.RecordBatch, times: list[np.ndarray]) -> pa.Table:
        raw = {name: batch.column(number) for number, name in enumerate(batch.schema.names)}
        use = self.columns
        typed: dict[str, Any] = {use.label: cells.labels(place, use.label, raw[use.label], self._threshold)}
        for name in use.onehot:
            typed[name] = cells.texts(place, name, raw[name])
            self._note(name, typed[name], typed[name].null_count)
        for name in use.multihot:
            typed[name] = cells.lists(place, name, raw[name], self._raw.list_separator)
            longest = pc.max(pc.list_value_length(typed[name])).as_py() or 0
            self.max_hotness[name] = max(self.max_hotness[name], longest)
            self._note(name, typed[name].flatten(), 0)
            self.missing[name] += pc.sum(pc.equal(pc.list_value_length(typed[name]), 0)).as_py() or 0
        for name in use.numerical:
            typed[name] = cells.numbers(place, name, raw[name])
            self.missing[name] += typed[name].null_count
        if use.group and use.group_feature:
            column = cells.texts(place, use.group, raw[use.group])
            cells.refuse_missing(place, use.group, column, "group")
            typed[use.group_feature] = column
            self._groups.append(column.unique())
            self._note(use.group, column, 0)
        if use.timestamp:
            values, clock = cells.times(place, use.timestamp, raw[use.timestamp])
            self._clocks.add(clock)
            if len(self._clocks) > 1:
                raise UserError(f"{place.path}: timestamp {use.timestamp!r} holds numbers and dates; use one")
            times.append(values)
        return pa.table(typed)

    def _note(self, name: str, values: pa.Array, missing: int) -> None:
        self.missing[name] += missing
        if missing or not pc.all(pc.match_substring_regex(values, INTEGER), min_count=0).as_py():
            self._text.add(name)


def _batches(raw: RawTable, path: Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Blocks of the named columns of a file; of csv all are text."""
    try:
        if raw.format == "parquet":
            file = pq.ParquetFile(path)
            _check_names(path, names, file.schema_arrow.names)
            for batch in file.iter_batches(BLOCK_ROWS, columns=names):
                yield batch.select(names)
            return
        parse = pa.csv.ParseOptions(delimiter=raw.separator)
        with pa.csv.open_csv(path, parse_options=parse) as reader:
            _check_names(path, names, reader.schema.names)
        convert = pa.csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        )
        # One thread: only then does a fault name its line.
        read = pa.csv.ReadOptions(use_threads=False, block_size=READ_BYTES)
        yield from pa.csv.open_csv(path, read, parse, convert)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as {raw.format}: {line}") from None


def _check_names(path: Path, names: list[str], present: list[str]) -> None:
    for name in names:
        if present.count(name) != 1:
            many = "several columns" if name in present else "no column"
            raise UserError(f"{path}: {many} {name!r}; the file has {', '.join(present[:50])}")
