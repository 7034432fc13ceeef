"""Rows of a mapping, streamed from Parquet: for data that need not fit in memory.

The order of an epoch, exactly. The rows are cut into ``lanes`` contiguous ranges of equal length (up to one
row); lane ``l`` of N rows holds rows ``l * N // lanes`` to ``(l + 1) * N // lanes``. A lane's pieces of row
groups are visited in an order that depends on (seed, epoch, lane), and the rows within a piece in an order
that depends on (seed, epoch, row number of the piece). Global batch ``b`` of ``B`` rows takes from every lane
the next ``B / lanes`` rows. So a batch mixes rows of as many places as there are lanes; that these are a fair
sample rests on preprocessing, which stores training rows in random order.

A rank owns whole lanes. It reads its own ranges and nothing else, all ranks take the same number of steps,
and the global batches are the same for any number of ranks.
"""

import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.chunks import checked_values, open_file
from recsys.feature_spec import FeatureSpec
from recsys.input_pipeline import Batch, steps_per_epoch
from recsys.step import UserError

LANES = 16  # the most ranks that may share a mapping, and the places that a batch is drawn from
PREFETCHED = 4  # batches that wait for the training step
T = TypeVar("T")
Columns = dict[str, np.ndarray]


class RowGroups:
    """The row groups of a mapping, each read and checked on its own.

    Args:
        columns: name of a matrix to the features that are its columns, in order; a feature with a
            ``max_hotness`` fills as many columns (see :func:`recsys.chunks.checked_values`).
    Raises:
        UserError: the mapping is missing, has several chunks or is not Parquet, or a file cannot be read.
    """

    def __init__(self, spec: FeatureSpec, mapping: str, columns: Mapping[str, Sequence[str]]):
        self.spec, self.mapping, self.columns = spec, mapping, columns
        chunks = spec.source_spec[mapping]
        if len(chunks) > 1 or chunks[0].type != "parquet":
            raise UserError(
                f"{spec.path}: mapping {mapping!r} must be one Parquet chunk to be streamed; run the dataset "
                "through the preprocess step (dataset=feature_spec) or python -m recsys.transcode"
            )
        self._features = list(dict.fromkeys(name for names in columns.values() for name in names))
        for name in self._features:
            if name not in chunks[0].features:
                raise UserError(f"{spec.path}: mapping {mapping!r} lacks the feature {name!r}")
        self._metadata: dict[str, Any] = {}
        self._groups: list[tuple[str, int]] = []
        rows: list[int] = []
        for file in chunks[0].files:
            here = self._rows(file)
            self._groups += [(file, number) for number in range(len(here))]
            rows += here
        self.starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    def __len__(self) -> int:
        return len(self._groups)

    def read(self, number: int) -> Columns:
        """One row group: matrix name to an array of shape (rows, columns)."""
        file, group = self._groups[number]
        where = f"{file}, mapping {self.mapping!r}"
        try:
            table = self._open(file).read_row_group(group, columns=self._features)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{where}: cannot be read: {' '.join(str(error).split())}") from None
        values = {
            name: checked_values(
                f"{where}: feature {name!r}", table.column(name), self.spec.feature_spec[name]
            )
            for name in self._features
        }
        return {matrix: _matrix([values[name] for name in names]) for matrix, names in self.columns.items()}

    def blocks(self) -> Iterator[Columns]:
        """Every row group, in order."""
        return (self.read(number) for number in range(len(self)))

    def _rows(self, file: str) -> list[int]:
        """Rows of each row group; a file in a store is not fetched for it."""
        if published := self.spec.files.row_groups(file):
            return published
        metadata = self._open(file).metadata
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    def _open(self, file: str) -> pq.ParquetFile:
        try:
            opened = pq.ParquetFile(open_file(self.spec.files, file), metadata=self._metadata.get(file))
        except (pa.ArrowException, OSError) as error:
            line = " ".join(str(error).split())
            where = self.spec.files.address(file)
            raise UserError(f"{where}: cannot be read as Parquet: {line}") from None
        self._metadata[file] = opened.metadata
        return opened


def _matrix(values: list[np.ndarray]) -> np.ndarray:
    """Columns side by side; one column of 64-bit numbers keeps its type, others become 32 bits wide."""
    columns = [value if value.ndim == 2 else value[:, None] for value in values]
    if len(columns) == 1 and columns[0].dtype == np.int64:
        return columns[0]
    kinds = {column.dtype.kind for column in columns}
    return np.concatenate(columns, axis=1, dtype=np.int32 if kinds == {"i"} else np.float32, casting="unsafe")


def consecutive(groups: RowGroups, rows: int) -> Iterator[Columns]:
    """All rows in stored order, ``rows`` at a time; the last piece may be shorter."""
    waiting: list[Columns] = []
    for block in groups.blocks():
        waiting.append(block)
        if sum(len(part["label"]) for part in waiting) < rows:
            continue
        joined = {name: np.concatenate([part[name] for part in waiting]) for name in block}
        whole = len(joined["label"]) // rows * rows
        for start in range(0, whole, rows):
            yield {name: values[start : start + rows] for name, values in joined.items()}
        waiting = [{name: values[whole:] for name, values in joined.items()}]
    if waiting and any(len(part["label"]) for part in waiting):
        yield {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}


@dataclass(frozen=True)
class StreamedBatch(Batch):
    """A batch that brings its rows along; ``index`` is not used.

    Attributes:
        columns: matrix name to an array of shape (rows, columns); rows of weight 0 hold arbitrary values.
    """

    columns: Columns


class RowStream:
    """Shuffled batches of a mapping's rows; see the head of this file.

    Args:
        batch_rows: rows of the global batch.
        rank, ranks: which share of it this process takes.
    Raises:
        UserError: the mapping has no rows, or the lanes cannot be shared by so many ranks.
    """

    def __init__(self, groups: RowGroups, batch_rows: int, rank: int = 0, ranks: int = 1):
        if not groups.rows:
            raise UserError(f"{groups.spec.folder}: mapping {groups.mapping!r} has no rows")
        self.lanes = math.gcd(batch_rows, LANES)
        if self.lanes % ranks:
            raise UserError(
                f"hyperparameters: batch_size {batch_rows} cannot be shared by {ranks} workers; the number "
                f"of workers must divide it and {LANES}"
            )
        self.groups, self.per_lane = groups, batch_rows // self.lanes
        share = self.lanes // ranks
        self.own = range(rank * share, (rank + 1) * share)
        self.bounds = np.arange(self.lanes + 1) * groups.rows // self.lanes
        self.steps = steps_per_epoch(int(np.diff(self.bounds).max()), self.per_lane)

    def batches(self, seed: int, epoch: int, first: int = 0) -> Iterator[StreamedBatch]:
        """This rank's share of the batches of an epoch, from number ``first``."""
        lanes = [self._lane(lane, seed, epoch, first * self.per_lane) for lane in self.own]
        lengths = np.diff(self.bounds)
        sample = np.arange(self.own.start * self.per_lane, self.own.stop * self.per_lane, dtype=np.int32)
        for step in range(first, self.steps):
            left = np.clip(lengths - step * self.per_lane, 0, self.per_lane)
            weight = np.concatenate([np.arange(self.per_lane) < left[lane] for lane in self.own])
            parts = [
                _fill(lane, left[number], self.per_lane) for lane, number in zip(lanes, self.own, strict=True)
            ]
            # A lane that has ended repeats rows of another one, with weight 0.
            some = next((part for part in parts if part), None) or _fill_up(
                self.groups.read(0), self.per_lane
            )
            columns = {
                name: np.concatenate([(part or some)[name] for part in parts]) for name in self.groups.columns
            }
            yield StreamedBatch(sample, weight.astype(np.float32), sample, int(left.sum()), columns)

    def _lane(self, lane: int, seed: int, epoch: int, skip: int) -> "_Lane":
        starts = self.groups.starts
        low, high = self.bounds[lane], self.bounds[lane + 1]
        touched = np.flatnonzero((starts[:-1] < high) & (starts[1:] > low))
        pieces = [
            (int(g), max(low, starts[g]) - starts[g], min(high, starts[g + 1]) - starts[g]) for g in touched
        ]
        order = _generator(seed, epoch, 0, lane).permutation(len(pieces))
        return _Lane(self.groups, [pieces[number] for number in order], seed, epoch, skip)


class _Lane:
    """The rows of one lane in the order of one epoch."""

    def __init__(
        self, groups: RowGroups, pieces: list[tuple[int, int, int]], seed: int, epoch: int, skip: int
    ):
        self.groups, self.seed, self.epoch = groups, seed, epoch
        while pieces and skip >= pieces[0][2] - pieces[0][1]:
            skip -= pieces[0][2] - pieces[0][1]
            pieces = pieces[1:]
        self.pieces, self.position, self.length = iter(pieces), skip, 0
        self.current: Columns = {}

    def take(self, rows: int) -> Columns:
        """The next ``rows`` rows; there must be as many."""
        parts = []
        while rows:
            if self.position >= self.length:
                self.position -= self.length
                self._read(*next(self.pieces))
            end = min(self.position + rows, self.length)
            parts.append({name: values[self.position : end] for name, values in self.current.items()})
            rows -= end - self.position
            self.position = end
        return parts[0] if len(parts) == 1 else {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def _read(self, group: int, start: int, stop: int) -> None:
        generator = _generator(self.seed, self.epoch, 1, int(self.groups.starts[group] + start))
        order = start + generator.permutation(stop - start)
        self.current = {name: values[order] for name, values in self.groups.read(group).items()}
        self.length = stop - start


def _fill(lane: _Lane, left: int, rows: int) -> Columns:
    """``rows`` rows of which the first ``left`` count; nothing of a lane that has none left."""
    return _fill_up(lane.take(left), rows) if left else {}


def _fill_up(columns: Columns, rows: int) -> Columns:
    return {name: np.resize(values, (rows, values.shape[1])) for name, values in columns.items()}


def _generator(seed: int, epoch: int, use: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, use, number])


def prefetch(batches: Iterator[T], depth: int = PREFETCHED) -> Iterator[T]:
    """Runs an iterator in a thread of its own, ``depth`` items ahead of who asks for them."""
    items: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[bool, Any]) -> None:
        while not stop.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                if stop.is_set():
                    return
                put((True, batch))
            put((False, None))
        except BaseException as error:  # handed to the consumer, whatever it is
            put((False, error))

    threading.Thread(target=work, name="prefetch", daemon=True).start()
    try:
        while (item := items.get())[0]:
            yield item[1]
        if item[1] is not None:
            raise item[1]
    finally:
        stop.set()
