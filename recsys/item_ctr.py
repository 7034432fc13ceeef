"""The baseline of click prediction: how often an item was clicked in the training rows."""

import numpy as np

from recsys.feature_spec import FeatureSpec
from recsys.row_stream import RowGroups

PRIOR_VIEWS = 10.0  # views at the mean rate that every item starts with


def item_rates(spec: FeatureSpec) -> np.ndarray:
    """Logit of each item's click rate in the training rows, (items,); one entry without an item channel."""
    item = list(spec.channel_spec.get("item", ()))
    items = spec.cardinality("item") if item else 1
    names = {"label": [spec.feature("label")], **({"item": item} if item else {})}
    views, clicks = np.zeros(items), np.zeros(items)
    for block in RowGroups(spec, "train", names).blocks():
        ids = block["item"][:, 0] if item else np.zeros(len(block["label"]), int)
        views += np.bincount(ids, minlength=items)
        clicks += np.bincount(ids, block["label"][:, 0], minlength=items)
    mean = np.clip(clicks.sum() / views.sum(), 1e-6, 1 - 1e-6)
    rate = (clicks + PRIOR_VIEWS * mean) / (views + PRIOR_VIEWS)
    return np.log(rate) - np.log1p(-rate)
