"""Ranking metrics on values worked by hand and against a brute-force ranking."""

import numpy as np
import pytest

from recsys.metrics import HeldOut, TopK, hit_rate, leave_one_out_ndcg


def test_leave_one_out_values_worked_by_hand():
    ranks = np.array([1, 2, 11, 10])
    assert hit_rate(ranks, 10) == 0.75
    expected = (1.0 + 1 / np.log2(3) + 0.0 + 1 / np.log2(11)) / 4
    assert leave_one_out_ndcg(ranks, 10) == pytest.approx(expected)
    assert leave_one_out_ndcg(np.array([2]), 10) == pytest.approx(0.6309, abs=1e-4)


def brute_force_ranks(scores, row, item):
    """1-based ranks: other items with the same score go first, held-out items tie in their own order."""
    ranks = []
    for u, i in zip(row, item, strict=True):
        relevant = set(item[row == u])
        others = sum(scores[u, j] >= scores[u, i] for j in range(scores.shape[1]) if j not in relevant)
        ahead = sum(scores[u, j] > scores[u, i] for j in relevant)
        tied = [j for j in item[row == u] if scores[u, j] == scores[u, i]]
        ranks.append(others + ahead + tied.index(i) + 1)
    return np.array(ranks)


def top_k(scores, row, item, k):
    values = -np.sort(-scores, axis=1)[:, :k]
    return TopK(values, (scores == values[:, -1:]).sum(axis=1), row, scores[row, item])


@pytest.mark.parametrize("levels", [2, 5, 1000], ids=["nearly all tied", "many ties", "hardly any tie"])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_ranks_from_the_top_k_equal_a_brute_force_ranking_of_everything(levels, k):
    generator = np.random.default_rng(levels + k)
    scores = generator.integers(0, levels, (50, 20)).astype(float)
    chosen = generator.random(scores.shape) < 0.2
    row, item = np.nonzero(chosen)
    ranks = top_k(scores, row, item, k).ranks()
    expected = brute_force_ranks(scores, row, item)
    inside = expected <= k
    assert np.array_equal(ranks[inside], expected[inside])
    assert (ranks[~inside] > k).all()


def test_a_constant_model_scores_nothing():
    scores = np.zeros((3, 30))
    row, item = np.array([0, 1, 2]), np.array([0, 15, 29])
    assert (top_k(scores, row, item, 10).ranks() > 10).all()


def test_held_out_metrics_on_the_references_toy():
    # Two users with held-out items; one hits at ranks 1 and 3 of two items, the other at rank 2 of one.
    joined = HeldOut(np.array([1, 3, 2]), np.array([0, 0, 1]), 2)
    first = (1 + 1 / np.log2(4)) / (1 + 1 / np.log2(3))
    second = 1 / np.log2(3)
    assert first == pytest.approx(0.91972, abs=1e-5)
    assert second == pytest.approx(0.63093, abs=1e-5)
    assert joined.ndcg(100) == pytest.approx((first + second) / 2)
    assert joined.recall(20) == 1.0
    assert joined.recall(1) == pytest.approx((1 / 1 + 0) / 2)


def test_the_ideal_is_truncated_at_k_and_users_without_items_do_not_count():
    joined = HeldOut.join(
        [
            TopK(
                np.array([[9.0, 8.0], [1.0, 0.0]]),
                np.array([1, 1]),
                np.zeros(3, int),
                np.array([9.0, 8.0, 1.0]),
            )
        ]
    )
    assert joined.users == 1
    assert joined.ndcg(2) == pytest.approx(1.0)
    assert joined.recall(2) == pytest.approx(1.0)


def test_metrics_do_not_depend_on_how_users_are_batched():
    generator = np.random.default_rng(3)
    scores = generator.integers(0, 50, (40, 60)).astype(float)
    chosen = generator.random(scores.shape) < 0.1

    def measure(size):
        parts = []
        for start in range(0, 40, size):
            row, item = np.nonzero(chosen[start : start + size])
            parts.append(top_k(scores[start : start + size], row, item, 10))
        return HeldOut.join(parts).ndcg(10), HeldOut.join(parts).recall(5)

    assert measure(40) == pytest.approx(measure(7), abs=1e-12)
    assert measure(40) == pytest.approx(measure(1), abs=1e-12)
