"""Counter-based random numbers: distribution, independence of streams, the exact expectation of dropout."""

import numpy as np
import pytest
from keras import ops

from recsys import counter_random

COUNTER = np.arange(200_000, dtype=np.int32)


def test_numbers_are_uniform_and_streams_and_seeds_are_uncorrelated():
    streams = [
        np.asarray(counter_random.uniform(COUNTER, np.int32(seed), stream))
        for seed, stream in ((1, 0), (1, 1), (2, 0), (3, 5))
    ]
    for values in streams:
        assert 0 < values.min() < values.max() < 1
        counts = np.histogram(values, 100, (0, 1))[0]
        # Chi-square with 99 degrees of freedom: 170 has probability 1e-5.
        assert ((counts - 2000) ** 2 / 2000).sum() < 170
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01
    assert np.abs(np.corrcoef(streams) - np.eye(4)).max() < 0.01


def test_integers_cover_the_range_evenly():
    drawn = np.asarray(counter_random.integers(COUNTER, np.int32(9), 0, 37))
    counts = np.bincount(drawn, minlength=37)
    assert len(counts) == 37
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 90


def test_normal_numbers_have_the_moments_of_a_standard_normal():
    values = np.asarray(counter_random.normal(COUNTER, np.int32(4), 3))
    moments = [values.mean(), values.var(), (values**3).mean(), (values**4).mean()]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.06)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("units", [64, 20], ids=["whole words", "a part of a word"])
def test_dropout_drops_the_rate_and_keeps_the_mean(rate, units):
    row = np.arange(20_000, dtype=np.int32)
    values = np.asarray(counter_random.dropout(ops.ones((20_000, units)), row, np.int32(5), 1, rate))
    assert (values == 0).mean() == pytest.approx(rate, abs=0.004)
    assert values.mean() == pytest.approx(1.0, abs=0.01)
    assert np.abs(np.corrcoef((values[:, :20] == 0).T) - np.eye(20)).max() < 0.04


def test_a_row_keeps_its_mask_wherever_it_stands():
    whole = np.asarray(
        counter_random.dropout(ops.ones((10, 64)), np.arange(10, dtype=np.int32), np.int32(5), 1, 0.5)
    )
    part = np.asarray(
        counter_random.dropout(ops.ones((3, 64)), np.array([7, 2, 9], np.int32), np.int32(5), 1, 0.5)
    )
    assert np.array_equal(part, whole[[7, 2, 9]])


def test_step_seeds_differ_by_step_and_by_run():
    seeds = {int(counter_random.step_seed(seed, step)) for seed in range(20) for step in range(50)}
    assert len(seeds) == 1000
