"""The options of the preprocess step for a table."""

from dataclasses import dataclass

import numpy as np

from recsys.splits import TEST, TRAIN, VALIDATION
from recsys.step import UserError

WHERE = "preparation (--options)"


@dataclass(frozen=True)
class Preparation:
    """How a table becomes a dataset.

    Attributes:
        label_threshold: a label of at least this is a 1, else a 0; null requires labels of 0 and 1.
        split: ``time`` (the newest rows are the test; equal times keep the order of the file) or ``random``;
            null is ``time`` where there is a timestamp.
        test_fraction: share of the rows that is the test.
        validation: ``test`` validates on the test rows, as the reference does; a number is the share of the
            training rows that is held out for it (by time: the newest).
        min_frequency: values with fewer training rows become the id "out of vocabulary".
        numerical: ``normalize`` subtracts the mean and divides by the standard deviation of the training
            rows, a missing number becomes 0, the mean; ``none`` keeps the numbers, a missing one becomes 0.
    """

    label_threshold: float | None = None
    split: str | None = None
    test_fraction: float = 0.2
    validation: str | float = "test"
    min_frequency: int = 1
    numerical: str = "normalize"

    def __post_init__(self) -> None:
        self._check("split", self.split in (None, "time", "random"), "time, random or null")
        self._check("test_fraction", 0 < self.test_fraction < 1, "between 0 and 1")
        share = self.validation
        legal = share == "test" if isinstance(share, str) else 0 < share < 1
        self._check("validation", legal, '"test" or a number between 0 and 1')
        self._check("min_frequency", self.min_frequency >= 1, "at least 1")
        self._check("numerical", self.numerical in ("normalize", "none"), "normalize or none")

    def _check(self, name: str, legal: bool, allowed: str) -> None:
        if not legal:
            raise UserError(f"{WHERE}: {name} must be {allowed}, not {getattr(self, name)!r}")

    def parts(self, rows: int, time: np.ndarray | None, seed: int) -> tuple[np.ndarray, str]:
        """The part (:mod:`recsys.splits`) of each row, int8 of shape (rows,), and the split in words.

        Raises:
            UserError: a part would be empty, or a split by time has no timestamp.
        """
        split = self.split or ("random" if time is None else "time")
        if split == "random":
            order = np.random.default_rng(seed).permutation(rows)
        elif time is None:
            raise UserError(
                f"{WHERE}: split 'time' needs a timestamp; name its column in the dataset's options, or "
                "use split 'random'"
            )
        else:
            order = np.argsort(time, kind="stable")
        train = rows - round(rows * self.test_fraction)
        held_out = 0 if isinstance(self.validation, str) else round(train * self.validation)
        part = np.full(rows, TRAIN, np.int8)
        part[order[train:]] = TEST
        part[order[train - held_out : train]] = VALIDATION
        if min(train - held_out, rows - train) < 1 or (self.validation != "test" and not held_out):
            raise UserError(
                f"{rows} rows cannot be split: test_fraction {self.test_fraction:g} and validation "
                f"{self.validation} leave train, validation or test without a row"
            )
        newest = "newest" if split == "time" else "random"
        words = f"by {split}: " if split == "time" else "random: "
        words += f"the {newest} {self.test_fraction:.4g} of all rows are the test, "
        words += (
            f"the {newest} {self.validation:.4g} of the others the validation"
            if held_out
            else "which is the validation too"
        )
        return part, words
