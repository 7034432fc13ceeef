"""Ranking metrics on values worked by hand and against a brute-force ranking."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from recsys.metrics import Clicks, HeldOut, TopK, hit_rate, leave_one_out_ndcg


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


def clicks(seed, rows, groups, levels=None):
    generator = np.random.default_rng(seed)
    labels = generator.random(rows) < 0.3
    logits = generator.normal(size=rows) + labels
    if levels:
        logits = np.round(logits * levels) / levels  # ties
    return Clicks(logits, labels.astype(np.float32), generator.integers(0, groups, rows))


@pytest.mark.parametrize("levels", [None, 1, 5])
@pytest.mark.parametrize("rows", [10, 1000, 20_011])
def test_auc_and_log_loss_equal_those_of_scikit_learn(rows, levels):
    sample = clicks(rows, rows, 5, levels)
    assert sample.auc() == pytest.approx(roc_auc_score(sample.labels, sample.logits), abs=1e-12)
    probability = 1 / (1 + np.exp(-sample.logits))
    assert sample.log_loss() == pytest.approx(log_loss(sample.labels, probability), rel=1e-9)


def test_average_precision_equals_that_of_scikit_learn_where_nothing_is_cut_off_or_tied():
    sample = clicks(1, 5000, 300)
    expected = [
        average_precision_score(sample.labels[rows], sample.logits[rows])
        for rows in (sample.groups == group for group in range(300))
        if sample.labels[rows].any()
    ]
    assert sample.mean_average_precision(100) == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("logits", "labels", "groups", "k", "value"),
    [
        ([3, 2, 1], [0, 1, 0], [7, 7, 7], 12, 1 / 2),
        ([3, 2, 1, 0.5, 9], [0, 1, 0, 1, 0], [7, 7, 7, 8, 8], 12, (1 / 2 + 1 / 2) / 2),
        ([1, 1, 1], [1, 0, 0], [7, 7, 7], 12, 1 / 3),  # ties are pessimistic
        ([3, 2, 1], [1, 0, 1], [7, 7, 7], 12, (1 + 2 / 3) / 2),
        ([3, 2, 1], [0, 0, 1], [7, 7, 7], 2, 0.0),  # beyond k
        ([3, 2, 1], [1, 1, 1], [7, 7, 7], 2, 1.0),  # at most k can be found
        ([3, 2, 1, 5], [0, 1, 0, 0], [7, 7, 7, 8], 12, 1 / 2),  # a group without a positive does not count
        ([np.nan, 2, 1], [1, 0, 0], [7, 7, 7], 12, 1 / 3),
    ],
)
def test_map_by_hand(logits, labels, groups, k, value):
    sample = Clicks(np.array(logits, float), np.array(labels), np.array(groups))
    assert sample.mean_average_precision(k) == pytest.approx(value)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("batch", [1, 17, 500])
def test_shares_of_ranks_and_batches_join_to_the_same_metrics(ranks, batch):
    """Groups are cut by batches and by ranks, which interleave their rows."""
    whole = clicks(5, 3000, 400, 5)
    columns = (whole.logits, whole.labels, whole.groups)
    shares = [
        [Clicks(*(c[rank::ranks][start : start + batch] for c in columns)) for start in range(0, 3000, batch)]
        for rank in range(ranks)
    ]
    joined = Clicks.join(part for share in shares for part in share if len(part.labels))
    assert joined.mean_average_precision(12) == pytest.approx(whole.mean_average_precision(12), abs=1e-12)
    assert joined.auc() == pytest.approx(whole.auc(), abs=1e-12)
    assert joined.log_loss() == pytest.approx(whole.log_loss(), abs=1e-12)


def test_nan_is_the_worst_score_for_auc_too():
    assert Clicks(np.array([np.nan, 0.0]), np.array([1, 0])).auc() == 0.0
    assert Clicks(np.array([5.0, np.nan]), np.array([1, 0])).auc() == 0.0
