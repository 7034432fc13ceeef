"""Interactions -> the mappings of a prepared dataset, one function per split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.preprocess.ratings.preparation import Preparation
from recsys import splits
from recsys.arrays import array_module, to_numpy
from recsys.step import UserError

Array = Any  # numpy.ndarray or cupy.ndarray


@dataclass(frozen=True)
class Mappings:
    """What is written to disk.

    Attributes:
        columns: mapping to its columns; ``validation`` may be the very same object as ``test``.
        counts: sizes, for metadata and the statistics page.
        description: the split in words.
        metadata: what models need to know beyond columns.
    """

    columns: dict[str, Mapping[str, np.ndarray]]
    counts: dict[str, int]
    description: str
    metadata: dict[str, Any]


def leave_one_out(
    user: Array, item: Array, n_users: int, n_items: int, options: Preparation, rng: np.random.Generator
) -> Mappings:
    """NCF: the last (or a random) interaction of each user against sampled negatives.

    Users with a single interaction, or with every item, stay in train and are left out of the test.

    Args:
        user, item: distinct pairs, shape (rows,), sorted by user and within a user by time.
    Raises:
        UserError: no user can be tested.
    """
    several, every = splits.can_be_tested(user, n_users, n_items)
    testable = several & ~every
    counts = {
        "users_with_fewer_than_two_interactions": int((~several).sum()),
        "users_with_every_item": int((every & several).sum()),
    }
    if not testable.any():
        raise UserError(
            f"no user can be tested: of {n_users} users {int((~several).sum())} have fewer than two "
            f"interactions and {counts['users_with_every_item']} have all {n_items} items, so that no "
            "negative is left; leave-one-out needs more data or a lower preparation rating_threshold"
        )
    two = options.validation == "leave_one_out"
    test, validation = splits.leave_one_out(user, testable, options.order, two, rng)
    if two and not len(validation):
        raise UserError(
            "no user has the three interactions that preparation validation 'leave_one_out' needs; use 'test'"
        )
    in_train = array_module(user).ones(len(user), bool)
    in_train[test] = in_train[validation] = False
    train = user[in_train], item[in_train]

    def candidates(rows: Array) -> dict[str, np.ndarray]:
        negatives = splits.sample_negatives(*train, user[rows], n_items, options.test_negatives, rng)
        return _candidate_lists(to_numpy(user[rows]), to_numpy(item[rows]), to_numpy(negatives))

    columns: dict[str, Mapping[str, np.ndarray]] = {
        "train": {**_pairs(*train), "label": np.ones(len(train[0]), np.float32)}
    }
    columns["test"] = candidates(test)
    columns["validation"] = candidates(validation) if two else columns["test"]
    counts.update(
        train_positives=len(train[0]), test_users=len(test), validation_users=len(validation if two else test)
    )
    return Mappings(
        columns,
        counts,
        f"leave one out ({options.order}), {options.test_negatives} negatives per user, drawn with "
        "replacement from the items that are not among the user's train positives; "
        + ("one more interaction per user for validation" if two else "validation is the test"),
        {"test_samples_per_series": 1 + options.test_negatives},
    )


def user_groups(n_users: int, options: Preparation, rng: np.random.Generator) -> np.ndarray:
    """The group (:mod:`recsys.splits`) of each user, int8, shape (n_users,): all TRAIN for leave-one-out.

    Raises:
        UserError: the options leave no training user, or no held-out user.
    """
    if options.split == "leave_one_out":
        return np.full(n_users, splits.TRAIN, np.int8)
    asked = options.heldout_users
    held_out = int(asked if asked >= 1 else asked * n_users)
    if held_out < 1 or 2 * held_out >= n_users:
        left = "no held-out user" if held_out < 1 else "no training user"
        raise UserError(
            f"preparation heldout_users {asked:g} leaves {left}: {n_users} users are left after filtering, "
            f"and {held_out} validation and {held_out} test users are taken from them; "
            f"set it to a number from 1 to {(n_users - 1) // 2} or to a fraction below 0.5"
            if n_users > 2
            else f"{n_users} users are left after filtering; a split by held-out users needs at least 3 "
            "(training, validation, test): use more data or lower preparation min_user_ratings"
        )
    return splits.held_out_users(n_users, held_out, held_out, rng)


def held_out_users(
    user: Array, item: Array, group: np.ndarray, options: Preparation, rng: np.random.Generator
) -> Mappings:
    """VAE-CF: the input and target of users who are not trained on.

    Args:
        user, item: distinct pairs, shape (rows,), sorted by user.
        group: of each user, from :func:`user_groups`.
    Raises:
        UserError: no validation or no test user has enough items for a target.
    """
    of_row = array_module(user).asarray(group)[user]
    rows = of_row == splits.TRAIN
    columns: dict[str, Mapping[str, np.ndarray]] = {"train": _pairs(user[rows], item[rows])}
    counts = {
        "train_users": int((group == splits.TRAIN).sum()),
        "train_interactions": len(columns["train"]["user"]),
    }
    for name, number in (("validation", splits.VALIDATION), ("test", splits.TEST)):
        rows = of_row == number
        users, items = user[rows], item[rows]
        target = splits.hold_out_items(users, options.heldout_fraction, rng)
        if not target.any():
            raise UserError(
                f"no {name} user has {splits.MIN_ITEMS_TO_HOLD_OUT} items that training users know and "
                f"int({options.heldout_fraction} x items) of at least 1, so nothing can be held out; raise "
                "preparation heldout_users or heldout_fraction, or use more data"
            )
        columns[f"{name}_input"] = _pairs(users[~target], items[~target])
        columns[f"{name}_target"] = _pairs(users[target], items[target])
        with_target = len(np.unique(columns[f"{name}_target"]["user"]))
        counts[f"{name}_users"] = int((group == number).sum())
        counts[f"{name}_users_without_target"] = counts[f"{name}_users"] - with_target
        counts[f"{name}_input_interactions"] = len(columns[f"{name}_input"]["user"])
        counts[f"{name}_target_interactions"] = len(columns[f"{name}_target"]["user"])
    return Mappings(
        columns,
        counts,
        f"held-out users: {counts['validation_users']} validation, {counts['test_users']} test; of each with "
        f"at least {splits.MIN_ITEMS_TO_HOLD_OUT} items int({options.heldout_fraction} x items) are the "
        "target, at random, the rest the input; items that no training user has are dropped",
        {},
    )


def _pairs(user: Array, item: Array) -> dict[str, np.ndarray]:
    return {"user": to_numpy(user), "item": to_numpy(item)}


def _candidate_lists(user: np.ndarray, positive: np.ndarray, negatives: np.ndarray) -> dict[str, np.ndarray]:
    """One row per candidate: each user's positive, then the negatives."""
    label = np.zeros((len(user), 1 + negatives.shape[1]), np.float32)
    label[:, 0] = 1
    return {
        "user": np.repeat(user, label.shape[1]),
        "item": np.concatenate([positive[:, None], negatives], axis=1).ravel(),
        "label": label.ravel(),
    }
