"""One paper, one file; the file name is the model name on the command line.

A file holds a dataclass ``Config`` (the reference's hyperparameters) and a class ``Model`` that does what
:class:`Recommender` lists. Training, evaluation and benchmark find it by name: adding a model is adding a
file here, and its defaults for preparing data in ``components/preprocess``.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from recsys.step import UserError

if TYPE_CHECKING:
    import keras

    from recsys.config import TrainingConfig
    from recsys.feature_spec import FeatureSpec
    from recsys.input_pipeline import Batch

Tensors = dict[str, Any]
Compiler = Callable[[Callable], Callable]


class Recommender(Protocol):
    """The training math of one paper, as pure functions of named weights; ``keras.ops`` only.

    Attributes:
        config: the resolved hyperparameters.
        spec: the dataset.
        metric: the validation metric that chooses the best checkpoint; larger is better.
        inference_batch_sizes: batch sizes of the reference's inference benchmark.
        unit: what throughput counts ("samples", "users").
        baseline: what the metrics are reported beside ("popularity", "item_ctr").
        inputs: channels of categorical features that the network was built for.
        tables: names of the weights that :meth:`lookup` reads.
        sharded: those of which each rank holds its rows only, and the rows of the whole table.
        examples: number of training examples.
        batch_examples: examples of one global batch.
        units_per_example: throughput units of one example.
        fuses: whether XLA makes :meth:`loss` faster on this device.
        micro_batch: rows that run through :meth:`loss` at once; 0 for all. Divides this rank's share.
    """

    config: Any
    spec: "FeatureSpec"
    metric: str
    inference_batch_sizes: tuple[int, ...]
    unit: str
    baseline: str
    inputs: tuple[str, ...]
    tables: tuple[str, ...]
    sharded: dict[str, int]
    examples: int
    batch_examples: int
    units_per_example: int
    micro_batch: int
    fuses: bool

    def __init__(self, config: "TrainingConfig", spec: "FeatureSpec"): ...

    def network(self, seed: int) -> "keras.Model":
        """A new network of stock Keras layers: loads anywhere that Keras does.

        A model with sharded tables has an argument ``whole``; without it, the tables hold this rank's rows.
        """

    def optimizer(self) -> "keras.optimizers.Optimizer":
        """The optimizer of all weights, not built yet."""

    def training_arrays(self) -> dict[str, np.ndarray]:
        """The training data, as arrays that stay on the device."""

    def batches(self, seed: int, epoch: int, first: int = 0) -> "Iterator[Batch]":
        """This rank's share of the batches of one epoch, in an order that depends on (seed, epoch) only.

        All ranks have the same number of batches; ``first`` is the number of the first one to take.
        """

    def batch(self, batch: "Batch", seed: np.int32, step: int) -> dict[str, Any]:
        """What one step receives from the host: indices, weights and scalars."""

    def lookup(
        self, tables: Tensors, arrays: Tensors, batch: Tensors, training: bool
    ) -> tuple[Tensors, Tensors]:
        """Gathers what the batch needs: differentiable rows, and other tensors that the loss needs."""

    def loss(self, dense: Tensors, differentiable: Tensors, rows: Tensors, batch: Tensors):
        """Scalar float32 loss of (part of) the batch, already divided by the size of the whole batch."""

    def evaluate(
        self, compile: Compiler, weights: Tensors, mapping: str, batch_size: int
    ) -> dict[str, float]:
        """Metrics over all of a held-out mapping (``validation`` or ``test``)."""

    def baseline_metrics(self, mapping: str) -> dict[str, float]:
        """The same metrics of the baseline, which looks at the training data and not at the weights."""

    def inference(self, compile: Compiler, batch_size: int) -> tuple[Callable[[Tensors], Any], int]:
        """A function of the weights that scores one batch, and how many units it scores."""

    def flops_per_unit(self) -> float:
        """Floating-point operations of forward and backward matrix products for one throughput unit."""


def available() -> list[str]:
    """Names of the models: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The file ``name``; ask it for ``Config`` and ``Model``.

    Raises:
        UserError: there is no such file.
    """
    if name not in available():
        raise UserError(f"--model {name!r} is not known; allowed: {', '.join(available())}")
    return importlib.import_module(f"recsys.models.{name}")
