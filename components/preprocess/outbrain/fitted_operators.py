"""NVTabular operators with statistics of the train rows: click rates, counts, days since publication."""

from collections.abc import Callable, Mapping

import dask
import numpy as np
from nvtabular.ops import StatOperator

from components.preprocess.outbrain.ids import MISSING, Index
from components.preprocess.outbrain.operators import Array, ColumnOperator, Frame
from recsys.arrays import array_module, to_numpy
from recsys.outbrain_tables import EPOCH_MS

DAY_MS = 86_400_000
LONGEST_DAYS = 3650  # ten years


class ClickRate(ColumnOperator, StatOperator):
    """Share of a key's train rows that were clicked; 0 for keys with too few of them, and unknown ones.

    Inputs are the keys; for fitting also ``clicked`` and ``fold``. In a transformation that is given ``fold``
    a row's rate leaves out the rows of its own fold.

    Args:
        rates: feature to (key column, fewest rows).
        folds: how many there are.
    Attributes (on the host, so that a GPU's workflow can be loaded without one):
        index: key column to its values in train (n of them).
        rows, clicks: key column to counts by fold, and in the last column of all folds: int64
            (n + 1, folds + 1); the last line, 0, is for unknown keys.
    """

    dtype = np.float32

    def __init__(self, rates: Mapping[str, tuple[str, int]], folds: int):
        super().__init__()
        self.rates, self.folds = dict(rates), folds
        self.outputs = {name: [key] for name, (key, _) in rates.items()}
        self.clear()

    def clear(self) -> None:
        self.index: dict[str, Index] = {}
        self.rows: dict[str, Array] = {}
        self.clicks: dict[str, Array] = {}

    def fit(self, col_selector, ddf):
        return _reduced(ddf, self._count, _merged)

    def fit_finalize(self, dask_stats) -> None:
        for key, (values, *counts) in dask_stats.items():
            self.index[key] = Index(to_numpy(values))
            for fitted, by_fold in zip((self.rows, self.clicks), map(to_numpy, counts), strict=True):
                by_fold = np.concatenate([by_fold, np.zeros((1, self.folds), np.int64)])
                fitted[key] = np.concatenate([by_fold, by_fold.sum(1, keepdims=True)], axis=1)

    def compute(self, df):
        columns = {}
        for name, (key, least) in self.rates.items():
            place = self.index[key](df[key].values)
            rows, clicks = (array_module(place).asarray(n[key])[place] for n in (self.rows, self.clicks))
            if "fold" in df.columns:
                own = array_module(place).arange(len(place)), df["fold"].values
                rows, clicks = rows[:, -1] - rows[own], clicks[:, -1] - clicks[own]
            else:
                rows, clicks = rows[:, -1], clicks[:, -1]
            columns[name] = (clicks / rows.clip(1) * (rows >= least)).astype(np.float32)
        return columns

    def _count(self, df: Frame) -> dict[str, list[Array]]:
        """Key column to its values (n,), and their rows and clicks by fold, int64 (n, folds)."""
        counts = {}
        for key in {key for key, _ in self.rates.values()}:
            values = df[key].values
            xp = array_module(values)
            known = values != MISSING
            distinct, place = xp.unique(values[known], return_inverse=True)
            cell = place * self.folds + df["fold"].values[known]
            both = (xp.bincount(cell, weights, len(distinct) * self.folds)
                    for weights in (None, df["clicked"].values[known]))  # fmt: skip
            counts[key] = [distinct, *(n.reshape(-1, self.folds).astype(np.int64) for n in both)]
        return counts


class KeyCount(ColumnOperator):
    """Number of train rows of a key, as a fitted :class:`ClickRate` has counted them; 0 for unknown keys.

    Args:
        counts: feature to key column.
    """

    dtype = np.float32

    def __init__(self, counts: Mapping[str, str], fitted: ClickRate):
        super().__init__()
        self.outputs = {name: [key] for name, key in counts.items()}
        self.index = {name: fitted.index[key] for name, key in counts.items()}
        self.rows = {name: fitted.rows[key][:, -1] for name, key in counts.items()}

    def compute(self, df):
        columns = {}
        for name, (key,) in self.outputs.items():
            place = self.index[name](df[key].values)
            columns[name] = array_module(place).asarray(self.rows[name])[place].astype(np.float32)
        return columns

    def moments(self, train_rows: int) -> tuple[dict[str, float], dict[str, float]]:
        """Mean and standard deviation (n - 1) of ``log(1 + count)`` over the train rows, without a pass.

        Args:
            train_rows: all of them; those without a key have a count of 0.
        """
        means, stds = {}, {}
        for name, counts in self.rows.items():
            count = counts.astype(np.float64)
            rows = count.copy()  # a key with n rows is in n rows
            rows[-1] = train_rows - count.sum()
            means[name] = float((rows * np.log1p(count)).sum() / train_rows)
            squares = (rows * (np.log1p(count) - means[name]) ** 2).sum()
            stds[name] = float(np.sqrt(squares / max(1, train_rows - 1)))
        return means, stds


class DaysSincePublished(ColumnOperator, StatOperator):
    """Whole days from a document's publication to the event; 0 beyond ten years or before it was published.

    Where one of the two times is missing: the exact median of the train rows.

    Args:
        times: feature to its column of publication times; ``timestamp`` is an input beside them.
    """

    dtype = np.float32

    def __init__(self, times: Mapping[str, str]):
        super().__init__()
        self.outputs = {name: [time, "timestamp"] for name, time in times.items()}
        self.clear()

    def clear(self) -> None:
        self.medians: dict[str, float] = {}

    def fit(self, col_selector, ddf):
        return _reduced(ddf, self._count, lambda a, b: {name: a[name] + b[name] for name in a})

    def fit_finalize(self, dask_stats) -> None:
        for name, rows in dask_stats.items():
            until = to_numpy(rows).cumsum()
            middle = np.searchsorted(until, [(until[-1] - 1) // 2, until[-1] // 2], side="right")
            self.medians[name] = float(middle.mean()) if until[-1] else 0.0

    def compute(self, df):
        columns = {}
        for name in self.outputs:
            days, known = self._days(name, df)
            columns[name] = array_module(days).where(known, days, self.medians[name]).astype(np.float32)
        return columns

    def _days(self, name: str, df: Frame) -> tuple[Array, Array]:
        published, event = (df[column].values for column in self.outputs[name])
        days = (event + EPOCH_MS - published) // DAY_MS
        return days * ((days >= 0) & (days <= LONGEST_DAYS)), (published != MISSING) & (event != MISSING)

    def _count(self, df: Frame) -> dict[str, Array]:
        counts = {}
        for name in self.outputs:
            days, known = self._days(name, df)
            counts[name] = array_module(days).bincount(days[known], minlength=LONGEST_DAYS + 1)
        return counts


def _merged(a: dict[str, list[Array]], b: dict[str, list[Array]]) -> dict[str, list[Array]]:
    """Adds the counts of two sets of partitions, key by key."""
    merged = {}
    for key, (values, *counts) in a.items():
        xp = array_module(values)
        distinct, place = xp.unique(xp.concatenate([values, b[key][0]]), return_inverse=True)
        sums = [xp.zeros((len(distinct), count.shape[1]), np.int64) for count in counts]
        for total, first, second in zip(sums, counts, b[key][1:], strict=True):
            total[place[: len(values)]] += first
            total[place[len(values) :]] += second
        merged[key] = [distinct, *sums]
    return merged


def _reduced(ddf, count: Callable, merge: Callable):
    """``count`` of each partition, merged in pairs, so that few partial results are in memory at once."""
    parts = [dask.delayed(count)(part) for part in ddf.to_delayed()]
    while len(parts) > 1:
        pairs = [parts[at : at + 2] for at in range(0, len(parts), 2)]
        parts = [dask.delayed(merge)(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]
