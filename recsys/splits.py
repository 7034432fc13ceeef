"""Splits of (user, item) interactions into training and held-out data.

Pure functions on arrays: NumPy or CuPy, whichever they are given (:mod:`recsys.arrays`). ``rng`` is always a
seeded ``numpy.random.Generator``, so that the same seed gives the same split on both.

* Leave-one-out with sampled negatives: He et al., "Neural Collaborative Filtering", WWW 2017, and the
  preparation of NVIDIA's NCF references.
* Held-out users with fold-in: Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW 2018,
  and the preparation of NVIDIA's VAE-CF reference.
"""

from typing import Any

import numpy as np

from recsys.arrays import array_module, to_numpy

TRAIN, VALIDATION, TEST = 0, 1, 2
MIN_ITEMS_TO_HOLD_OUT = 5
USERS_AT_ONCE = 10_000  # of the negatives' working arrays: 8 MB each with 100 negatives

Array = Any  # numpy.ndarray or cupy.ndarray


def earliest_interactions(user: Array, item: Array, n_items: int, timestamp: Array | None = None) -> Array:
    """Orders interactions by user and time and keeps the earliest of each (user, item) pair.

    Equal times keep their order in the file (both references sort unstably here, which makes their split
    depend on the pandas version).

    Args:
        user, item: int32 ids, shape (rows,), in file order.
        n_items: item ids are below this.
        timestamp: any ordered number, shape (rows,); ``None`` means that file order is time order.
    Returns:
        int64 row numbers: sorted by user, then by time, no pair twice.
    """
    xp = array_module(user)
    order = _by_user_and_time(user, timestamp)
    pair = user[order].astype(np.int64) * n_items + item[order]
    in_order = xp.sort(pair, kind="stable")
    if not (in_order[1:] == in_order[:-1]).any():
        return order  # the usual case, and the cheaper sort
    del in_order
    by_pair = xp.argsort(pair, kind="stable")
    pair = pair[by_pair]
    repeated = xp.zeros(len(pair), bool)
    repeated[by_pair[1:]] = pair[1:] == pair[:-1]
    return order[~repeated]


def _by_user_and_time(user: Array, timestamp: Array | None) -> Array:
    xp = array_module(user)
    if timestamp is None:
        return xp.argsort(user, kind="stable")
    if timestamp.dtype.kind == "i" and len(user):
        low, high = int(timestamp.min()), int(timestamp.max())
        if (int(user.max()) + 1) * (high - low + 1) < 2**63:
            # Both in one number: one sort, several times faster where the file is grouped by user.
            return xp.argsort(user.astype(np.int64) * (high - low + 1) + (timestamp - low), kind="stable")
    order = xp.argsort(timestamp, kind="stable")
    return order[xp.argsort(user[order], kind="stable")]


def can_be_tested(user: Array, n_users: int, n_items: int) -> tuple[Array, Array]:
    """Which users leave-one-out can hold an item out of.

    A user with one interaction would have nothing to train on. A user with every item has no item that could
    serve as a negative (the references loop for ever there).

    Args:
        user: int32 ids of distinct (user, item) pairs, shape (rows,).
    Returns:
        two bool arrays of shape (n_users,): users with at least two interactions, users with every item. A
        user who has the first and not the second can be tested.
    """
    xp = array_module(user)
    counts = xp.bincount(user, minlength=n_users)
    return counts >= 2, counts >= n_items


def leave_one_out(
    user: Array, testable: Array, order: str, validation: bool, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Holds one interaction per user out for the test and, if asked, one more for validation.

    Args:
        user: int32 ids, shape (rows,), sorted by user and within a user by time.
        testable: bool, shape (n_users,): who takes part.
        order: ``last`` holds out the last interaction (and validates on the one before), ``random`` any.
        validation: hold out a validation interaction too, of users who keep one to train on.
    Returns:
        row numbers of the test and of the validation interactions, ascending; at most one of each per user.
    """
    xp = array_module(user)
    counts = xp.bincount(user, minlength=len(testable))
    start = xp.cumsum(counts) - counts
    if order == "last":
        test, second = counts - 1, counts - 2
    else:
        test = xp.floor(xp.asarray(rng.random(len(testable))) * counts).astype(np.int64)
        second = xp.floor(xp.asarray(rng.random(len(testable))) * (counts - 1)).astype(np.int64)
        second += second >= test  # uniform over the user's other interactions
    validated = testable & (counts >= 3) & validation
    return (start + test)[testable], (start + second)[validated]


def sample_negatives(
    user: Array, item: Array, candidates: Array, n_items: int, n_negatives: int, rng: np.random.Generator
) -> Array:
    """Draws items that a user has no training interaction with: uniformly, with replacement.

    As in the references only *training* pairs are excluded: the held-out item itself may be drawn, and items
    may repeat; evaluation masks both. Instead of drawing and rejecting, a uniform rank ``r`` among the items
    that are left is turned into the item of that rank. If p_0 < p_1 < ... are the user's training items, then
    p_j - j of the left items lie below p_j, so the item is r + #{j : p_j - j <= r}. One pass, which ends
    whatever the user has.

    Args:
        user, item: int32 ids of the training pairs, shape (rows,), sorted by user, no pair twice.
        candidates: int32 ids of the users to draw for, shape (n,); each lacks at least one item.
    Returns:
        int32 items of shape (n, n_negatives).
    """
    xp = array_module(user)
    n_users = int(max(user.max(), candidates.max())) + 1
    counts = xp.bincount(user, minlength=n_users)
    start = xp.cumsum(counts) - counts
    left_below = xp.sort(user.astype(np.int64) * n_items + item, kind="stable")
    # Minus the position within the user: ascending and below n_items per user, so ascending overall.
    left_below -= xp.arange(len(user)) - start[user]
    negatives = xp.empty((len(candidates), n_negatives), np.int32)
    for first in range(0, len(candidates), USERS_AT_ONCE):
        users = candidates[first : first + USERS_AT_ONCE]
        left = to_numpy(n_items - counts[users])
        rank = xp.asarray(rng.integers(0, left[:, None], (len(users), n_negatives)))
        wanted = rank + users.astype(np.int64)[:, None] * n_items
        passed = xp.searchsorted(left_below, wanted, side="right") - start[users][:, None]
        negatives[first : first + USERS_AT_ONCE] = rank + passed
    return negatives


def held_out_users(n_users: int, n_validation: int, n_test: int, rng: np.random.Generator) -> np.ndarray:
    """Splits users into training, validation and test users by a seeded permutation.

    As in the reference, the last of the permuted users are the test users and those before them the
    validation users.

    Returns:
        int8 array of shape (n_users,): TRAIN, VALIDATION or TEST.
    """
    group = np.full(n_users, TRAIN, np.int8)
    permuted = rng.permutation(n_users)
    group[permuted[n_users - n_test :]] = TEST
    group[permuted[n_users - n_test - n_validation : n_users - n_test]] = VALIDATION
    return group


def hold_out_items(user: Array, fraction: float, rng: np.random.Generator) -> Array:
    """Chooses the interactions of held-out users that become targets; the others are the fold-in input.

    A user with n >= 5 interactions loses int(fraction * n) of them, drawn without replacement. A user with
    fewer keeps all as input and has no target, so metrics leave this user out.

    Args:
        user: int32 ids, shape (rows,), sorted.
    Returns:
        bool array of shape (rows,): True where the interaction is a target.
    """
    xp = array_module(user)
    counts = xp.bincount(user)
    start = xp.cumsum(counts) - counts
    n_targets = xp.where(counts >= MIN_ITEMS_TO_HOLD_OUT, (fraction * counts).astype(np.int64), 0)
    shuffled = xp.argsort(xp.asarray(rng.random(len(user))), kind="stable")
    by_user = shuffled[xp.argsort(user[shuffled], kind="stable")]
    target = xp.zeros(len(user), bool)
    target[by_user] = xp.arange(len(user)) - start[user] < n_targets[user]
    return target
