"""Logistic regression on the MovieLens 100K click-through table, which Wide & Deep has to beat.

A row is a rating; a click is a rating of 4 or more. The last 20 % of the rows by time are the test rows.
Variants say how much depends on details: age as a number too; users and items alone; and trained without the
last tenth of the training period, like a model that keeps it for validation.

Run from the repository root; prints one line of JSON:

    .venv/peers/bin/python -m benchmarks.logistic_regression [../shared/data/ml-100k-ctr.csv]
"""

import argparse
import json
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow.csv
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from recsys.metrics import Clicks

TABLE = Path(__file__).resolve().parents[2] / "shared/data/ml-100k-ctr.csv"
IDS = ("user_id", "item_id")
CATEGORIES = (*IDS, "gender", "occupation", "release_year")
VARIANTS: dict[str, dict] = {
    "logistic_regression": {},
    "with_age": {"numerical": ("age",)},
    "users_and_items_only": {"categories": IDS, "genres": False},
    "without_last_tenth_of_train": {"train_share": 0.72},
}


def read(path: Path) -> dict[str, np.ndarray]:
    """Columns in the order of time; rows of the same second keep their order in the file."""
    table = pyarrow.csv.read_csv(path)
    order = np.argsort(table["timestamp"].to_numpy(), kind="stable")
    return {name: table[name].to_numpy(zero_copy_only=False)[order] for name in table.column_names}


def one_hot(
    columns: dict[str, np.ndarray],
    train: slice,
    categories: tuple[str, ...] = CATEGORIES,
    numerical: tuple[str, ...] = (),
    genres: bool = True,
) -> sparse.csr_matrix:
    """A column for each value among the training rows; what is unknown there has none."""
    values = np.stack([columns[name].astype(str) for name in categories], axis=1)
    parts = [OneHotEncoder(handle_unknown="ignore").fit(values[train]).transform(values)]
    if genres:
        lists = columns["genres"].astype(str)
        words = CountVectorizer(token_pattern="[^|]+", lowercase=False, binary=True)
        parts.append(words.fit(lists[train]).transform(lists))
    for name in numerical:
        numbers = columns[name].astype(np.float64)[:, None]
        parts.append(StandardScaler().fit(numbers[train]).transform(numbers))
    return sparse.hstack(parts, format="csr")


def measure(columns: dict[str, np.ndarray], train_share: float = 0.8, **features) -> dict[str, float]:
    """Trains on the first ``train_share`` of the rows; metrics on the last 20 %."""
    rows = len(columns["rating"])
    train, test = slice(0, round(rows * train_share)), slice(round(rows * 0.8), rows)
    matrix, label = one_hot(columns, train, **features), columns["rating"] >= 4
    model = LogisticRegression(C=1.0, max_iter=1000).fit(matrix[train], label[train])
    logits = model.decision_function(matrix[test])
    clicks = Clicks(logits, label[test], columns["user_id"][test])
    return {
        "auc": round(float(roc_auc_score(label[test], logits)), 4),
        "log_loss": round(float(log_loss(label[test], model.predict_proba(matrix[test]))), 4),
        "map@12": round(clicks.mean_average_precision(12), 4),
        "train_rows": train.stop,
        "test_rows": rows - test.start,
        "features": matrix.shape[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", nargs="?", type=Path, default=TABLE)
    columns = read(parser.parse_args().table)
    warnings.simplefilter("error", ConvergenceWarning)
    result: dict = {name: measure(columns, **how) for name, how in VARIANTS.items()}
    print(json.dumps(result | {"scikit_learn": metadata.version("scikit-learn")}))


if __name__ == "__main__":
    main()
