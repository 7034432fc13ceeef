"""The NVTabular workflow: rating filter, then ids by ``Categorify``; pandas on a CPU, cuDF on a GPU.

``Categorify`` numbers values by falling frequency and starts at 3 (0 padding, 1 null, 2 out of vocabulary):
a dataset id is the code minus 3, and rows with a smaller code are dropped.

Users are fitted first. Items are then fitted on rows of remaining users only (VAE-CF: of training users
only), which one pass over one graph cannot do. The saved workflow holds both and turns raw ratings into
codes.

``Categorify`` transforms by a join and a sort of all rows, and ``Workflow.fit`` reads all columns of a file.
So here each block's *distinct* ids are transformed (about ten times faster), and a fit gets the one column
that it needs.
"""

import importlib
import os
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.preprocess.ratings.blocks import Blocks
from recsys.arrays import array_module
from recsys.splits import TRAIN
from recsys.step import UserError

FIRST_CODE = 3
THREADS = min(4, len(os.sched_getaffinity(0)))

Array = Any  # numpy.ndarray or cupy.ndarray


@dataclass
class Encoded:
    """Encoded positives of remaining users and items.

    Attributes:
        user, item: int32 ids, shape (rows,); the rows of each user keep file order.
        timestamp: shape (rows,), or ``None``.
        group: int8 group (:mod:`recsys.splits`) of each user, shape (n_users,).
        n_items: size of the item vocabulary.
        rows_of_known_users: rows before those of unknown items were dropped.
    """

    user: Array
    item: Array
    timestamp: Array | None
    group: np.ndarray
    n_items: int
    rows_of_known_users: int


def nvtabular() -> ModuleType:
    """Imports NVTabular (seconds) without the warnings that say nothing about this use of it."""
    for message in (".* dtype mappings did not load", "Initializing an NVTabular Dataset in CPU mode"):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    return importlib.import_module("nvtabular")


class RatingsWorkflow:
    """Fits, applies and saves the workflow.

    Args:
        blocks: typed ratings (:mod:`components.preprocess.ratings.blocks`).
        threshold: a rating of at least this is a positive; ``None`` takes every row.
        min_user_ratings, min_item_ratings: rarer users and items are out of the vocabulary.
        work: an empty folder for the vocabularies, needed until :meth:`save`.
    """

    def __init__(
        self,
        blocks: Blocks,
        threshold: float | None,
        min_user_ratings: int,
        min_item_ratings: int,
        work: Path,
    ):
        self._nvt = nvtabular()
        self._library = importlib.import_module("merlin.core.dispatch").get_lib()  # cuDF or pandas
        self._blocks = blocks
        self._threshold = threshold if "rating" in blocks.columns else None
        self._minimum = {"user": min_user_ratings, "item": min_item_ratings}
        self._categorify = {
            name: self._nvt.ops.Categorify(
                freq_threshold={name: minimum}, out_path=str(work / name), dtype=np.int32
            )
            for name, minimum in self._minimum.items()
        }

    def encode(self, choose_groups: Callable[[int], np.ndarray], with_time: bool) -> Encoded:
        """Fits users, then items on the training users' rows, and encodes all rows of known users and items.

        Args:
            choose_groups: called with the number of users, returns the group of each.
            with_time: whether the caller needs the timestamps.
        Raises:
            UserError: no user or no item is frequent enough.
        """
        blocks = range(len(self._blocks.files))
        n_users, to_codes = self._fit("user", lambda block: self._positives(block, ["user"]), blocks)
        known: list[Array] = []  # per block: which positives are of known users
        users: list[Array] = []  # per block: the users of those rows
        for codes in self._each(lambda block: to_codes(self._positives(block, ["user"])["user"]), blocks):
            known.append(codes >= FIRST_CODE)
            users.append(codes[known[-1]] - FIRST_CODE)
        xp = array_module(users[0])
        group = choose_groups(n_users)
        training = xp.asarray(group == TRAIN)

        def training_items(block: int):
            rows = known[block].copy()
            rows[known[block]] = training[users[block]]
            return _only(self._positives(block, ["item"]), rows)

        n_items, to_codes = self._fit("item", training_items, [b for b in blocks if training[users[b]].any()])
        time = ["timestamp"] if with_time and "timestamp" in self._blocks.columns else []

        def encoded(block: int) -> dict[str, Array]:
            rows = _only(self._positives(block, ["item", *time]), known[block])
            codes = to_codes(rows["item"])
            kept = codes >= FIRST_CODE
            columns = {"user": users[block][kept], "item": codes[kept] - FIRST_CODE}
            return {**columns, **{name: rows[name].values[kept] for name in time}}

        parts = list(self._each(encoded, blocks))
        rows = sum(map(len, users))
        users.clear()  # the copies below need the memory
        known.clear()
        columns = {name: xp.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
        return Encoded(columns["user"], columns["item"], columns.get("timestamp"), group, n_items, rows)

    def vocabulary(self, name: str) -> pa.ChunkedArray:
        """The raw values of ``user`` or ``item``; the position is the dataset id."""
        return pq.read_table(self._categorify[name].categories[name], columns=[name]).column(name)

    def save(self, folder: Path) -> None:
        """Saves one fitted workflow: (user, item[, rating]) of raw ratings to codes of the positives."""
        nodes = [self._filtered([name]) >> op for name, op in self._categorify.items()]
        names = ["user", "item", *([] if self._threshold is None else ["rating"])]
        workflow = self._nvt.Workflow(nodes[0] + nodes[1])
        workflow.fit_schema(self._dataset(lambda block: self._read(block, names), [0]).schema)
        workflow.save(str(folder))

    def _fit(
        self, name: str, read: Callable[[int], Any], blocks: Iterable[int]
    ) -> tuple[int, Callable[[Any], Array]]:
        """Fits one vocabulary; returns its size and the function from a column of raw values to codes."""
        workflow = self._nvt.Workflow([name] >> self._categorify[name])
        workflow.fit(self._dataset(read, list(blocks)))
        size = len(self.vocabulary(name))
        if not size:
            raise UserError(
                f"no {name} has {self._minimum[name]} ratings"
                + (f" of at least {self._threshold:g}" if self._threshold is not None else "")
                + f"; lower preparation min_{name}_ratings, or rating_threshold where there is one"
            )

        def to_codes(column) -> Array:
            place, distinct = column.factorize()
            if not len(distinct):  # Categorify fails on an empty frame
                return place.astype(np.int32)
            return workflow.transform(self._library.DataFrame({name: distinct}))[name].values[place]

        return size, to_codes

    def _dataset(self, read: Callable[[int], Any], blocks: list[int]):
        from_map = importlib.import_module("dask.dataframe").from_map
        # Dask's name for the data. Without one, Dask pickles and hashes all that `read` refers to.
        token = uuid.uuid4().hex
        sample = read(blocks[0])[:1]
        frames = from_map(read, blocks, meta=sample[:0], token=token, enforce_metadata=False)
        return self._nvt.Dataset(frames, schema=self._nvt.Dataset(sample).schema)

    def _read(self, block: int, columns: list[str]):
        return self._library.read_parquet(self._blocks.files[block], columns=columns)

    def _positives(self, block: int, columns: list[str]):
        """``columns`` of a block's rows whose rating reaches the threshold."""
        if self._threshold is None:
            return self._read(block, columns)
        workflow = self._nvt.Workflow(self._filtered(columns))
        rows = self._read(block, [*columns, "rating"])
        workflow.fit_schema(self._nvt.Dataset(rows[:0]).schema)
        return workflow.transform(rows)

    def _filtered(self, columns: list[str]):
        """Graph node of :meth:`_positives`."""
        if self._threshold is None:
            return columns
        threshold = self._threshold
        # A lambda: it is pickled with its code, so that the saved workflow loads without this project.
        positive = self._nvt.ops.Filter(f=lambda rows: rows["rating"] >= threshold)
        return ([*columns, "rating"] >> positive)[columns]

    def _each(self, work: Callable[[int], Any], blocks: Iterable[int]) -> Iterator[Any]:
        """``work`` on every block, in order, a few at a time."""
        with ThreadPoolExecutor(THREADS) as pool:
            yield from pool.map(work, blocks)


def _only(rows, chosen: Array):
    """``rows[chosen]``, without a copy where that is all of them (most blocks of most data)."""
    return rows if chosen.all() else rows[chosen]
