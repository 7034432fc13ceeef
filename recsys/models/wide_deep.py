"""Wide & Deep: Cheng et al., "Wide & Deep Learning for Recommender Systems" (DLRS 2016).

Features, hyperparameters and schedule follow NVIDIA's TensorFlow 2 reference (Outbrain). What differs on
purpose:

* The scalar weights of all categorical features are one table with an offset per feature: the same
  function, one gather. The deep part has a table per feature.
* Padding of multi-hot lists (-1) is clipped before the lookup and masked after it, so that a CPU and a GPU
  agree; a list of at most one value is masked too.
* Deep input is in the order of the spec's channels, not of the alphabet: names of features change nothing.
* MAP@12 and AUC are exact over the whole held-out data, ties pessimistic (MAP) or half (AUC), no bias of the
  counters, whatever the batch. Loss and metrics see float32 logits, never a rounded sigmoid.
* The best epoch is kept, not the last one. The learning rate's schedule is not one step late.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from recsys import counter_random, distributed
from recsys.categorical import MULTIHOT_CHANNEL, ONEHOT_CHANNELS, categoricals, layer_name, wide_rows
from recsys.config import TrainingConfig
from recsys.device import on_cpu
from recsys.feature_spec import FeatureSpec
from recsys.input_pipeline import Batch, share_of
from recsys.item_ctr import item_rates
from recsys.metrics import Clicks
from recsys.optimizers import JointOptimizer, WarmupAndDrops
from recsys.row_stream import RowGroups, RowStream, consecutive, prefetch
from recsys.step import UserError

COMBINERS = ("sum", "mean")
WIDE = "wide/embeddings"
INFERENCE_ROWS = 16384  # rows that are scored at once


@dataclass(frozen=True, kw_only=True)
class Config(TrainingConfig):
    """Defaults are the reference's (Outbrain).

    Attributes:
        learning_rate, rho, epsilon: RMSprop of the deep part.
        wide_learning_rate: FTRL of the wide part.
        warmup_epochs: of the deep part's rate (:class:`recsys.optimizers.WarmupAndDrops`); may be a fraction.
        hidden: widths of the deep layers.
        dropout: rate after each of them.
        combiner: how the deep part joins the embeddings of a list, ``sum`` or ``mean``; the wide part sums.
        embedding_sizes: feature to the width of its embedding; goes before the dataset's ``embedding_size``.
            A feature with neither gets ``min(128, 1.6 * cardinality ** 0.56)``.
        batch_size: rows; the multiple of 16 that several ranks need is that of :mod:`recsys.row_stream`.
        topk: k of MAP@k.
        validation_batch_size: rows scored at once; the reference's 131,072 takes 2 GiB more.
    """

    epochs: int = 20
    batch_size: int = 131_072
    learning_rate: float = 0.00012
    epsilon: float = 1e-7
    rho: float = 0.5
    wide_learning_rate: float = 0.02
    warmup_epochs: float = 6.0
    topk: int = 12
    validation_batch_size: int = 16_384
    hidden: tuple[int, ...] = (1024,) * 5
    dropout: float = 0.1
    combiner: str = "sum"
    embedding_sizes: dict[str, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("hidden", len(self.hidden) > 0 and min(self.hidden) > 0, "one or more positive widths")
        self.check("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        self.check("rho", 0 <= self.rho < 1, "in [0, 1)")
        self.check("wide_learning_rate", self.wide_learning_rate > 0, "more than 0")
        self.check("warmup_epochs", 0 <= self.warmup_epochs <= self.epochs, f"in [0, epochs ({self.epochs})]")
        self.check("combiner", self.combiner in COMBINERS, f"one of {', '.join(COMBINERS)}")
        sizes = (self.embedding_sizes or {}).values()
        self.check("embedding_sizes", min(sizes, default=1) > 0, "an object of positive widths")


class Model:
    """Training math of Wide & Deep on one dataset; see :class:`recsys.models.Recommender`."""

    unit = "samples"
    baseline = "item_ctr"
    inputs = (*ONEHOT_CHANNELS, MULTIHOT_CHANNEL, "numerical")
    inference_batch_sizes = (4096, 8192, 16384, 32768, 65536, 131072)
    units_per_example = 1
    sharded: dict[str, int] = {}

    def __init__(self, config: Config, spec: FeatureSpec):
        spec.require("wide_deep", channels=("label",), mappings=("train", "validation", "test"))
        self.config, self.spec = config, spec
        self.numerical = list(spec.channel_spec.get("numerical", ()))
        self.features = categoricals(spec, config.embedding_sizes or {})
        if not self.features and not self.numerical:
            raise UserError(
                f"{spec.path}: model wide_deep needs a feature in one of the channels "
                f"{', '.join(self.inputs)}; this dataset has {', '.join(spec.channel_spec)}"
            )
        self.has_groups = bool(spec.channel_spec.get("group"))
        self.metric = f"map@{config.topk}" if self.has_groups else "auc"
        self.tables = (*(feature.table for feature in self.features), *([WIDE] if self.features else []))
        self.width = sum(feature.size for feature in self.features) + len(self.numerical)
        self._train = RowGroups(spec, "train", {**self._matrices(), "label": [spec.feature("label")]})
        self.examples = self._train.rows
        if not self.examples:
            raise UserError(f"{spec.folder}: mapping 'train' has no rows")
        rows = min(config.batch_size, self.examples)
        # On a CPU, activations of 2,048 rows stay in cache.
        self.micro_batch = min(config.micro_batch or (2048 if on_cpu() else 0), rows)
        # Nearly all of its work are large matrix products: 5,200 rows/s without XLA on two cores, 4,200 with.
        self.fuses = not on_cpu()
        self.batch_examples = -(-rows // self.micro_batch) * self.micro_batch if self.micro_batch else rows
        self._stream = RowStream(self._train, self.batch_examples, distributed.rank(), distributed.size())
        share, self.micro_batch = share_of(self.batch_examples, self.micro_batch)
        if share * distributed.size() != self.batch_examples:
            raise UserError(
                f"hyperparameters: batch_size {self.batch_examples} shared by {distributed.size()} workers "
                f"cannot be cut into parts of at most micro_batch rows; set micro_batch to a divisor of "
                f"{self.batch_examples // distributed.size()}"
            )
        self._rates: np.ndarray | None = None
        self._score: Callable | None = None

    def _matrices(self) -> dict[str, list[str]]:
        """Names of the batch's matrices, and the features that are their columns."""
        matrices = {
            "onehot": [feature.name for feature in self.features if not feature.hotness],
            "multihot": [feature.name for feature in self.features if feature.hotness],
            "numerical": self.numerical,
        }
        return {name: features for name, features in matrices.items() if features}

    def network(self, seed: int) -> keras.Model:
        """Wide & Deep of stock layers: one input per feature, named like it; output logits (batch,).

        Inputs are int32 (batch,), of a multi-hot feature int32 (batch, max_hotness) filled up with -1, and
        float32 (batch,) of a numerical one. Embeddings start Glorot normal, kernels Glorot uniform, the wide
        part and biases 0.
        """
        seeds = iter(range(seed * 1000, seed * 1000 + 1000))
        inputs, deep, wide = {}, [], []
        for feature in self.features:
            shape = (feature.hotness,) if feature.hotness else ()
            ids = inputs[feature.label] = keras.Input(shape, dtype="int32", name=feature.label)
            ids = ids if feature.hotness else ops.expand_dims(ids, 1)
            exists = ops.cast(ops.greater_equal(ids, 0), "float32")
            ids = ops.maximum(ids, 0)
            glorot = keras.initializers.GlorotNormal(next(seeds))
            embed = keras.layers.Embedding(
                feature.cardinality, feature.size, glorot, name=f"deep_{feature.label}"
            )
            joined = ops.sum(embed(ids) * ops.expand_dims(exists, 2), axis=1)
            if feature.hotness and self.config.combiner == "mean":
                joined = joined / ops.maximum(ops.sum(exists, axis=1, keepdims=True), 1.0)
            deep.append(joined)
            wide.append((ops.add(ids, feature.offset), exists))
        numerical = []
        for number, name in enumerate(self.numerical, len(self.features)):
            label = layer_name(name, number)
            inputs[label] = keras.Input((), dtype="float32", name=label)
            numerical.append(ops.expand_dims(inputs[label], 1))
        hidden = _concatenated([*deep, *numerical])
        for number, width in enumerate(self.config.hidden):
            uniform = keras.initializers.GlorotUniform(next(seeds))
            dense = keras.layers.Dense(width, "relu", kernel_initializer=uniform, name=f"dense_{number}")
            hidden = keras.layers.Dropout(self.config.dropout, name=f"dropout_{number}")(dense(hidden))
        uniform = keras.initializers.GlorotUniform(next(seeds))
        logits = keras.layers.Dense(1, kernel_initializer=uniform, name="head")(hidden)
        if wide:
            ids, exists = (_concatenated(list(parts)) for parts in zip(*wide, strict=True))
            scalar = keras.layers.Embedding(wide_rows(self.features), 1, "zeros", name="wide")(ids)
            logits = logits + ops.sum(scalar * ops.expand_dims(exists, 2), axis=1)
        if numerical:
            zero = keras.layers.Dense(1, kernel_initializer="zeros", name="wide_numerical")
            logits = logits + zero(_concatenated(numerical))
        return keras.Model(inputs, ops.squeeze(logits, 1), name="wide_deep")

    def optimizer(self) -> keras.optimizers.Optimizer:
        """RMSprop with the warm-up for the deep part, FTRL for the wide part."""
        settings = self.config
        warmup, total = (epochs * self._stream.steps for epochs in (settings.warmup_epochs, settings.epochs))
        schedule = WarmupAndDrops(settings.learning_rate, warmup, total)
        return JointOptimizer(
            keras.optimizers.RMSprop(schedule, settings.rho, epsilon=settings.epsilon),
            keras.optimizers.Ftrl(settings.wide_learning_rate),
            lambda path: path.startswith("wide"),
            settings.gradient_accumulation,
        )

    def training_arrays(self) -> dict[str, np.ndarray]:
        """Nothing stays on the device: rows are streamed."""
        return {}

    def batches(self, seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Batches of rows, read ahead of the training step."""
        return prefetch(self._stream.batches(seed, epoch, first))

    def batch(self, batch: Any, seed: np.int32, step: int) -> dict[str, Any]:
        """The rows, their weights and counters; for Outbrain 152 bytes a row."""
        return {
            **batch.columns,
            "weight": batch.weight,
            "sample": batch.sample,
            "seed": seed,
            "scale": np.float32(1.0 / batch.examples),
        }

    def lookup(self, tables, arrays, batch, training: bool = True):
        """Embeddings side by side (rows, width) and the wide part's sum (rows,); then other inputs."""
        rows = {name: batch[name] for name in ("numerical", "label", "weight", "sample") if name in batch}
        if not self.features:
            return {}, rows
        deep, wide, exist = [], [], []
        for feature in self.features:
            ids = batch["multihot" if feature.hotness else "onehot"]
            ids = ids[:, feature.start : feature.start + max(feature.hotness, 1)]
            exists = ops.cast(ids >= 0, "float32")
            ids = ops.maximum(ids, 0)
            if feature.hotness:
                joined = ops.sum(ops.take(tables[feature.table], ids, axis=0) * exists[:, :, None], axis=1)
                if self.config.combiner == "mean":
                    joined = joined / ops.maximum(ops.sum(exists, axis=1, keepdims=True), 1.0)
            else:
                joined = ops.take(tables[feature.table], ids[:, 0], axis=0)
            deep.append(ops.cast(joined, self.config.precision))
            wide.append(ids + np.int32(feature.offset))
            exist.append(exists)
        scalars = ops.take(tables[WIDE][:, 0], ops.concatenate(wide, axis=1), axis=0)
        wide_sum = ops.sum(scalars * ops.concatenate(exist, axis=1), axis=1)
        return {"deep": ops.concatenate(deep, axis=1), "wide": wide_sum}, rows

    def loss(self, dense, differentiable, rows, batch):
        """Mean binary cross-entropy over the rows of the whole batch."""
        logits = self._logits(dense, differentiable, rows, batch["seed"])
        label = rows["label"][:, 0]
        # max(x, 0) - x * y + log(1 + exp(-|x|)): the cross-entropy that cannot overflow.
        entropy = ops.maximum(logits, 0.0) - logits * label + ops.log1p(ops.exp(-ops.abs(logits)))
        return ops.sum(entropy * rows["weight"]) * batch["scale"]

    def _logits(self, dense, looked_up, rows, seed=None):
        """float32 logits (rows,); dropout acts when the step's ``seed`` is given."""
        precision = self.config.precision
        parts = [looked_up["deep"]] if self.features else []
        if self.numerical:
            parts.append(ops.cast(rows["numerical"], precision))
        hidden = ops.concatenate(parts, axis=1)
        for number in range(len(self.config.hidden)):
            kernel, bias = (
                ops.cast(dense[f"dense_{number}/{part}"], precision) for part in ("kernel", "bias")
            )
            hidden = ops.relu(ops.matmul(hidden, kernel) + bias)
            if seed is not None:
                hidden = counter_random.dropout(hidden, rows["sample"], seed, number, self.config.dropout)
        head = ops.matmul(hidden, ops.cast(dense["head/kernel"], precision))
        logits = ops.cast(head[:, 0], "float32") + dense["head/bias"]
        if self.features:
            logits = logits + looked_up["wide"]
        if self.numerical:
            wide = ops.matmul(rows["numerical"], dense["wide_numerical/kernel"])[:, 0]
            logits = logits + wide + dense["wide_numerical/bias"]
        return logits

    def score(self, weights, batch):
        """Logits of rows: ``onehot``, ``multihot``, ``numerical`` matrices as in a training batch."""
        looked_up, rows = self.lookup({name: weights[name] for name in self.tables}, {}, batch, False)
        return self._logits(weights, looked_up, rows)

    def evaluate(self, compile, weights, mapping: str, batch_size: int) -> dict[str, float]:
        """MAP@k (where there are groups), AUC and log-loss over every row of the mapping."""
        if self._score is None:
            self._score = compile(self.score)
        score = self._score
        held_out = self._held_out(mapping, self._matrices())
        size = min(batch_size, held_out.rows)

        def clicks_of(columns: dict[str, np.ndarray]) -> Clicks:
            inputs = {
                name: ops.convert_to_tensor(np.resize(columns[name], (size, columns[name].shape[1])))
                for name in self._matrices()
            }
            logits = ops.convert_to_numpy(score(weights, inputs))[: len(columns["label"])]
            return self._clicks(logits, columns)

        return self._metrics(
            Clicks.join(distributed.spread(clicks_of, prefetch(consecutive(held_out, size))))
        )

    def baseline_metrics(self, mapping: str) -> dict[str, float]:
        """The same metrics when rows are scored by their item's smoothed click rate in the training rows."""
        if self._rates is None:
            self._rates = item_rates(self.spec)
        item = list(self.spec.channel_spec.get("item", ()))
        parts = []
        for block in self._held_out(mapping, {"item": item} if item else {}).blocks():
            ids = block["item"][:, 0] if item else np.zeros(len(block["label"]), int)
            parts.append(self._clicks(self._rates[ids], block))
        return self._metrics(Clicks.join(parts))

    def _held_out(self, mapping: str, matrices: dict[str, list[str]]) -> RowGroups:
        channels = ("label", "group") if self.has_groups else ("label",)
        named = {channel: [self.spec.feature(channel)] for channel in channels}
        groups = RowGroups(self.spec, mapping, {**matrices, **named})
        if not groups.rows:
            raise UserError(f"{self.spec.folder}: mapping {mapping!r} has no rows")
        return groups

    def _clicks(self, logits: np.ndarray, columns: dict[str, np.ndarray]) -> Clicks:
        groups = columns["group"][:, 0] if self.has_groups else None
        return Clicks(logits, columns["label"][:, 0], groups)

    def _metrics(self, clicks: Clicks) -> dict[str, float]:
        positives = int(clicks.labels.sum())
        if positives in (0, len(clicks.labels)):
            raise UserError(
                f"{self.spec.folder}: all {len(clicks.labels)} held-out rows have label {min(positives, 1)}; "
                "metrics of a binary label need both"
            )
        k = self.config.topk
        ranking = {f"map@{k}": clicks.mean_average_precision(k)} if self.has_groups else {}
        return {**ranking, "auc": clicks.auc(), "log_loss": clicks.log_loss()}

    def inference(self, compile, batch_size: int):
        """Scores ``batch_size`` random rows, in parts that fit in memory; counts samples."""
        generator = np.random.default_rng(0)
        rows = min(batch_size, INFERENCE_ROWS)
        shape = (batch_size // rows, rows)
        columns: dict[str, list[np.ndarray]] = {"onehot": [], "multihot": [], "numerical": []}
        for feature in self.features:
            ids = generator.integers(
                0, feature.cardinality, (*shape, max(feature.hotness, 1)), dtype=np.int32
            )
            columns["multihot" if feature.hotness else "onehot"].append(ids)
        columns["numerical"] = [generator.random((*shape, 1), np.float32) for _ in self.numerical]
        batch = {
            name: ops.convert_to_tensor(np.concatenate(parts, axis=2))
            for name, parts in columns.items()
            if parts
        }
        function = compile(lambda w, batch: ops.map(lambda part: self.score(w, part), batch))
        return (lambda weights: function(weights, batch)), shape[0] * rows

    def flops_per_unit(self) -> float:
        """Matrix products of the deep part, forward and backward, per row."""
        widths = (self.width, *self.config.hidden, 1)
        return 6.0 * sum(a * b for a, b in zip(widths, widths[1:], strict=False))


def _concatenated(tensors: list[Any]) -> Any:
    return keras.layers.Concatenate(axis=1)(tensors) if len(tensors) > 1 else tensors[0]
