"""The statistics page of a prepared dataset: what came in, what was dropped and why, what is left."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recsys import report

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
DROPS = {
    "rows_below_rating_threshold": "rating below rating_threshold",
    "rows_of_rare_users": "user with fewer than min_user_ratings ratings",
    "rows_of_unknown_items": "item not in the vocabulary (too rare, or rated by no training user)",
    "duplicate_rows": "the user already has the item (the earliest row is kept)",
}


def counts_of(interactions: int, users: int, items: int) -> dict[str, Any]:
    """Size and density of what is left."""
    return {
        "users": users,
        "items": items,
        "interactions": interactions,
        "density": round(interactions / (users * items), 8),
    }


def page(metadata: Mapping[str, Any], user: np.ndarray, item: np.ndarray, notes: Mapping[str, Any]) -> str:
    """The page.

    Args:
        metadata: of the feature spec; ``counts``, ``options``, ``split`` and the rest are shown.
        user, item: all interactions that are left, shape (rows,).
        notes: what differs from run to run (time, peak memory); not part of the dataset.
    """
    counts = metadata["counts"]
    per_user = np.bincount(user, minlength=counts["users"])
    per_item = np.bincount(item, minlength=counts["items"])
    shown = {key: value for key, value in counts.items() if key not in DROPS and key != "rows_read"}
    rows = {"read": counts["rows_read"]}
    rows.update({f"dropped: {rule}": counts[key] for key, rule in DROPS.items()})
    rows["interactions left"] = counts["interactions"]
    return report.page(
        f"Data statistics: {metadata['dataset']} for {metadata['model']}",
        report.paragraph(f"Split: {metadata['split']}. Seed {metadata['seed']}."),
        report.table(
            ["rows", "count", "%"],
            [[name, n, round(100 * n / counts["rows_read"], 3)] for name, n in rows.items()],
            "From raw rows to interactions",
        ),
        report.facts({key.replace("_", " "): value for key, value in shown.items()}, "Dataset"),
        report.table(
            ["percentile", *[f"{p}" for p in PERCENTILES]],
            [
                ["interactions per user", *_percentiles(per_user)],
                ["interactions per item", *_percentiles(per_item)],
            ],
            "Percentiles",
        ),
        _histogram("Interactions per user", "users", per_user),
        _histogram("Interactions per item", "items", per_item),
        report.line_chart(
            "Popularity: share of interactions that the most popular items have",
            {"items": _popularity(per_item)},
            "most popular items (%)",
            "interactions (%)",
        ),
        report.facts(metadata["options"], "Options"),
        report.facts(notes, "This run"),
    )


def _histogram(title: str, of_what: str, values: np.ndarray) -> str:
    # Powers of two: counts are spread over orders of magnitude.
    powers = np.where(values > 0, np.floor(np.log2(np.maximum(values, 1))), -1).astype(int)
    found = np.bincount(powers + 1)
    labels = ["0"] + ["1" if p == 0 else f"{2**p}-{2 ** (p + 1) - 1}" for p in range(len(found) - 1)]
    first = 0 if found[0] else 1
    return report.bar_chart(title, labels[first:], found[first:].tolist(), of_what)


def _popularity(per_item: np.ndarray, points: int = 50) -> list[tuple[float, float]]:
    cumulative = np.concatenate([[0], np.cumsum(np.sort(per_item)[::-1])])
    at = np.unique(np.linspace(0, len(per_item), points + 1).astype(int))
    return [
        (round(100 * i / len(per_item), 2), round(100 * float(cumulative[i] / cumulative[-1]), 2)) for i in at
    ]


def _percentiles(values: np.ndarray) -> list[str]:
    return [f"{value:,.0f}" for value in np.percentile(values, PERCENTILES)]
