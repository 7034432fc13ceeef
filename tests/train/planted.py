"""Small prepared datasets with planted structure: users like the items of their own group."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
