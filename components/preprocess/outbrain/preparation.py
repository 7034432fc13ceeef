"""The options of the preprocess step for Outbrain, with the defaults of the reference's split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recsys.config import from_json
from recsys.step import UserError

WHERE = "preparation (--options)"
CLICK_RATES = ("out_of_fold", "reference")


@dataclass(frozen=True)
class Preparation:
    """How the raw files become a dataset.

    Attributes:
        ctr: what a train row's click rates are counted on: ``out_of_fold`` on the train rows of the other
            folds; ``reference`` on all train rows, its own label included, as the reference does. Held-out
            rows and requests take all train rows either way.
        ctr_folds: folds of the displays, for ``out_of_fold``.
        test_share: share of the displays of the train days that is held out, beside all later displays.
        validation_share: share of the displays of the train days for a validation mapping of its own; with 0
            validation is the test mapping, as in the reference.
        train_last_day: last day of train, days being counted from the first event's, 0.
        max_buckets: caps the hash buckets of every feature (small data need no large tables); 0 does not.
    """

    ctr: str = "out_of_fold"
    ctr_folds: int = 5
    test_share: float = 0.2
    validation_share: float = 0.0
    train_last_day: int = 10
    max_buckets: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Preparation":
        """The defaults, changed by ``options``; :class:`UserError` for an unknown key or a wrong value."""
        return from_json(cls, options, WHERE)

    def __post_init__(self) -> None:
        self._check("ctr", self.ctr in CLICK_RATES, f"one of {', '.join(CLICK_RATES)}")
        self._check("ctr_folds", 2 <= self.ctr_folds <= 100, "between 2 and 100")
        for name in ("test_share", "validation_share"):
            self._check(name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        self._check("validation_share", self.test_share + self.validation_share < 1,
                    f"less than 1 together with test_share {self.test_share:g}")  # fmt: skip
        self._check("train_last_day", self.train_last_day >= 0, "0 or more")
        self._check("max_buckets", self.max_buckets >= 0, "0 (the reference's buckets) or more")

    @property
    def folds(self) -> int:
        """Folds of the click rates; 1 where these are not told apart."""
        return self.ctr_folds if self.ctr == "out_of_fold" else 1

    def _check(self, name: str, legal: bool, allowed: str) -> None:
        if not legal:
            raise UserError(f"{WHERE}: {name} must be {allowed}, not {getattr(self, name)!r}")
