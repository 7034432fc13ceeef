"""A hash of integers, the same on every processor: for buckets, and for splits that are functions of ids.

The finalizer of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014):
unsigned 64-bit additions, shifts and products, which NumPy and CuPy do alike (pandas' and cuDF's own hashes
differ from each other).
"""

from typing import Any

import numpy as np

_WORD = (1 << 64) - 1

Array = Any  # numpy.ndarray or cupy.ndarray


def mixed(ids: Array) -> Array:
    """The hash of int64 ids: uint64 of the same shape."""
    x = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def drawn(ids: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """64 random bits per id, a function of seed, stream and id alone: uint64 of the same shape."""
    start = mixed(np.array([(seed + (stream << 32)) & _WORD], np.uint64))
    return mixed(ids.astype(np.uint64) ^ start)


def uniform(ids: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """float64 in [0, 1) per id (see :func:`drawn`)."""
    return (drawn(ids, seed, stream) >> np.uint64(11)) * 2.0**-53
