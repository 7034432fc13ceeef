"""The categorical inputs of a model that embeds them: what they are called, where they are, how wide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.feature_spec import FeatureSpec
from recsys.step import UserError

ONEHOT_CHANNELS = ("user", "item", "onehot_categorical")
MULTIHOT_CHANNEL = "multihot_categorical"


@dataclass(frozen=True)
class Categorical:
    """One categorical input.

    Attributes:
        label: its name in the network.
        size: width of its embedding in the deep part.
        hotness: longest list; 0 for exactly one value.
        start: its first column in the batch's matrix.
        offset: its first row in the wide table.
    """

    name: str
    label: str
    cardinality: int
    size: int
    hotness: int
    start: int
    offset: int

    @property
    def table(self) -> str:
        return f"deep_{self.label}/embeddings"


def categoricals(spec: FeatureSpec, sizes: Mapping[str, int]) -> list[Categorical]:
    """The categorical inputs of a dataset: one-hot ones first, each once, in the order of the channels.

    Args:
        sizes: feature to the width of its embedding; goes before the dataset's ``embedding_size``.
    Raises:
        UserError: ``sizes`` names something that is no categorical feature.
    """
    channels = spec.channel_spec
    onehot = dict.fromkeys(name for channel in ONEHOT_CHANNELS for name in channels.get(channel, ()))
    multihot = dict.fromkeys(channels.get(MULTIHOT_CHANNEL, ()))
    for name in sizes:
        if name not in onehot and name not in multihot:
            raise UserError(
                f"hyperparameters: embedding_sizes has {name!r}, which is no categorical feature of "
                f"{spec.path}; those are {', '.join([*onehot, *multihot])}"
            )
    features: list[Categorical] = []
    onehots = hots = 0  # columns of the two matrices so far
    for name in (*onehot, *multihot):
        properties = spec.feature_spec[name]
        cardinality = int(properties["cardinality"])
        default = min(128, max(1, round(1.6 * cardinality**0.56)))
        size = sizes.get(name, properties.get("embedding_size", default))
        hotness = int(properties["max_hotness"]) if name in multihot else 0
        start = hots if hotness else onehots
        label = layer_name(name, len(features))
        features.append(Categorical(name, label, cardinality, size, hotness, start, wide_rows(features)))
        onehots, hots = onehots + (not hotness), hots + hotness
    return features


def wide_rows(features: Sequence[Categorical]) -> int:
    return sum(feature.cardinality for feature in features)


def layer_name(name: str, number: int) -> str:
    """The feature's name where Keras can have it beside the names of this file's layers, else a number."""
    taken = name.startswith(("wide", "deep", "dense", "dropout", "head"))
    return name if name.isidentifier() and not taken else f"feature_{number}"
