"""Runs a model's training step on Keras' three backends.

A model is written as pure functions on named weights (see :mod:`recsys.models`). One step is

1. *lookup*: gather rows of the tables (sparse work; its gradient is a scatter-add),
2. *loss*: everything dense, from the rows to a scalar, in micro-batches where that keeps activations in
   cache, with the gradients summed,
3. *update*: one step of the model's optimizer on all variables.

On TensorFlow, XLA compiles 2 and 3 but not 1: its scatter on a CPU is a serial loop (measured: 0.27 s of a
VAE-CF step of 1.17 s, where TensorFlow's own kernels take 0.06 s), and 2 only where a model gains by it
(``fuses``). JAX compiles the whole step; PyTorch runs it eagerly.

Several ranks (TensorFlow) sum loss and gradients between 2 and 3; the losses are shares of one mean.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from recsys import distributed
from recsys.config import TrainingConfig
from recsys.models import Recommender

Tensors = dict[str, Any]


class Engine(abc.ABC):
    """A network, its optimizer, and the compiled step. Create with :func:`create_engine`.

    Args:
        model: the training math.
        network: its Keras model; holds the variables.
        arrays: the training data, NumPy arrays; put on the device once.
    """

    def __init__(
        self,
        model: Recommender,
        network: keras.Model,
        config: TrainingConfig,
        arrays: Mapping[str, np.ndarray],
    ):
        self.model, self.network, self.config = model, network, config
        self.arrays = self.put(arrays)
        self.variables = network.trainable_variables
        self.names = [variable.path for variable in self.variables]
        self.optimizer = model.optimizer()
        if config.precision == "float16":
            self.optimizer = keras.optimizers.LossScaleOptimizer(self.optimizer)
        self.optimizer.build(self.variables)

    def put(self, arrays: Mapping[str, Any]) -> Tensors:
        """Moves arrays to the default device."""
        return {name: ops.convert_to_tensor(value) for name, value in arrays.items()}

    def weights(self) -> Tensors:
        """The current weights by name."""
        return {name: variable.value for name, variable in zip(self.names, self.variables, strict=True)}

    @abc.abstractmethod
    def train_step(self, batch: Mapping[str, Any]):
        """One optimizer step; returns the loss, a scalar still on the device."""

    def synchronize(self) -> None:  # noqa: B027 (only JAX keeps state outside of the variables)
        """Writes the state back into the Keras variables, where it was kept outside of them."""

    def restore(self) -> None:  # noqa: B027 (the same)
        """Takes over what was assigned to the Keras variables, the inverse of :meth:`synchronize`."""

    def gradients(self, weights: Tensors, arrays: Tensors, batch: Tensors, scale) -> tuple[Any, Tensors]:
        """Loss and the gradient of ``scale * loss`` by weight name."""
        tables = {name: weights[name] for name in self.model.tables}
        dense = {name: value for name, value in weights.items() if name not in tables}

        def lookup(values):
            return self.model.lookup(values, arrays, batch, training=True)

        # PyTorch does not differentiate with respect to nothing.
        (differentiable, rows), pull_back = (
            self._linearize(lookup, tables) if tables else (lookup(tables), lambda by_row: {})
        )
        loss, by_row, by_dense = self._dense(dense, differentiable, rows, batch, scale)
        return loss, {**pull_back(by_row), **by_dense}

    def dense_gradients(self, dense: Tensors, differentiable: Tensors, rows: Tensors, batch: Tensors, scale):
        """Loss and gradients of the dense part by row and by weight, summed over micro-batches."""

        def gradients(differentiable, rows):
            return self._value_and_gradient(
                lambda values: self.model.loss(values[0], values[1], rows, batch) * scale,
                (dense, differentiable),
            )

        size = self.model.micro_batch
        if not size:
            loss, (by_dense, by_row) = gradients(differentiable, rows)
            return loss / scale, by_row, by_dense

        def cut(tensor):
            return ops.reshape(tensor, (-1, size, *tensor.shape[1:]))

        parts = ({k: cut(v) for k, v in differentiable.items()}, {k: cut(v) for k, v in rows.items()})
        loss, (by_dense, by_row) = ops.map(lambda part: gradients(*part), parts)
        by_dense = {name: ops.sum(value, axis=0) for name, value in by_dense.items()}
        by_row = {name: ops.reshape(value, differentiable[name].shape) for name, value in by_row.items()}
        return ops.sum(loss) / scale, by_row, by_dense

    def regularize(self, weights: Tensors, loss, gradients: Tensors, scale) -> tuple[Any, Tensors]:
        """Adds ``l2 * sum(w**2)`` over kernels and embeddings to loss and gradients."""
        if self.config.l2 == 0.0:
            return loss, gradients
        gradients = dict(gradients)
        for name, weight in weights.items():
            if not name.endswith("bias"):
                loss = loss + self.config.l2 * ops.sum(ops.square(weight))
                gradients[name] = gradients[name] + (2.0 * self.config.l2 * scale) * weight
        return loss, gradients

    @abc.abstractmethod
    def _linearize(self, function: Callable, values: Tensors):
        """``function``'s differentiable and other results, and what pulls their cotangents back to values."""

    @abc.abstractmethod
    def _value_and_gradient(self, function: Callable, values):
        """A scalar function's value, and its gradient in the structure of ``values``."""

    def _dense(self, *arguments):
        return self.dense_gradients(*arguments)


class _TensorFlowEngine(Engine):
    def __init__(self, *arguments):
        import tensorflow as tf

        super().__init__(*arguments)
        self.tf = tf
        jit = self.config.xla
        dense = jit and self.model.fuses  # XLA's own matrix products are slower than TensorFlow's on a CPU
        self._dense = tf.function(self.dense_gradients, jit_compile=dense)  # type: ignore[method-assign]
        self._update = tf.function(self._apply, jit_compile=jit)
        self._step = tf.function(self._whole_step)

    def train_step(self, batch):
        return self._step(self.arrays, self.put(batch))

    def _whole_step(self, arrays, batch):
        weights, scale = self.weights(), _loss_scale(self.optimizer)
        loss, gradients = self.gradients(weights, arrays, batch, scale)
        shared = [name for name in self.names if name not in self.model.sharded]
        parts = [gradients[name] for name in shared]
        loss, sums = distributed.sum_gradients(loss, parts, self.config.compress_gradients)
        return self._update(loss, gradients | dict(zip(shared, sums, strict=True)), scale)

    def _apply(self, loss, gradients, scale):
        loss, gradients = self.regularize(self.weights(), loss, gradients, scale)
        self.optimizer.apply([gradients[name] for name in self.names], self.variables)
        return loss

    def _linearize(self, function, values):
        tape = self.tf.GradientTape(watch_accessed_variables=False)
        with tape:
            tape.watch(values)
            differentiable, rows = function(values)

        def pull_back(cotangents):
            gradients = tape.gradient(differentiable, values, output_gradients=cotangents)
            return {name: self.tf.convert_to_tensor(value) for name, value in gradients.items()}

        return (differentiable, rows), pull_back

    def _value_and_gradient(self, function, values):
        with self.tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = function(values)
        return loss, tape.gradient(loss, values, unconnected_gradients="zero")


class _JaxEngine(Engine):
    def __init__(self, *arguments):
        import jax

        super().__init__(*arguments)
        self.jax = jax
        # Copies: the step donates its state, and the Keras variables must stay readable.
        self._values = {name: ops.copy(value) for name, value in super().weights().items()}
        self._optimizer_values = [ops.copy(variable.value) for variable in self.optimizer.variables]
        self._step = jax.jit(self._whole_step, donate_argnums=(0, 1))

    def weights(self):
        return self._values

    def train_step(self, batch):
        self._values, self._optimizer_values, loss = self._step(
            self._values, self._optimizer_values, self.arrays, self.put(batch)
        )
        return loss

    def synchronize(self):
        for name, variable in zip(self.names, self.variables, strict=True):
            variable.assign(self._values[name])
        for value, variable in zip(self._optimizer_values, self.optimizer.variables, strict=True):
            variable.assign(value)

    def restore(self):
        self._values = {name: ops.copy(value) for name, value in super().weights().items()}
        self._optimizer_values = [ops.copy(variable.value) for variable in self.optimizer.variables]

    def _whole_step(self, weights, optimizer_values, arrays, batch):
        scope = list(zip(self.optimizer.variables, optimizer_values, strict=True))
        with keras.StatelessScope(state_mapping=scope):
            scale = _loss_scale(self.optimizer)
        loss, gradients = self.gradients(weights, arrays, batch, scale)
        loss, gradients = self.regularize(weights, loss, gradients, scale)
        ordered = [weights[name] for name in self.names], [gradients[name] for name in self.names]
        updated, optimizer_values = self.optimizer.stateless_apply(optimizer_values, ordered[1], ordered[0])
        return dict(zip(self.names, updated, strict=True)), optimizer_values, loss

    def _linearize(self, function, values):
        differentiable, back, rows = self.jax.vjp(function, values, has_aux=True)
        return (differentiable, rows), lambda cotangents: back(cotangents)[0]

    def _value_and_gradient(self, function, values):
        return self.jax.value_and_grad(function)(values)


class _TorchEngine(Engine):
    def train_step(self, batch):
        scale = _loss_scale(self.optimizer)
        weights = self.weights()
        loss, gradients = self.gradients(weights, self.arrays, self.put(batch), scale)
        loss, gradients = self.regularize(weights, loss, gradients, scale)
        self.optimizer.apply([gradients[name] for name in self.names], self.variables)
        return loss

    def weights(self):
        return {name: value.detach() for name, value in super().weights().items()}

    def _linearize(self, function, values):
        import torch

        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        with torch.enable_grad():
            differentiable, rows = function(leaves)

        def pull_back(cotangents):
            names = list(differentiable)
            gradients = torch.autograd.grad(
                [differentiable[name] for name in names],
                list(leaves.values()),
                [cotangents[name] for name in names],
            )
            return dict(zip(leaves, gradients, strict=True))

        return ({name: value.detach() for name, value in differentiable.items()}, rows), pull_back

    def _value_and_gradient(self, function, values):
        import torch

        leaves = keras.tree.map_structure(lambda value: value.detach().requires_grad_(), values)
        with torch.enable_grad():
            loss = function(leaves)
        flat = keras.tree.flatten(leaves)
        gradients = torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True)
        return loss.detach(), keras.tree.pack_sequence_as(leaves, list(gradients))


def create_engine(
    model: Recommender, network: keras.Model, config: TrainingConfig, arrays: Mapping[str, np.ndarray]
) -> Engine:
    """The engine of the backend that ``KERAS_BACKEND`` names."""
    engines = {"tensorflow": _TensorFlowEngine, "jax": _JaxEngine, "torch": _TorchEngine}
    return engines[keras.backend.backend()](model, network, config, arrays)


def compile_inference(function: Callable) -> Callable:
    """Compiles a function of tensors on this backend.

    Without XLA on TensorFlow: ranking 20,108 items took 3.8 s for 1,000 users with it and 0.3 s without on a
    CPU, while latencies of scoring are about the same.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def _loss_scale(optimizer):
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return ops.multiply(optimizer.dynamic_scale, 1.0)
    return ops.convert_to_tensor(np.float32(1.0))
