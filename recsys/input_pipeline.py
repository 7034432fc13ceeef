"""From a prepared dataset to batches of indices.

The interactions go to the device once (:class:`Csr` or plain columns); a training step then receives only the
indices of its examples. Batches have one static shape, so that a step compiles once: the last batch of an
epoch is filled up with examples of weight 0, and none is dropped.

The global batch is the same for any number of ranks. Each takes a contiguous share of it, and the place in
the global batch is the counter of dropout and negatives: the ranks draw together what one would draw alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recsys import distributed
from recsys.step import UserError


@dataclass(frozen=True)
class Csr:
    """Items of each row (user): ``items[indptr[r]:indptr[r + 1]]``, ascending within the row.

    Attributes:
        indptr: int32, (rows + 1,).
        items: int32, (interactions,).
    """

    indptr: np.ndarray
    items: np.ndarray

    @classmethod
    def from_pairs(cls, row: np.ndarray, item: np.ndarray, rows: int) -> "Csr":
        """Groups (row, item) pairs by row; ``row`` holds 0 .. rows-1 in any order."""
        order = np.lexsort((item, row))
        counts = np.bincount(row, minlength=rows)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), item[order].astype(np.int32))

    @property
    def rows(self) -> int:
        return len(self.indptr) - 1

    def row(self) -> np.ndarray:
        """Row of each interaction, int64, (interactions,)."""
        return np.repeat(np.arange(self.rows), self.lengths())

    def lengths(self) -> np.ndarray:
        """Items per row, int32, (rows,)."""
        return np.diff(self.indptr)


@dataclass(frozen=True)
class Batch:
    """Indices of one global batch, or of one rank's share of it.

    Attributes:
        index: int32, (rows,), which examples.
        weight: float32, (rows,), 1 for an example and 0 for filling.
        sample: int32, (rows,), place in the global batch, the counter of per-sample randomness.
        examples: how many examples of weight 1 the *global* batch has.
    """

    index: np.ndarray
    weight: np.ndarray
    sample: np.ndarray
    examples: int


def steps_per_epoch(examples: int, per_batch: int) -> int:
    """Number of batches that hold every example once."""
    return -(-examples // per_batch)


def epoch_batches(examples: int, per_batch: int, seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
    """Batches of one epoch, in an order that depends on (seed, epoch) only.

    Args:
        examples: how many there are.
        per_batch: rows of each batch.
        first: batches to skip, for resuming within an epoch.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(np.arange(examples, dtype=np.int32))
    sample = np.arange(per_batch, dtype=np.int32)
    for start in range(first * per_batch, examples, per_batch):
        index = order[start : start + per_batch]
        weight = (sample < len(index)).astype(np.float32)
        yield Batch(np.resize(index, per_batch), weight, sample, len(index))


def share_of(rows: int, micro_batch: int) -> tuple[int, int]:
    """Rows of each rank's share of a global batch, and the micro-batch, which divides them.

    The shares are filled up to a common size. The micro-batch is as near below the given one as wastes least;
    one rank keeps both.

    Args:
        rows: of the global batch.
        micro_batch: rows that run through the dense layers at once, 0 for all.
    Raises:
        UserError: there are more ranks than rows.
    """
    ranks = distributed.size()
    if rows < ranks:
        raise UserError(f"hyperparameters: a batch of {rows} examples cannot be shared by {ranks} workers")
    share = -(-rows // ranks)
    if not micro_batch:
        return share, 0
    fewest = -(-share // micro_batch)
    parts = next((parts for parts in range(fewest, 2 * fewest) if share % parts == 0), fewest)
    micro_batch = -(-share // parts)
    return parts * micro_batch, micro_batch


def own_share(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """This rank's share of each global batch, filled up to ``rows`` with examples of weight 0."""
    rank, ranks = distributed.rank(), distributed.size()
    for batch in batches:
        start, stop = (len(batch.index) * number // ranks for number in (rank, rank + 1))
        weight = np.zeros(rows, np.float32)
        weight[: stop - start] = batch.weight[start:stop]
        sample = start + np.arange(rows, dtype=np.int32)
        yield Batch(np.resize(batch.index[start:stop], rows), weight, sample, batch.examples)


def user_batches(users: int, per_batch: int) -> Iterator[np.ndarray]:
    """Consecutive row numbers for evaluation, int32; the last batch may be shorter."""
    for start in range(0, users, per_batch):
        yield np.arange(start, min(start + per_batch, users), dtype=np.int32)
