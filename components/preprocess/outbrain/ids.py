"""Integer ids: hashed by one rule on CPU and GPU, and looked up.

A bucket is the hash of an id (:mod:`components.preprocess.hashing`) modulo the number of buckets; a missing
value, -1, is hashed like any other. Texts first become integers: see :func:`text_keys`.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from components.preprocess.hashing import mixed
from recsys.arrays import array_module

MISSING = -1
SPARSEST = 16  # numbers per id, up to which an index keeps a table of them: 64 bytes per id

Array = Any  # numpy.ndarray or cupy.ndarray


def bucket(ids: Array, buckets: int) -> Array:
    """The bucket of each id: int32 in ``0 .. buckets - 1``."""
    return (mixed(ids) % np.uint64(buckets)).astype(np.int32)


def text_keys(texts: Iterable[str]) -> np.ndarray:
    """An int64 key per text: its 8-byte BLAKE2b digest (UTF-8, little-endian)."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "<i8")


class Index:
    """Where ids stand in an ascending list of distinct ones.

    Args:
        ids: at least 0, ascending, int64 (n,).
    """

    def __init__(self, ids: Array):
        xp = array_module(ids)
        self.ids = ids
        self._direct = None
        largest = int(ids[-1]) if len(ids) else -1
        if largest < SPARSEST * len(ids):  # a table of all numbers: many times faster than a search
            self._direct = xp.full(largest + 2, len(ids), np.int32)
            self._direct[ids] = xp.arange(len(ids), dtype=np.int32)

    def __call__(self, wanted: Array) -> Array:
        """The position of each wanted id, ``n`` where it is not listed."""
        xp = array_module(wanted)
        if self._direct is not None:
            # As an unsigned number, a negative id is a large one.
            beyond = np.uint64(len(self._direct) - 1)
            return xp.asarray(self._direct)[xp.minimum(wanted.astype(np.uint64), beyond)]
        ids = xp.asarray(self.ids)
        found = xp.searchsorted(ids, wanted)
        found[ids[xp.minimum(found, len(ids) - 1)] != wanted] = len(ids)
        return found
