"""Prepared datasets that the tests of this folder share."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
from planted import ITEMS, NEGATIVES, PER_USER, USERS, planted_interactions, write_dataset


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
