"""Random numbers that are a function of (seed, counter), in plain 32-bit integer arithmetic.

A stateful generator gives another stream to every backend, device and sharding. Here the bits of one sample
depend on its counter only, so dropout and negative sampling are the same on one rank or four, after a
resume, and on TensorFlow, JAX and PyTorch; and they cost a handful of integer operations that fuse into
their neighbours, where the frameworks' generators are a noticeable part of a CPU training step.

The mixer is ``lowbias32`` (C. Wellons, "Prospecting for hash functions", 2018): two multiply-xorshift rounds
with an avalanche bias of 0.17. Good for sampling; not for cryptography.
"""

import numpy as np
from keras import ops

_GOLDEN = np.int32(-1640531527)  # 2**32 / golden ratio: consecutive counters start far apart
_MULTIPLIER_1 = np.int32(0x7FEB352D)
_MULTIPLIER_2 = np.int32(-2073452917)  # 0x846CA68B
_POSITIVE = np.int32(0x7FFFFFFF)


def step_seed(seed: int, step: int) -> np.int32:
    """The int32 seed of one training step, mixed on the host from the run's seed and the step number."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint32)
    return state.view(np.int32)[0]


def bits(counter, seed, stream: int):
    """32 random bits per counter.

    Args:
        counter: int32 tensor of any shape.
        seed: int32 scalar tensor.
        stream: distinguishes independent uses of the same counters.
    Returns:
        int32 tensor of the counter's shape, all 32 bits random.
    """
    x = counter * _GOLDEN + (seed ^ np.int32(stream * 0x3C6EF372 & 0x7FFFFFFF))
    x = x ^ _logical_shift(x, 16)
    x = x * _MULTIPLIER_1
    x = x ^ _logical_shift(x, 15)
    x = x * _MULTIPLIER_2
    return x ^ _logical_shift(x, 16)


def integers(counter, seed, stream: int, high):
    """Integers in [0, high), ``high`` an int or an int32 tensor of at least 1; bias below high / 2**31."""
    return ops.mod(bits(counter, seed, stream) & _POSITIVE, high)


def uniform(counter, seed, stream: int):
    """float32 in (0, 1): the middle of one of 2**23 equal bins, never 0 or 1."""
    return (ops.cast(_logical_shift(bits(counter, seed, stream), 9), "float32") + 0.5) * np.float32(2.0**-23)


def normal(counter, seed, stream: int):
    """float32 standard normal numbers (Box and Muller, 1958)."""
    radius = ops.sqrt(-2.0 * ops.log(uniform(counter, seed, 2 * stream)))
    return radius * ops.cos(np.float32(2 * np.pi) * uniform(counter, seed, 2 * stream + 1))


def dropout(values, row, seed, stream: int, rate: float):
    """Inverted dropout of a matrix.

    One hash serves 32 units when ``rate`` is 0.5 and four units otherwise: the rate is then rounded to a
    multiple of 1/256, and the scale is that of the rounded rate, so the expectation is exact.

    Args:
        values: float tensor of shape (rows, units).
        row: int32 tensor of shape (rows,), the counter of each row.
    """
    if rate == 0.0:
        return values
    units = values.shape[-1]
    per_word, threshold = (32, 1) if rate == 0.5 else (4, max(1, min(255, round(rate * 256))))
    width = 32 // per_word
    words = -(-units // per_word)
    hashed = bits(row[:, None] * np.int32(words) + ops.arange(words, dtype="int32"), seed, stream)
    shifts = ops.arange(per_word, dtype="int32") * np.int32(width)
    drawn = ops.right_shift(hashed[:, :, None], shifts) & np.int32((1 << width) - 1)
    drawn = ops.reshape(drawn, (-1, words * per_word))[:, :units]
    scale = (1 << width) / ((1 << width) - threshold)
    return values * ops.cast(drawn >= threshold, values.dtype) * ops.cast(scale, values.dtype)


def _logical_shift(x, places: int):
    return ops.right_shift(x, np.int32(places)) & np.int32((1 << (32 - places)) - 1)
