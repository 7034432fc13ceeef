"""The statistics page of a prepared Outbrain dataset: what came in, what was amiss, what the features are."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from components.preprocess.outbrain import features
from recsys import report


class Summary:
    """Collects what the page tells about the features of one mapping, table by table.

    Attributes:
        rows, clicks: how many.
        seen: categorical feature to whether a bucket occurs, bool (buckets,).
        empty: multi-hot feature to its rows without an entry.
        numbers: numerical feature to minimum, maximum, sum and zeros.
    """

    def __init__(self, max_buckets: int):
        categorical = (*features.ONEHOT, *features.MULTIHOT)
        self.rows = self.clicks = 0
        self.seen = {name: np.zeros(features.buckets(name, max_buckets), bool) for name in categorical}
        self.empty = dict.fromkeys(features.MULTIHOT, 0)
        self.numbers = {name: [np.inf, -np.inf, 0.0, 0] for name in features.NUMERICAL}

    def watched(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The same tables, taken into account as they pass."""
        for table in tables:
            self.rows += table.num_rows
            self.clicks += int(table[features.LABEL].to_numpy().sum())
            for name, seen in self.seen.items():
                column = table[name].combine_chunks()
                if name in self.empty:
                    self.empty[name] += int((np.diff(column.offsets.to_numpy()) == 0).sum())
                    column = column.flatten()
                seen[column.to_numpy()] = True
            for name, found in self.numbers.items():
                values = table[name].to_numpy()
                found[0], found[1] = min(found[0], values.min()), max(found[1], values.max())
                found[2] += float(values.sum(dtype=np.float64))
                found[3] += int((values == 0).sum())
            yield table


def page(metadata: Mapping[str, Any], summaries: Mapping[str, Summary], notes: Mapping[str, Any]) -> str:
    """The page.

    Args:
        metadata: of the feature spec.
        summaries: by mapping.
        notes: what differs from run to run (time, peak memory); not part of the dataset.
    """
    counts = metadata["counts"]
    train = summaries["train"]
    return report.page(
        f"Data statistics: {metadata['dataset']} for {metadata['model']}",
        report.paragraph(f"Split: {metadata['split']}. Seed {metadata['seed']}."),
        report.table(
            ["mapping", "displays", "rows", "clicked (%)"],
            [
                [name, counts[f"displays_{name}"], found.rows, round(100 * found.clicks / found.rows, 3)]
                for name, found in summaries.items()
            ],
            "Split",
        ),
        report.facts(
            {name.replace("_", " "): value for name, value in counts.items()},
            "Counts: rows read, and what was amiss",
        ),
        report.table(
            ["categorical feature", "buckets", "in train", "in test", "without entry in train (%)"],
            [
                [
                    name,
                    len(seen),
                    int(seen.sum()),
                    int(summaries["test"].seen[name].sum()),
                    round(100 * train.empty[name] / train.rows, 2) if name in train.empty else None,
                ]
                for name, seen in train.seen.items()
            ],
            "Categorical features: hash buckets that occur",
        ),
        *(_numerical(name, found) for name, found in summaries.items()),
        report.facts(metadata["options"], "Options"),
        report.facts(notes, "This run"),
    )


def _numerical(mapping: str, summary: Summary) -> str:
    return report.table(
        ["numerical feature", "minimum", "mean", "maximum", "zero (%)"],
        [
            [name, float(low), total / summary.rows, float(high), round(100 * zeros / summary.rows, 2)]
            for name, (low, high, total, zeros) in summary.numbers.items()
        ],
        f"Numerical features in {mapping}",
    )
