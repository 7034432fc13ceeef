"""Small prepared datasets with planted structure: users like the items of their own group."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.feature_spec import Chunk, FeatureSpec

USERS, ITEMS, GROUPS, PER_USER, NEGATIVES = 240, 120, 6, 12, 40


def planted_interactions(generator):
    """(user, item) pairs: PER_USER distinct items per user, nine in ten from the user's group."""
    group = np.arange(USERS) % GROUPS
    own = np.where(np.arange(ITEMS) % GROUPS == group[:, None], 0.9 / (ITEMS / GROUPS), 0.1 / ITEMS)
    keys = -np.log(generator.random((USERS, ITEMS))) / own
    items = np.argsort(keys, axis=1)[:, :PER_USER]
    return np.repeat(np.arange(USERS, dtype=np.int32), PER_USER), items.ravel().astype(np.int32)


def write_dataset(folder: Path, mappings, channels, metadata=None) -> FeatureSpec:
    """Writes one Parquet file per mapping and the spec; shared arrays share a file."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[int, str] = {}
    sources = {}
    for name, columns in mappings.items():
        file = files.setdefault(id(columns), f"{name}.parquet")
        pq.write_table(pa.table(columns), folder / file)
        sources[name] = (Chunk("parquet", tuple(columns), (file,)),)
    features = {
        "user": {"dtype": "int32", "cardinality": USERS},
        "item": {"dtype": "int32", "cardinality": ITEMS},
    }
    if "label" in channels:
        features["label"] = {"dtype": "float32"}
    spec = FeatureSpec(folder, features, sources, {c: (c,) for c in channels}, metadata or {})
    spec.write()
    return spec


@pytest.fixture(scope="session")
def ncf_dataset(tmp_path_factory) -> Path:
    """Leave-one-out: the last item of each user is the test item, 40 random others are its competitors."""
    generator = np.random.default_rng(7)
    user, item = planted_interactions(generator)
    test = np.arange(len(user)) % PER_USER == PER_USER - 1
    train = {"user": user[~test], "item": item[~test], "label": np.ones((~test).sum(), np.float32)}
    taken = np.zeros((USERS, ITEMS), bool)
    taken[user, item] = True
    negatives = [generator.choice(np.flatnonzero(~taken[u]), NEGATIVES) for u in range(USERS)]
    candidates = np.concatenate([item[test][:, None], negatives], axis=1).astype(np.int32)
    label = np.zeros(candidates.shape, np.float32)
    label[:, 0] = 1
    held_out = {
        "user": np.repeat(np.arange(USERS, dtype=np.int32), NEGATIVES + 1),
        "item": candidates.ravel(),
        "label": label.ravel(),
    }
    folder = tmp_path_factory.mktemp("ncf")
    mappings = {"train": train, "validation": held_out, "test": held_out}
    write_dataset(folder, mappings, ("user", "item", "label"), {"test_samples_per_series": NEGATIVES + 1})
    return folder


@pytest.fixture(scope="session")
def vae_dataset(tmp_path_factory) -> Path:
    """Held-out users: 60 of them, a quarter of their items hidden; the other 180 train."""
    user, item = planted_interactions(np.random.default_rng(8))
    hidden = np.arange(len(user)) % 4 == 0
    mappings = {"train": {"user": user[user < 180], "item": item[user < 180]}}
    for name, low, high in (("validation", 180, 210), ("test", 210, 240)):
        group = (user >= low) & (user < high)
        for part, chosen in (("input", group & ~hidden), ("target", group & hidden)):
            mappings[f"{name}_{part}"] = {"user": user[chosen], "item": item[chosen]}
    folder = tmp_path_factory.mktemp("vae")
    write_dataset(folder, mappings, ("user", "item"))
    return folder


CLICK_FEATURES = {
    "user": {"dtype": "int32", "cardinality": 50},
    "item": {"dtype": "int32", "cardinality": 40},
    "device": {"dtype": "int32", "cardinality": 4, "embedding_size": 3},
    "topics": {"dtype": "int32", "cardinality": 9, "max_hotness": 3},
    "price": {"dtype": "float32"},
    "age": {"dtype": "float32"},
    "clicked": {"dtype": "float32"},
    "display": {"dtype": "int64"},
}
CLICK_CHANNELS = {
    "user": ("user",),
    "item": ("item",),
    "onehot_categorical": ("item", "device"),  # a feature of two channels is one input
    "multihot_categorical": ("topics",),
    "numerical": ("price", "age"),
    "label": ("clicked",),
    "group": ("display",),
}


def planted_clicks(generator, rows: int, shuffle_labels: bool = False) -> dict[str, object]:
    """Clicks that follow from user x item taste, topics and price; topics are lists of 0 to 3 ids."""
    taste = np.random.default_rng(1)
    user, item = generator.integers(0, 50, rows), generator.integers(0, 40, rows)
    lengths = generator.integers(0, 4, rows)
    topics = generator.integers(0, 9, lengths.sum())
    price = generator.normal(size=rows)
    score = (taste.normal(size=(50, 4))[user] * taste.normal(size=(40, 4))[item]).sum(axis=1) + price
    score += np.bincount(np.repeat(np.arange(rows), lengths), taste.normal(size=9)[topics], minlength=rows)
    clicked = score + generator.logistic(size=rows) > 0
    if shuffle_labels:
        clicked = generator.permutation(clicked)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return {
        "user": user.astype(np.int32),
        "item": item.astype(np.int32),
        "device": generator.integers(0, 4, rows, dtype=np.int32),
        "topics": pa.ListArray.from_arrays(offsets, pa.array(topics, pa.int32())),
        "price": price.astype(np.float32),
        "age": generator.random(rows, np.float32),
        "clicked": clicked.astype(np.float32),
        "display": generator.permutation(np.arange(rows) // 5),
    }


def write_clicks(folder: Path, train: int, test: int, row_group: int, shuffle_labels: bool = False) -> Path:
    """A dataset for Wide & Deep: train in two files, without the display; validation is test."""
    generator = np.random.default_rng(9)
    names = list(CLICK_FEATURES)
    parts = {
        "train": pa.table(planted_clicks(generator, train, shuffle_labels)).drop_columns(["display"]),
        "test": pa.table(planted_clicks(generator, test, shuffle_labels)),
    }
    pq.write_table(parts["train"][: train // 3], folder / "train_0.parquet", row_group_size=row_group)
    pq.write_table(parts["train"][train // 3 :], folder / "train_1.parquet", row_group_size=row_group)
    pq.write_table(parts["test"], folder / "test.parquet", row_group_size=row_group)
    test_chunks = (Chunk("parquet", tuple(names), ("test.parquet",)),)
    train_chunks = (Chunk("parquet", tuple(names[:-1]), ("train_0.parquet", "train_1.parquet")),)
    sources = {"train": train_chunks, "validation": test_chunks, "test": test_chunks}
    FeatureSpec(folder, CLICK_FEATURES, sources, CLICK_CHANNELS).write()
    return folder


@pytest.fixture(scope="session")
def wide_dataset(tmp_path_factory) -> Path:
    """Six thousand planted clicks to train on, two thousand held out."""
    return write_clicks(tmp_path_factory.mktemp("wide"), 6000, 2000, 700)
