"""Ranking metrics from ranks, in float64 on the host.

A rank is 1-based and pessimistic: an item stands behind every other candidate with the same score, so a
constant model scores nothing (the rule MLPerf asks for, mlcommons/training_policies#131). NaN scores count
as ties. Everything here sums over users, so the size of the evaluation batch cannot change a metric.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

MISS = np.iinfo(np.int64).max


def hit_rate(ranks: np.ndarray, k: int) -> float:
    """HR@k with one relevant item per user: the share of users whose item is in the top k.

    Args:
        ranks: int, shape (users,), the 1-based rank of each user's item.
    """
    return float(np.mean(ranks <= k))


def leave_one_out_ndcg(ranks: np.ndarray, k: int) -> float:
    """NDCG@k with one relevant item per user, mean of 1 / log2(rank + 1); the ideal DCG is 1."""
    return float(np.mean(np.where(ranks <= k, 1.0 / np.log2(np.minimum(ranks, k) + 1.0), 0.0)))


@dataclass(frozen=True)
class TopK:
    """What a top-k metric of many relevant items per user needs, for one batch of users.

    Attributes:
        values: float, (users, k), the k largest scores, descending; already seen items are -inf.
        ties: int, (users,), how many items of the whole catalogue score exactly ``values[:, -1]``.
        row: int, (targets,), the user of each held-out item.
        scores: float, (targets,), its score.
    """

    values: np.ndarray
    ties: np.ndarray
    row: np.ndarray
    scores: np.ndarray

    def ranks(self) -> np.ndarray:
        """Rank of every held-out item among all unseen items, (targets,); ``MISS`` beyond the top k."""
        order = np.lexsort((-self.scores, self.row))
        row, score = self.row[order], self.scores[order]
        first_of_row = np.searchsorted(row, row, side="left")
        place = np.arange(len(row)) - first_of_row
        changes = (np.diff(row) != 0) | (np.diff(score) != 0)
        group = np.concatenate([[0], np.cumsum(changes)]) if len(row) else np.zeros(0, int)
        targets_not_below = np.searchsorted(group, group, side="right") - first_of_row
        values, last = self.values[row], self.values[row, -1]
        not_below = np.where(
            score > last,
            (values >= score[:, None]).sum(axis=1),
            (values > last[:, None]).sum(axis=1) + self.ties[row],
        )
        ranks = np.empty(len(row), np.int64)
        ranks[order] = np.where(score >= last, not_below - targets_not_below + place + 1, MISS)
        return ranks


@dataclass(frozen=True)
class HeldOut:
    """Ranks of held-out items of many users: shape (targets,) each, ``users`` counts users with any."""

    ranks: np.ndarray
    row: np.ndarray
    users: int

    @classmethod
    def join(cls, batches: Iterable[TopK]) -> "HeldOut":
        """Puts batches together; users without a held-out item do not count."""
        ranks: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        users = 0
        for batch in batches:
            ranks.append(batch.ranks())
            names, row = np.unique(batch.row, return_inverse=True)
            rows.append(row + users)
            users += len(names)
        return cls(np.concatenate(ranks or [np.zeros(0)]), np.concatenate(rows or [np.zeros(0, int)]), users)

    def ndcg(self, k: int) -> float:
        """NDCG@k: DCG over the ideal DCG of min(k, held-out items), mean over users.

        Source: Liang et al., "Variational Autoencoders for Collaborative Filtering" (2018).
        """
        gains = np.where(self.ranks <= k, 1.0 / np.log2(np.minimum(self.ranks, k) + 1.0), 0.0)
        dcg = np.bincount(self.row, gains, minlength=self.users)
        ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(1, k + 1) + 1.0))])
        return float(np.mean(dcg / ideal[np.minimum(self._relevant(), k)]))

    def recall(self, k: int) -> float:
        """Recall@k: hits in the top k over min(k, held-out items), mean over users (same source)."""
        hits = np.bincount(self.row, self.ranks <= k, minlength=self.users)
        return float(np.mean(hits / np.minimum(self._relevant(), k)))

    def _relevant(self) -> np.ndarray:
        return np.bincount(self.row, minlength=self.users)
