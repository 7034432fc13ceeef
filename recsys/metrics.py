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


@dataclass(frozen=True)
class Clicks:
    """Scores of rows with a binary label: a whole held-out mapping, or a part of one.

    Attributes:
        logits: float, (rows,).
        labels: (rows,), 0 or 1.
        groups: int, (rows,), whose rows are ranked against each other; None where there are no groups.
    """

    logits: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None

    @classmethod
    def join(cls, parts: Iterable["Clicks"]) -> "Clicks":
        """Puts batches, or the shares of ranks, together; their order cannot change a metric."""
        parts = list(parts)
        groups = [part.groups for part in parts if part.groups is not None]
        return cls(
            np.concatenate([part.logits for part in parts]).astype(np.float64),
            np.concatenate([part.labels for part in parts]) > 0,
            np.concatenate(groups) if groups else None,
        )

    def auc(self) -> float:
        """Area under the ROC curve, exactly: the share of (positive, negative) pairs in the right order.

        A pair with equal scores counts half. NaN is the worst score of a positive, the best of a negative.
        """
        positive = self.labels > 0
        worst = np.where(positive, -np.inf, np.inf)
        scores = np.where(np.isnan(self.logits), worst, self.logits)
        _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
        middle = np.cumsum(counts) - (counts - 1) / 2.0  # mean 1-based rank of each distinct score
        n = int(positive.sum())
        above = middle[place[positive]].sum() - n * (n + 1) / 2.0
        return float(above / (n * (len(positive) - n)))

    def log_loss(self) -> float:
        """Mean binary cross-entropy in nats, from logits, so that a certain mistake stays finite."""
        x = self.logits.astype(np.float64)
        return float(np.mean(np.maximum(x, 0.0) - x * self.labels + np.log1p(np.exp(-np.abs(x)))))

    def mean_average_precision(self, k: int) -> float:
        """MAP@k over the groups that have a positive.

        AP@k is the sum over a group's positives of the precision at their rank, as far as that is at most k,
        divided by min(k, positives). With one positive (Outbrain) it is 1 / rank. A positive stands behind
        every negative with the same score.
        """
        if self.groups is None:
            raise ValueError("these rows have no groups to rank within")
        scores = np.where(np.isnan(self.logits), -np.inf, self.logits)
        order = np.lexsort((self.labels, -scores, self.groups))
        group, label = self.groups[order], self.labels[order] > 0
        first = np.concatenate([[True], group[1:] != group[:-1]])
        number = np.cumsum(first) - 1
        start = np.flatnonzero(first)
        rank = np.arange(len(group)) - start[number] + 1
        hits = np.cumsum(label)
        hits = hits - (hits[start] - label[start])[number]
        positives = np.bincount(number, label)
        precision = np.where(label & (rank <= k), hits / rank, 0.0)
        average = np.bincount(number, precision) / np.minimum(np.maximum(positives, 1), k)
        return float(average[positives > 0].mean())
