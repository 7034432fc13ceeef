"""Leave-one-out evaluation: one positive of each user, ranked among sampled negatives."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.step import UserError


@dataclass(frozen=True)
class Series:
    """Candidates of a leave-one-out mapping, the positive first.

    Attributes:
        user: int32, (series,).
        item: int32, (series, candidates).
        valid: bool, (series, candidates); False where an item stands again or equals the positive.
    """

    user: np.ndarray
    item: np.ndarray
    valid: np.ndarray


def candidate_series(
    where: str, length: Any, user: np.ndarray, item: np.ndarray, label: np.ndarray
) -> Series:
    """Cuts rows into series of ``length``.

    Args:
        where: the mapping, for messages.
        length: ``test_samples_per_series`` of the dataset.
    Raises:
        UserError: the rows do not make whole series of one user and one positive each.
    """
    if not isinstance(length, int) or length < 1:
        raise UserError(f"{where}: metadata needs test_samples_per_series, the rows of each candidate list")
    if not len(user) or len(user) % length:
        raise UserError(
            f"{where}: {len(user)} rows are not whole series of {length} (test_samples_per_series)"
        )
    user, item, label = (column.reshape(-1, length) for column in (user, item, label))
    faulty = np.flatnonzero(((label > 0).sum(axis=1) != 1) | (user != user[:, :1]).any(axis=1))
    if len(faulty):
        raise UserError(f"{where}: series {faulty[0]} must have one user and exactly one row with label 1")
    order = np.argsort(-label, axis=1, kind="stable")
    item = np.take_along_axis(item, order, axis=1)
    # An item counts once however often it was drawn, and the positive is never its own competitor.
    ascending = np.argsort(item, axis=1, kind="stable")
    ranked = np.take_along_axis(item, ascending, axis=1)
    repeated = np.zeros(item.shape, bool)
    np.put_along_axis(repeated, ascending[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    return Series(user[:, 0].copy(), item, ~repeated)
