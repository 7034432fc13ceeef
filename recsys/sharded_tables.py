"""Embedding tables whose rows are dealt to the ranks: row ``i`` is on rank ``i % ranks``, at ``i // ranks``.

A step asks the owners for the rows of its batch and hands their gradients back, both with alltoall: a rank
holds, updates and sends no more than its share, where data-parallel training holds every table on every rank
and sums gradients of the tables' whole size. Dealing row by row spreads popular ids evenly.

TensorFlow only; collective, as :mod:`recsys.distributed`.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from recsys import counter_random, distributed


def rows_here(rows: int) -> int:
    """Rows of each rank's shard of a table; the last row of some stays unused."""
    return -(-rows // distributed.size())


class RowNormal(keras.initializers.Initializer):
    """N(0, stddev) for a shard. A row is a function of its id, so any number of ranks starts with one table.

    Args:
        seed: of the table.
    """

    def __init__(self, stddev: float, seed: int):
        self.stddev, self.seed = stddev, counter_random.step_seed(seed, 0)

    def __call__(self, shape, dtype=None):
        ids = ops.arange(shape[0], dtype="int32") * distributed.size() + distributed.rank()
        counter = ids[:, None] * np.int32(shape[1]) + ops.arange(shape[1], dtype="int32")
        return ops.cast(self.stddev * counter_random.normal(counter, self.seed, 0), dtype or "float32")


def fetch(shards: list[Any], ids: Any) -> tuple[Any, Any]:
    """Rows of tables that share their ids, from whoever owns them.

    Args:
        shards: float32 (rows, width), this rank's shards.
        ids: int32, of any shape.
    Returns:
        rows of the distinct ids, (distinct, sum of widths), and the place of each id among them.
    """
    import tensorflow as tf

    ranks = distributed.size()
    distinct, place = tf.unique(tf.reshape(ids, [-1]))
    owner = distinct % ranks
    by_owner = tf.argsort(owner)
    counts = tf.math.bincount(owner, minlength=ranks, maxlength=ranks)
    asked, asked_counts = distributed.alltoall(tf.gather(distinct, by_owner) // ranks, counts)
    answers = tf.concat([tf.gather(shard, asked) for shard in shards], axis=1)
    rows, _ = distributed.alltoall(answers, asked_counts)
    rows = tf.ensure_shape(rows, [None, sum(shard.shape[1] for shard in shards)])
    return tf.gather(rows, tf.math.invert_permutation(by_owner)), tf.reshape(place, ids.shape)


def deal(table: np.ndarray | None, like: Any) -> Any:
    """This rank's shard of a table that the first rank holds; ``like`` is a variable of the shard's shape."""
    ranks, (rows, width) = distributed.size(), like.shape
    counts = np.full(ranks, rows if table is not None else 0, np.int32)
    dealt = np.zeros((counts.sum(), width), like.dtype)
    if table is not None:
        for rank in range(ranks):
            own = table[rank::ranks]
            dealt[rank * rows : rank * rows + len(own)] = own
    return distributed.alltoall(ops.convert_to_tensor(dealt), counts)[0]


def collect(shard: Any, rows: int) -> np.ndarray | None:
    """The whole table of ``rows`` rows, on the first rank."""
    counts = np.zeros(distributed.size(), np.int32)
    counts[0] = shard.shape[0]
    table = ops.convert_to_numpy(distributed.alltoall(ops.convert_to_tensor(shard), counts)[0])
    if not distributed.is_first():
        return None
    by_rank = table.reshape(distributed.size(), shard.shape[0], -1)
    return by_rank.transpose(1, 0, 2).reshape(-1, shard.shape[1])[:rows]
