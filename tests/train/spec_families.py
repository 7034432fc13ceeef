"""The dataset specs that NVIDIA tests its Wide & Deep with, smaller: one base and what may differ from it.

In csv form, for ``python -m recsys.generate_csv`` and ``python -m recsys.transcode``. ``validation`` is the
same data as ``test``; ``display_id`` (the group) is in the test only.
"""

from typing import Any

import yaml

ONEHOT = {"ad": 500, "document": 300, "platform": 4, "advertiser": 50}
MULTIHOT = {"topics": (350, 3), "entities": (1000, 3), "categories": (100, 3)}  # cardinality, max_hotness
NUMERICAL = ("ad_ctr", "ad_count", "days_since_published", "similarity")


def families() -> dict[str, dict[str, Any]]:
    """Name -> content of ``feature_spec.yaml``."""
    more = {"additional_1": 4000, "additional_2": 1337, "additional_3": 9999}
    return {
        "base": _spec(),
        "less_numerical": _spec(numerical=NUMERICAL[:2]),
        "no_numerical": _spec(numerical=()),
        "more_numerical": _spec(numerical=(*NUMERICAL, *(f"additional_{n}" for n in range(4)))),
        "less_onehot": _spec(onehot={"ad": 500, "platform": 4}),
        "no_onehot": _spec(onehot={}),
        "more_onehot": _spec(onehot={**ONEHOT, **more}),
        "less_multihot": _spec(multihot={"topics": (350, 3)}),
        "no_multihot": _spec(multihot={}),
        "more_multihot": _spec(multihot={**MULTIHOT, "additional_1": (1000, 3), "additional_2": (123, 3)}),
        "other_hotness": _spec(multihot={"topics": (350, 1), "entities": (1000, 10), "categories": (100, 2)}),
        "no_categorical": _spec(onehot={}, multihot={}, group=False),
    }


def save(folder, content: dict[str, Any]):
    """Writes a spec as ``folder/feature_spec.yaml``; returns that path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "feature_spec.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def _spec(onehot=ONEHOT, multihot=MULTIHOT, numerical=NUMERICAL, group=True) -> dict[str, Any]:
    features: dict[str, dict[str, Any]] = {"clicked": {}}
    features |= {name: {"cardinality": size} for name, size in onehot.items()}
    features |= {
        name: {"cardinality": size, "max_hotness": hotness} for name, (size, hotness) in multihot.items()
    }
    features |= {name: {"dtype": "float32"} for name in numerical}
    inputs = list(features)
    features |= {"display_id": {"dtype": "int64"}} if group else {}
    channels = {
        "onehot_categorical": list(onehot),
        "multihot_categorical": list(multihot),
        "numerical": list(numerical),
        "label": ["clicked"],
        "group": ["display_id"] if group else [],
    }
    held_out = [{"type": "csv", "features": list(features)[::-1], "files": ["test.csv"]}]
    return {
        "feature_spec": features,
        "source_spec": {
            # Two chunks, one of two files: the columns of one row come from different files.
            "train": [
                {"type": "csv", "features": inputs[1:], "files": ["train_0.csv", "train_1.csv"]},
                {"type": "csv", "features": ["clicked"], "files": ["labels.csv"]},
            ],
            "validation": held_out,
            "test": held_out,
        },
        "channel_spec": channels,
        "metadata": {"dataset": "generated"},
    }
