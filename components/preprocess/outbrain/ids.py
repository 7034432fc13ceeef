"""Integer ids: hashed by one rule on CPU and GPU, and looked up.

The hash is the finalizer of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", 2014): unsigned 64-bit additions, shifts and products, which NumPy and CuPy do alike (pandas' and
cuDF's own hashes differ from each other). A bucket is that hash modulo the number of buckets; a missing
value, -1, is hashed like any other. Texts first become integers: see :func:`text_keys`.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from recsys.arrays import array_module

MISSING = -1
SPARSEST = 16  # numbers per id, up to which an index keeps a table of them: 64 bytes per id
_WORD = (1 << 64) - 1

Array = Any  # numpy.ndarray or cupy.ndarray


def mixed(ids: Array) -> Array:
    """The hash of int64 ids: uint64 of the same shape."""
    x = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bucket(ids: Array, buckets: int) -> Array:
    """The bucket of each id: int32 in ``0 .. buckets - 1``."""
    return (mixed(ids) % np.uint64(buckets)).astype(np.int32)


def drawn(ids: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """64 random bits per id, a function of seed, stream and id alone: uint64 of the same shape."""
    start = mixed(np.array([(seed + (stream << 32)) & _WORD], np.uint64))
    return mixed(ids.astype(np.uint64) ^ start)


def uniform(ids: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """float64 in [0, 1) per id (see :func:`drawn`)."""
    return (drawn(ids, seed, stream) >> np.uint64(11)) * 2.0**-53


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
