"""Neural collaborative filtering (NeuMF): He et al., "Neural Collaborative Filtering" (WWW 2017).

The hyperparameters, the evaluation and the sampling follow NVIDIA's TensorFlow and PyTorch references. What
differs from them on purpose:

* Dropout acts (in the TensorFlow reference it never ran; its published accuracy is without dropout).
* The first dense layer acts on [user ; item], so it is the sum of a projection of the user and one of the
  item: the user's part is computed once for a positive and its negatives, and where a table has fewer rows
  than the batch, the whole table is projected once. The same function, fewer multiplications.
* A positive and its negatives stay together in a batch, so every batch and every rank has the same label mix.
* The last, shorter batch of an epoch is used.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from recsys import counter_random, distributed, metrics, sharded_tables
from recsys.config import AdamConfig
from recsys.device import on_cpu
from recsys.feature_spec import FeatureSpec
from recsys.input_pipeline import Batch, Csr, epoch_batches, own_share, share_of, user_batches
from recsys.leave_one_out import Series, candidate_series
from recsys.optimizers import adam
from recsys.step import UserError

TABLES = ("user_mf/embeddings", "item_mf/embeddings", "user_mlp/embeddings", "item_mlp/embeddings")
PROJECTION = ("dense_0/kernel", "dense_0/bias")
INFERENCE_ROWS = 16384  # (user, item) pairs that are scored at once
NEGATIVES, DROPOUT = 0, 1  # streams of per-sample randomness; layer i drops with stream DROPOUT + i


@dataclass(frozen=True, kw_only=True)
class Config(AdamConfig):
    """Defaults are the references' (ML-20M).

    Attributes:
        factors: width of the matrix-factorisation embeddings.
        layers: the first entry is the width of the concatenated MLP embeddings, half user and half item;
            the others are dense layers.
        dropout: rate after each dense layer.
        negative_samples: random negatives per positive, drawn anew each epoch.
        verify_negatives: draw them from the items that the user has no positive with; the references
            draw from all items.
        embedding_parallel: several workers hold the rows of the embedding tables together, each its own
            (:mod:`recsys.sharded_tables`); one worker takes no notice.
        batch_size: samples, negatives included.
    """

    epochs: int = 30
    batch_size: int = 1_048_576
    learning_rate: float = 0.0045
    beta_1: float = 0.25
    beta_2: float = 0.5
    topk: int = 10
    validation_batch_size: int = 1000
    factors: int = 64
    layers: tuple[int, ...] = (256, 256, 128, 64)
    dropout: float = 0.5
    negative_samples: int = 4
    verify_negatives: bool = False
    embedding_parallel: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("factors", self.factors > 0, "more than 0")
        legal = len(self.layers) > 1 and min(self.layers) > 0 and self.layers[0] % 2 == 0
        self.check("layers", legal, "two or more positive widths, the first one even")
        self.check("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        self.check("negative_samples", self.negative_samples >= 0, "0 or more")
        fits = self.precision != "float16" and self.l2 == 0.0
        self.check("embedding_parallel", fits or not self.embedding_parallel, "false with l2 or float16")


class Model:
    """Training math of NeuMF on one dataset; see :class:`recsys.models.Recommender`."""

    unit = "samples"
    inference_batch_sizes = (1, 64, 1024, 4096, 16384, 65536, 262144, 1048576)
    baseline = "popularity"
    fuses = True
    inputs = ("user", "item")
    tables = TABLES + PROJECTION

    def __init__(self, config: Config, spec: FeatureSpec):
        spec.require("ncf", channels=("user", "item", "label"), mappings=("train", "validation", "test"))
        self.config, self.spec = config, spec
        self.users, self.items = spec.cardinality("user"), spec.cardinality("item")
        self.metric = f"hr@{config.topk}"
        self.units_per_example = 1 + config.negative_samples
        self._train = spec.columns("train", [spec.feature(c) for c in ("user", "item", "label")])
        self.examples = len(self._column("user"))
        if not self.examples:
            raise UserError(f"{spec.folder}: mapping 'train' has no rows")
        rows = min(self.examples, max(1, config.batch_size // self.units_per_example))
        # On a CPU the activations of about 1,000 positives stay in cache: 1.4 to 2 times faster (measured).
        self.micro_batch = min(config.micro_batch or (1024 if on_cpu() else 0), rows)
        self.batch_examples = -(-rows // self.micro_batch) * self.micro_batch if self.micro_batch else rows
        self._share, self.micro_batch = share_of(self.batch_examples, self.micro_batch)
        parallel = config.embedding_parallel and distributed.size() > 1
        entities = {"user": self.users, "item": self.items}
        self.sharded = {name: entities[name[:4]] for name in TABLES} if parallel else {}
        self._series: dict[str, Series] = {}
        self._rank: Callable | None = None

    def _column(self, channel: str) -> np.ndarray:
        return self._train[self.spec.feature(channel)]

    def network(self, seed: int, whole: bool = False) -> keras.Model:
        """NeuMF of stock layers: inputs ``user`` and ``item``, int32 (batch,); output logits (batch,).

        Embeddings start as N(0, 0.01), kernels Glorot uniform, the head LeCun uniform, biases 0.
        """
        seeds = iter(range(seed * 1000, seed * 1000 + 1000))
        half = self.config.layers[0] // 2
        user = keras.Input((), dtype="int32", name="user")
        item = keras.Input((), dtype="int32", name="item")

        def embed(ids, name, rows, width):
            initializer = keras.initializers.RandomNormal(stddev=0.01, seed=next(seeds))
            if self.sharded and not whole:
                initializer = sharded_tables.RowNormal(initializer.stddev, initializer.seed)
                rows = sharded_tables.rows_here(rows)
            return keras.layers.Embedding(rows, width, initializer, name=name)(ids)

        factors = keras.layers.Multiply(name="mf")(
            [embed(user, "user_mf", self.users, self.config.factors)]
            + [embed(item, "item_mf", self.items, self.config.factors)]
        )
        hidden = keras.layers.Concatenate(name="mlp")(
            [embed(user, "user_mlp", self.users, half), embed(item, "item_mlp", self.items, half)]
        )
        for number, width in enumerate(self.config.layers[1:]):
            initializer = keras.initializers.GlorotUniform(seed=next(seeds))
            dense = keras.layers.Dense(width, "relu", kernel_initializer=initializer, name=f"dense_{number}")
            hidden = keras.layers.Dropout(self.config.dropout, name=f"dropout_{number}")(dense(hidden))
        head = keras.layers.Dense(
            1, kernel_initializer=keras.initializers.LecunUniform(next(seeds)), name="head"
        )
        logits = keras.layers.Flatten(name="logit")(
            head(keras.layers.Concatenate(name="both")([factors, hidden]))
        )
        return keras.Model({"user": user, "item": item}, logits, name="ncf")

    def training_arrays(self) -> dict[str, np.ndarray]:
        """Positives by column; with ``verify_negatives`` also each user's positives in order (CSR)."""
        user, item = self._column("user"), self._column("item")
        arrays = {"user": user, "item": item, "label": self._column("label").astype(np.float32)}
        if self.config.verify_negatives:
            pairs = np.unique(user.astype(np.int64) * self.items + item)
            known = Csr.from_pairs(pairs // self.items, pairs % self.items, self.users)
            arrays |= {"known_start": known.indptr, "known_item": known.items}
        return arrays

    def optimizer(self) -> keras.optimizers.Optimizer:
        """Adam."""
        return adam(self.config)

    def batches(self, seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Indices of this rank's share of each batch of an epoch."""
        return own_share(epoch_batches(self.examples, self.batch_examples, seed, epoch, first), self._share)

    def batch(self, batch: Batch, seed: np.int32, step: int) -> dict[str, Any]:
        """Indices of positives, their weights and counters; 4 to 12 bytes an example."""
        return {
            "index": batch.index,
            "weight": batch.weight,
            "sample": batch.sample,
            "seed": seed,
            "scale": np.float32(1.0 / (batch.examples * self.units_per_example)),
        }

    def lookup(self, tables, arrays, batch, training: bool = True):
        """Rows of user and item, (rows, width) and (rows, 1 + negatives, width): projection, then factors."""
        user = ops.take(arrays["user"], batch["index"], axis=0)
        positive = ops.take(arrays["item"], batch["index"], axis=0)
        negative, exists = self._negatives(arrays, user, batch)
        item = ops.concatenate([positive[:, None], negative], axis=1)
        weight = batch["weight"][:, None] * ops.concatenate([ops.ones_like(exists[:, :1]), exists], axis=1)
        label = ops.take(arrays["label"], batch["index"], axis=0)[:, None]
        label = ops.concatenate([label, ops.zeros_like(exists)], axis=1)
        rows = {"sample": batch["sample"], "weight": weight, "label": label}
        return self._rows(tables, user, item), rows

    def loss(self, dense, differentiable, rows, batch):
        """Mean binary cross-entropy over the positives and negatives of the whole batch."""
        logits = self._logits(dense, differentiable, rows["sample"], batch["seed"])
        # max(x, 0) - x * y + log(1 + exp(-|x|)): the cross-entropy that cannot overflow.
        entropy = ops.maximum(logits, 0.0) - logits * rows["label"] + ops.log1p(ops.exp(-ops.abs(logits)))
        return ops.sum(entropy * rows["weight"]) * batch["scale"]

    def _negatives(self, arrays, user, batch):
        """Random items (rows, negatives), and 1.0 where there is such an item."""
        count = self.config.negative_samples
        counter = batch["sample"][:, None] * np.int32(count) + ops.arange(count, dtype="int32")
        if not self.config.verify_negatives:
            drawn = counter_random.integers(counter, batch["seed"], NEGATIVES, self.items)
            return drawn, ops.ones_like(drawn, dtype="float32")
        start = ops.take(arrays["known_start"], user, axis=0)[:, None]
        known = ops.take(arrays["known_start"], user + 1, axis=0)[:, None] - start
        unknown = np.int32(self.items) - known
        order = counter_random.integers(counter, batch["seed"], NEGATIVES, ops.maximum(unknown, 1))
        item = _unknown_item(arrays["known_item"], start, known, order)
        exists = ops.cast(unknown > 0, "float32") * ops.ones_like(order, dtype="float32")
        return ops.minimum(item, np.int32(self.items - 1)), exists

    def _rows(self, tables, user, item) -> dict[str, Any]:
        """What the dense layers need of users and items: [first layer's projection ; factors]."""
        half = self.config.layers[0] // 2

        def cast(value):
            return ops.cast(value, self.config.precision)

        def rows_of(entity: str, ids, kernel, bias):
            factors, embedding = tables[f"{entity}_mf/embeddings"], tables[f"{entity}_mlp/embeddings"]
            if self.sharded:
                rows, ids = sharded_tables.fetch([embedding, factors], ids)
                embedding, factors = rows[:, :half], rows[:, half:]
            factors, embedding = cast(factors), cast(embedding)
            if self.sharded or embedding.shape[0] <= np.prod(ids.shape):
                table = ops.concatenate([ops.matmul(embedding, kernel) + bias, factors], axis=1)
                return ops.take(table, ids, axis=0)
            projected = ops.matmul(ops.take(embedding, ids, axis=0), kernel) + bias
            return ops.concatenate([projected, ops.take(factors, ids, axis=0)], axis=-1)

        kernel, bias = cast(tables["dense_0/kernel"]), cast(tables["dense_0/bias"])
        return {
            "user": rows_of("user", user, kernel[:half], bias),
            "item": rows_of("item", item, kernel[half:], ops.zeros_like(bias)),
        }

    def _logits(self, dense, rows, sample=None, seed=None):
        """float32 logits (rows, candidates); dropout acts when ``sample`` (the counters) is given."""
        user, item = rows["user"][:, None, :], rows["item"]
        count, candidates = item.shape[0], item.shape[1]
        first = self.config.layers[1]
        cast = {name: ops.cast(value, item.dtype) for name, value in dense.items()}
        counter = None
        if sample is not None:
            counter = sample[:, None] * np.int32(candidates) + ops.arange(candidates, dtype="int32")
            counter = ops.reshape(counter, (-1,))
        hidden = ops.reshape(ops.relu(user[..., :first] + item[..., :first]), (count * candidates, first))
        factors = ops.reshape(user[..., first:] * item[..., first:], (count * candidates, -1))
        for number in range(len(self.config.layers) - 1):
            if number:
                product = ops.matmul(hidden, cast[f"dense_{number}/kernel"])
                hidden = ops.relu(product + cast[f"dense_{number}/bias"])
            if counter is not None:
                hidden = counter_random.dropout(hidden, counter, seed, DROPOUT + number, self.config.dropout)
        head = cast["head/kernel"][:, 0]
        split = self.config.factors
        logits = ops.sum(factors * head[:split], axis=-1) + ops.sum(hidden * head[split:], axis=-1)
        return ops.reshape(ops.cast(logits + cast["head/bias"], "float32"), (count, candidates))

    def score(self, weights, user, item):
        """Logits of candidates: ``user`` int32 (rows,), ``item`` int32 (rows, candidates)."""
        tables = {name: weights[name] for name in self.tables}
        return self._logits(weights, self._rows(tables, user, item))

    def evaluate(self, compile, weights, mapping: str, batch_size: int) -> dict[str, float]:
        """HR@k and NDCG@k over every series of the mapping, ties pessimistic, repeated candidates masked."""
        series = self.series(mapping)
        if self._rank is None:
            # "Not below" rather than "at least": a NaN counts against the model.
            self._rank = compile(
                lambda weights, user, item, valid: ops.sum(
                    ops.cast(_not_below(self.score(weights, user, item)) & valid, "int32"), axis=1
                )
            )
        rank, size = self._rank, min(batch_size, len(series.user))

        def ranks_of(rows: np.ndarray) -> np.ndarray:
            full = np.resize(rows, size)
            arguments = (ops.convert_to_tensor(a[full]) for a in (series.user, series.item, series.valid))
            return ops.convert_to_numpy(rank(weights, *arguments))[: len(rows)] + 1

        batches = list(user_batches(len(series.user), size))
        # Ranks that fetch rows from each other take equally many batches.
        filling = batches[-1:] * (-len(batches) % distributed.size() if self.sharded else 0)
        ranks = distributed.spread(ranks_of, batches + filling)[: len(batches)]
        return self._metrics(np.concatenate(ranks))

    def baseline_metrics(self, mapping: str) -> dict[str, float]:
        """HR@k and NDCG@k when candidates are ranked by their number of training interactions."""
        series = self.series(mapping)
        scores = np.bincount(self._column("item"), minlength=self.items)[series.item]
        return self._metrics(1 + (_not_below(scores) & series.valid).sum(axis=1))

    def _metrics(self, ranks: np.ndarray) -> dict[str, float]:
        k = self.config.topk
        return {f"hr@{k}": metrics.hit_rate(ranks, k), f"ndcg@{k}": metrics.leave_one_out_ndcg(ranks, k)}

    def series(self, mapping: str) -> Series:
        """The candidates of a mapping, read once.

        Raises:
            UserError: the rows do not make whole series of one positive each, or k exceeds the candidates.
        """
        if mapping not in self._series:
            names = [self.spec.feature(channel) for channel in ("user", "item", "label")]
            columns = self.spec.columns(mapping, names)
            length = self.spec.metadata.get("test_samples_per_series")
            where = f"{self.spec.folder}: mapping {mapping!r}"
            self._series[mapping] = candidate_series(where, length, *(columns[name] for name in names))
        series = self._series[mapping]
        if self.config.topk > series.item.shape[1]:
            raise UserError(
                f"topk {self.config.topk} is larger than the {series.item.shape[1]} candidates a user has"
            )
        return series

    def inference(self, compile, batch_size: int):
        """Scores ``batch_size`` random (user, item) pairs; counts samples."""
        generator = np.random.default_rng(0)
        rows = min(batch_size, INFERENCE_ROWS)
        user = generator.integers(0, self.users, (batch_size // rows, rows), dtype=np.int32)
        item = generator.integers(0, self.items, (batch_size // rows, rows, 1), dtype=np.int32)
        user, item = ops.convert_to_tensor(user), ops.convert_to_tensor(item)
        # In parts whose activations stay in cache and memory: a batch of a million is 1 GB a layer otherwise.
        function = compile(lambda w, user, item: ops.map(lambda part: self.score(w, *part), (user, item)))
        return (lambda weights: function(weights, user, item)), rows * (batch_size // rows)

    def flops_per_unit(self) -> float:
        """Matrix products that a training step really does, forward and backward, per sample."""
        rows, layers = self.batch_examples, self.config.layers
        samples = rows * self.units_per_example
        projected = min(self.users, rows) + min(self.items, samples)
        dense = (
            sum(a * b for a, b in zip(layers[1:], layers[2:], strict=False))
            + layers[-1]
            + self.config.factors
        )
        return 6.0 * (projected * layers[0] // 2 * layers[1] / samples + dense)


def _unknown_item(known_item, start, known, order):
    """The ``order``-th smallest item that is not among a user's known items, exactly and without rejection.

    The i-th known item (ascending) has ``known_item[i] - i`` unknown items below it, which never falls, so a
    binary search finds how many known items come before the wanted one.

    Args:
        known_item: int32, (interactions,), ascending within each user.
        start, known: int32, (rows, 1), where a user's items begin, and how many there are.
        order: int32, (rows, draws), from 0.
    """
    low = ops.zeros_like(order)
    high = ops.zeros_like(order) + known
    last = np.int32(known_item.shape[0] - 1)
    for _ in range(int(known_item.shape[0]).bit_length()):
        middle = (low + high) // 2
        below = ops.take(known_item, ops.minimum(start + middle, last), axis=0) - middle <= order
        searching = low < high
        low, high = (
            ops.where(searching & below, middle + 1, low),
            ops.where(searching & ~below, middle, high),
        )
    return order + low


def _not_below(scores):
    """True where a candidate is not below the first one of its row; False in the first column."""
    below = scores < scores[:, :1]
    first = np.arange(scores.shape[1]) == 0
    return ~(below | first)
