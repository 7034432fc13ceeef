"""The options of the preprocess step, with the defaults of each model's reference."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from recsys.config import from_json
from recsys.step import UserError

WHERE = "preparation (--options)"
CHOICES = {
    "split": ("leave_one_out", "heldout_users"),
    "order": ("last", "random"),
    "validation": ("test", "leave_one_out"),
}
ONLY_IN = {
    "leave_one_out": ("order", "test_negatives", "validation"),
    "heldout_users": ("heldout_users", "heldout_fraction"),
}
SPLIT_OF_MODEL = {"ncf": "leave_one_out", "vae_cf": "heldout_users"}


@dataclass(frozen=True)
class Preparation:
    """How raw ratings become a dataset.

    Attributes:
        split: ``leave_one_out`` (NCF) or ``heldout_users`` (VAE-CF).
        rating_threshold: a rating of at least this is a positive; null takes every row.
        min_user_ratings: users with fewer positives are dropped, counted before duplicates are merged (as in
            both references).
        min_item_ratings: items with fewer positives of the remaining users (VAE-CF: of the training users)
            are dropped.
        order: leave-one-out holds out each user's ``last`` interaction or a ``random`` one.
        test_negatives: candidates beside the positive of each test user.
        validation: ``test`` validates on the test users, as both NCF references do; ``leave_one_out`` holds
            out one more interaction per user.
        heldout_users: test users, and as many validation users; below 1 a fraction of all users.
        heldout_fraction: share of a held-out user's items that becomes the target.
    """

    split: str = "leave_one_out"
    rating_threshold: float | None = None
    min_user_ratings: int = 20
    min_item_ratings: int = 1
    order: str = "last"
    test_negatives: int = 100
    validation: str = "test"
    heldout_users: float = 10000
    heldout_fraction: float = 0.2

    @classmethod
    def of(cls, model: str, options: Mapping[str, Any]) -> "Preparation":
        """The reference's defaults for ``model``, changed by ``options``.

        Raises:
            UserError: an unknown key, a wrong value, or an option of a split that the model does not use.
        """
        preparation = from_json(cls, {**DEFAULTS[model], **options}, WHERE)
        needed = SPLIT_OF_MODEL[model]
        if preparation.split != needed:
            raise UserError(
                f"{WHERE}: split {preparation.split!r} does not fit model {model}, which needs {needed!r}"
            )
        for split, names in ONLY_IN.items():
            for name in names:
                if split != needed and name in options:
                    raise UserError(
                        f"{WHERE}: {name} belongs to split {split!r}; model {model} is split by {needed!r}, "
                        f"whose own options are {', '.join(ONLY_IN[needed])}"
                    )
        return preparation

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            self._check(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        for name in ("min_user_ratings", "min_item_ratings", "test_negatives"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        users = self.heldout_users
        self._check("heldout_users", users > 0 and (users < 1 or float(users).is_integer()),
                    "a whole number of users, or a fraction between 0 and 1")  # fmt: skip
        self._check("heldout_fraction", 0 < self.heldout_fraction < 1, "between 0 and 1")

    def _check(self, name: str, legal: bool, allowed: str) -> None:
        if not legal:
            raise UserError(f"{WHERE}: {name} must be {allowed}, not {getattr(self, name)!r}")

    def relevant(self) -> dict[str, Any]:
        """The options that this split reads, for the record."""
        other = next(names for split, names in ONLY_IN.items() if split != self.split)
        return {name: value for name, value in asdict(self).items() if name not in other}


DEFAULTS: dict[str, dict[str, Any]] = {
    "ncf": {"split": "leave_one_out", "rating_threshold": None, "min_user_ratings": 20},
    "vae_cf": {"split": "heldout_users", "rating_threshold": 4.0, "min_user_ratings": 5},
}
