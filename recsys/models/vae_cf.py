"""Mult-VAE: Liang et al., "Variational Autoencoders for Collaborative Filtering" (WWW 2018).

The hyperparameters and the evaluation follow NVIDIA's TensorFlow reference. What differs on purpose:

* No dense input or target matrix: the input layer sums the kernel rows of a user's items, and the multinomial
  log-likelihood is the sum of the logits at the user's items minus one logsumexp per item.
* ``l2`` acts (``lam`` of the reference never did, and its published accuracy is without it; default 0).
* The last, shorter batch of an epoch is used; the reference leaves out up to one batch of users an epoch.
* Evaluation takes every held-out user; ties are pessimistic; there are no padding items to recommend.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from recsys import counter_random, distributed
from recsys.config import AdamConfig
from recsys.feature_spec import FeatureSpec
from recsys.input_pipeline import Batch, Csr, epoch_batches, own_share, share_of, user_batches
from recsys.metrics import HeldOut, TopK
from recsys.optimizers import adam
from recsys.step import UserError

INPUT_DROPOUT, NOISE = 0, 1  # streams of per-sample randomness
RECALLS = (20, 50)
ACTIVATIONS = ("tanh", "relu")


@dataclass(frozen=True, kw_only=True)
class Config(AdamConfig):
    """Defaults are the reference's (ML-20M).

    Attributes:
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        latent: width of the latent code.
        dropout: rate at which items of the input are left out.
        activation: of the hidden layers.
        total_anneal_steps: optimizer steps over which the weight of the KL term would grow to 1.
        anneal_cap: where that weight stops growing.
        batch_size: users.
    """

    epochs: int = 400
    batch_size: int = 24576
    learning_rate: float = 0.004
    beta_1: float = 0.9
    beta_2: float = 0.9
    topk: int = 100
    validation_step: int = 50
    validation_batch_size: int = 1000
    hidden: tuple[int, ...] = (600,)
    latent: int = 200
    dropout: float = 0.5
    activation: str = "tanh"
    total_anneal_steps: int = 15000
    anneal_cap: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("hidden", len(self.hidden) > 0 and min(self.hidden) > 0, "one or more positive widths")
        self.check("latent", self.latent > 0, "more than 0")
        self.check("dropout", 0 <= self.dropout < 1, "in [0, 1)")
        self.check("activation", self.activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
        self.check("total_anneal_steps", self.total_anneal_steps > 0, "more than 0")
        self.check("anneal_cap", self.anneal_cap >= 0, "0 or more")
        self.check("micro_batch", self.micro_batch == 0, "0 for vae_cf (a micro-batch slows it down)")


class Model:
    """Training math of Mult-VAE on one dataset; see :class:`recsys.models.Recommender`."""

    unit = "users"
    inference_batch_sizes = (1, 10, 100, 1000)
    baseline = "popularity"
    fuses = True
    inputs = ("user", "item")
    tables = ("encoder_0/kernel",)
    units_per_example = 1
    sharded: dict[str, int] = {}
    micro_batch = 0

    def __init__(self, config: Config, spec: FeatureSpec):
        held_out = [f"{group}_{part}" for group in ("validation", "test") for part in ("input", "target")]
        spec.require("vae_cf", channels=("user", "item"), mappings=("train", *held_out))
        self.config, self.spec = config, spec
        self.items = spec.cardinality("item")
        self.metric = f"ndcg@{config.topk}"
        if config.topk > self.items:
            raise UserError(f"topk {config.topk} is larger than the {self.items} items of {spec.folder}")
        self._train = self._users("train")
        self._lengths = self._train.lengths()
        self.examples = self._train.rows
        if not self.examples:
            raise UserError(f"{spec.folder}: mapping 'train' has no rows")
        self.batch_examples = min(config.batch_size, self.examples)
        self._share, _ = share_of(self.batch_examples, 0)
        self._slots = 0
        self._top: Callable | None = None

    def _users(self, mapping: str, users: np.ndarray | None = None) -> Csr:
        """Items of each user of a mapping; of ``users``, in that order, when they are given."""
        names = [self.spec.feature("user"), self.spec.feature("item")]
        user, item = self.spec.columns(mapping, names).values()
        if users is None:
            users, row = np.unique(user, return_inverse=True)
        else:
            row = np.searchsorted(users, user)
            unknown = (row == len(users)) | (users[np.minimum(row, len(users) - 1)] != user)
            if unknown.any():
                raise UserError(
                    f"{self.spec.folder}: mapping {mapping!r} has user {user[unknown][0]} without input"
                )
        return Csr.from_pairs(row, item, len(users))

    def network(self, seed: int) -> keras.Model:
        """The autoencoder of stock layers, for serving.

        Input ``items``, float32 (batch, items), is 1 where the user has the item. Outputs are ``logits``
        (batch, items) from the mean code, and ``code`` (batch, 2 * latent): mean, then log-variance.

        Kernels start Glorot uniform, biases truncated normal with deviation 0.001, as in the paper's code.
        """
        seeds = iter(range(seed * 1000, seed * 1000 + 1000))

        def dense(width, name, activation=None):
            return keras.layers.Dense(
                width,
                activation,
                kernel_initializer=keras.initializers.GlorotUniform(next(seeds)),
                bias_initializer=keras.initializers.TruncatedNormal(stddev=0.001, seed=next(seeds)),
                name=name,
            )

        items = keras.Input((self.items,), dtype="float32", name="items")
        hidden = keras.layers.UnitNormalization(name="normalize")(items)
        for number, width in enumerate(self.config.hidden):
            hidden = dense(width, f"encoder_{number}", self.config.activation)(hidden)
        code = dense(2 * self.config.latent, "code")(hidden)
        hidden = code[:, : self.config.latent]
        for number, width in enumerate(reversed(self.config.hidden)):
            hidden = dense(width, f"decoder_{number}", self.config.activation)(hidden)
        logits = dense(self.items, "logits")(hidden)
        return keras.Model(items, {"logits": logits, "code": code}, name="vae_cf")

    def training_arrays(self) -> dict[str, np.ndarray]:
        """Items of the training users (CSR)."""
        return {"start": self._train.indptr, "item": self._train.items}

    def optimizer(self) -> keras.optimizers.Optimizer:
        """Adam."""
        return adam(self.config)

    def batches(self, seed: int, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Indices of this rank's share of each batch of an epoch."""
        return own_share(epoch_batches(self.examples, self.batch_examples, seed, epoch, first), self._share)

    def batch(self, batch: Batch, seed: np.int32, step: int) -> dict[str, Any]:
        """Users, their weights and counters, and one slot for each of their interactions.

        The number of slots fixes the shapes of a compiled step, so it grows in few, generous steps.
        """
        needed = int(self._lengths[batch.index][batch.weight > 0].sum())
        if needed > self._slots:
            quantum = max(1024, 2 ** (needed.bit_length() - 4))
            self._slots = min(
                -(-int(needed * 1.03) // quantum) * quantum, max(needed, len(self._train.items))
            )
        return {
            "index": batch.index,
            "weight": batch.weight,
            "sample": batch.sample,
            "slot": np.arange(self._slots, dtype=np.int32),
            "seed": seed,
            "scale": np.float32(1.0 / batch.examples),
            "anneal": np.float32(min(step / self.config.total_anneal_steps, self.config.anneal_cap)),
        }

    def lookup(self, tables, arrays, batch, training: bool = True):
        """Sum of the input kernel's rows over each user's items, (users, hidden[0]); and the items, flat."""
        row, place, item, valid, length = _flatten(arrays, batch["index"], batch["slot"], batch["weight"])
        weight = valid * ops.take(ops.rsqrt(ops.maximum(length, 1.0)), row, axis=0)
        if training and self.config.dropout:
            # The counter of an interaction: the user's sample number and the place in the user's list.
            counter = counter_random.bits(
                ops.take(batch["sample"], row, axis=0), batch["seed"], INPUT_DROPOUT
            )
            drawn = counter_random.uniform(counter + place, batch["seed"], INPUT_DROPOUT)
            keep = 1.0 - self.config.dropout
            weight = weight * ops.cast(drawn < keep, "float32") / keep
        kernel = ops.cast(tables["encoder_0/kernel"], self.config.precision)
        embedded = ops.take(kernel, item, axis=0) * ops.cast(weight, kernel.dtype)[:, None]
        hidden = ops.segment_sum(embedded, row, batch["index"].shape[0])
        rows = {"row": row, "item": item, "valid": valid, "length": length, "sample": batch["sample"]}
        return {"hidden": hidden}, rows

    def loss(self, dense, differentiable, rows, batch):
        """Negative log-likelihood of all the users' items plus the annealed KL term, mean over users."""
        code, mean, log_variance = self._encode(dense, differentiable["hidden"])
        counter = rows["sample"][:, None] * np.int32(self.config.latent) + ops.arange(
            self.config.latent, dtype="int32"
        )
        noise = ops.cast(counter_random.normal(counter, batch["seed"], NOISE), code.dtype)
        logits = self._decode(dense, mean + ops.exp(0.5 * log_variance) * noise)
        at_items = ops.take(
            ops.reshape(logits, (-1,)), rows["row"] * np.int32(self.items) + rows["item"], axis=0
        )
        log_likelihood = ops.sum(at_items * rows["valid"]) - ops.sum(
            ops.logsumexp(logits, axis=1) * rows["length"]
        )
        mean, log_variance = ops.cast(mean, "float32"), ops.cast(log_variance, "float32")
        divergence = 0.5 * ops.sum(ops.exp(log_variance) + ops.square(mean) - 1.0 - log_variance, axis=1)
        return (batch["anneal"] * ops.sum(divergence * batch["weight"]) - log_likelihood) * batch["scale"]

    def _activate(self, values):
        return ops.tanh(values) if self.config.activation == "tanh" else ops.relu(values)

    def _encode(self, dense, hidden):
        def layer(name, values):
            return ops.matmul(values, ops.cast(dense[f"{name}/kernel"], values.dtype)) + ops.cast(
                dense[f"{name}/bias"], values.dtype
            )

        hidden = self._activate(hidden + ops.cast(dense["encoder_0/bias"], hidden.dtype))
        for number in range(1, len(self.config.hidden)):
            hidden = self._activate(layer(f"encoder_{number}", hidden))
        code = layer("code", hidden)
        return code, code[:, : self.config.latent], code[:, self.config.latent :]

    def _decode(self, dense, code):
        """float32 logits (users, items)."""

        def layer(name, values):
            return ops.matmul(values, ops.cast(dense[f"{name}/kernel"], values.dtype)) + ops.cast(
                dense[f"{name}/bias"], values.dtype
            )

        for number in range(len(self.config.hidden)):
            code = self._activate(layer(f"decoder_{number}", code))
        return ops.cast(layer("logits", code), "float32")

    def score(self, weights, arrays, batch):
        """Logits of every item from the users' items, -inf at the items themselves; no dropout, no noise."""
        tables = {name: weights[name] for name in self.tables}
        differentiable, rows = self.lookup(tables, arrays, batch, training=False)
        logits = self._decode(weights, self._encode(weights, differentiable["hidden"])[1])
        flat = rows["row"] * np.int32(self.items) + rows["item"]
        seen = ops.segment_sum(rows["valid"], flat, logits.shape[0] * self.items)
        return ops.where(ops.reshape(seen, logits.shape) > 0, np.float32(-np.inf), logits)

    def _top_k(self, weights, arrays, batch, target):
        """Top-k values, ties with the last of them in the whole row, scores of the targets."""
        logits = self.score(weights, arrays, batch)
        values = ops.top_k(logits, self.config.topk)[0]
        ties = ops.sum(ops.cast(logits == values[:, -1:], "int32"), axis=1)
        return values, ties, ops.take(ops.reshape(logits, (-1,)), target, axis=0)

    def evaluate(self, compile, weights, mapping: str, batch_size: int) -> dict[str, float]:
        """NDCG@k and Recall@20/50 over the held-out items of every user of the mapping that has any."""
        self._top = top = self._top or compile(self._top_k)
        given, held_out = self.held_out(mapping)
        size = min(batch_size, given.rows)
        slots = _most_in_batch(given, size), _most_in_batch(held_out, size)
        arrays = {"start": ops.convert_to_tensor(given.indptr), "item": ops.convert_to_tensor(given.items)}

        def top_of(users: np.ndarray) -> TopK:
            row, item = _pairs(held_out, users)
            target = np.zeros(slots[1], np.int32)
            target[: len(row)] = row * self.items + item
            batch = _evaluation_batch(np.resize(users, size), slots[0], size, len(users))
            values, ties, scores = (
                ops.convert_to_numpy(result)
                for result in top(weights, arrays, batch, ops.convert_to_tensor(target))
            )
            if not np.isfinite(scores[: len(row)]).all():
                raise UserError("the checkpoint scores held-out items as NaN or infinite; train it anew")
            return TopK(values, ties, row, scores[: len(row)])

        return self._metrics(HeldOut.join(distributed.spread(top_of, user_batches(given.rows, size))))

    def baseline_metrics(self, mapping: str) -> dict[str, float]:
        """The same metrics when every user gets the most popular items that the user has not seen."""
        given, held_out = self.held_out(mapping)
        popularity = np.bincount(self._train.items, minlength=self.items).astype(np.float64)
        batches = []
        for users in user_batches(given.rows, 1000):
            scores = np.tile(popularity, (len(users), 1))
            scores[_pairs(given, users)] = -np.inf
            row, item = _pairs(held_out, users)
            values = -np.sort(-scores, axis=1)[:, : self.config.topk]
            batches.append(TopK(values, (scores == values[:, -1:]).sum(axis=1), row, scores[row, item]))
        return self._metrics(HeldOut.join(batches))

    def _metrics(self, held_out: HeldOut) -> dict[str, float]:
        k = self.config.topk
        recalls = {f"recall@{r}": held_out.recall(r) for r in RECALLS if r <= k}
        return {f"ndcg@{k}": held_out.ndcg(k), **recalls}

    def held_out(self, mapping: str) -> tuple[Csr, Csr]:
        """Fold-in items and held-out items of the users of ``mapping``, row by row the same users."""
        name = self.spec.feature("user")
        users = np.unique(self.spec.columns(f"{mapping}_input", [name])[name])
        given, held_out = self._users(f"{mapping}_input", users), self._users(f"{mapping}_target", users)
        if not len(held_out.items):
            raise UserError(
                f"{self.spec.folder}: mapping '{mapping}_target' has no rows; hold out more users"
            )
        both = np.intersect1d(*(rows.row() * self.items + rows.items for rows in (given, held_out)))
        if len(both):
            raise UserError(
                f"{self.spec.folder}: user {users[both[0] // self.items]} has item {both[0] % self.items} in "
                f"both '{mapping}_input' and '{mapping}_target'; what is held out must not be given"
            )
        return given, held_out

    def inference(self, compile, batch_size: int):
        """Recommends to ``batch_size`` users with 10 random items each, as the reference; counts users."""
        generator = np.random.default_rng(0)
        count = min(10, self.items)
        item = np.stack([generator.choice(self.items, count, replace=False) for _ in range(batch_size)])
        start = np.arange(0, (batch_size + 1) * count, count, dtype=np.int32)
        arrays = {
            "start": ops.convert_to_tensor(start),
            "item": ops.convert_to_tensor(item.ravel().astype(np.int32)),
        }
        users = np.arange(batch_size, dtype=np.int32)
        batch = _evaluation_batch(users, batch_size * count, batch_size, batch_size)
        function = compile(
            lambda weights, arrays, batch: ops.top_k(self.score(weights, arrays, batch), self.config.topk)
        )
        return (lambda weights: function(weights, arrays, batch)[0]), batch_size

    def flops_per_unit(self) -> float:
        """Matrix products of a step, forward and backward, per user; the sparse input is left out."""
        hidden = self.config.hidden
        pairs = [*zip(hidden, hidden[1:], strict=False), (hidden[-1], 2 * self.config.latent)]
        pairs += [
            (self.config.latent, hidden[-1]),
            *zip(hidden, hidden[1:], strict=False),
            (hidden[0], self.items),
        ]
        return 6.0 * sum(a * b for a, b in pairs)


def _flatten(arrays, users, slot, weight):
    """The interactions of some users as flat tensors of ``slots`` entries.

    Returns:
        row, place in the row, item: int32 (slots,); valid: float32 (slots,), 0 for unused slots;
        length: float32 (users,), 0 for users of weight 0.
    """
    start = ops.take(arrays["start"], users, axis=0)
    length = (ops.take(arrays["start"], users + 1, axis=0) - start) * ops.cast(weight, "int32")
    end = ops.cumsum(length)
    row = ops.cast(ops.searchsorted(end, slot, side="right"), "int32")
    valid = row < users.shape[0]
    row = ops.minimum(row, np.int32(users.shape[0] - 1))
    place = slot - ops.take(end - length, row, axis=0)
    item = ops.take(arrays["item"], ops.where(valid, ops.take(start, row, axis=0) + place, 0), axis=0)
    return row, place, item, ops.cast(valid, "float32"), ops.cast(length, "float32")


def _evaluation_batch(users: np.ndarray, slots: int, size: int, real: int):
    weight = (np.arange(size) < real).astype(np.float32)
    batch = {"index": users, "weight": weight, "sample": users, "slot": np.arange(slots, dtype=np.int32)}
    return {name: ops.convert_to_tensor(value) for name, value in batch.items()}


def _pairs(rows: Csr, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in ``users``, item) of all interactions of consecutive ``users``."""
    lengths = rows.lengths()[users]
    return np.repeat(np.arange(len(users)), lengths), rows.items[
        rows.indptr[users[0]] : rows.indptr[users[-1] + 1]
    ]


def _most_in_batch(rows: Csr, size: int) -> int:
    return max(1, max(int(rows.lengths()[users].sum()) for users in user_batches(rows.rows, size)))
