"""Optimizers: Adam as a config says, and two optimizers that share one step."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from recsys.config import AdamConfig


def adam(config: AdamConfig) -> keras.optimizers.Optimizer:
    """Adam with the config's rates; one update per ``gradient_accumulation`` batches."""
    accumulate = config.gradient_accumulation
    return keras.optimizers.Adam(
        config.learning_rate,
        config.beta_1,
        config.beta_2,
        config.epsilon,
        gradient_accumulation_steps=accumulate if accumulate > 1 else None,
    )


class JointOptimizer(keras.optimizers.Optimizer):
    """Updates some variables by one optimizer and the others by a second one, in the same step.

    As one optimizer it has one loss scale, one accumulation of gradients and one list of saved variables.

    Args:
        first: updates what ``second`` does not; its learning rate may be a schedule, which counts batches.
        second: updates the variables whose path ``of_second`` accepts, at a constant rate.
        gradient_accumulation: batches whose mean gradient makes one update.
    """

    def __init__(
        self,
        first: keras.optimizers.Optimizer,
        second: keras.optimizers.Optimizer,
        of_second: Callable[[str], bool],
        gradient_accumulation: int = 1,
    ):
        # `_learning_rate` rather than `learning_rate`: of a schedule, the property is only its current value.
        accumulate = gradient_accumulation if gradient_accumulation > 1 else None
        super().__init__(first._learning_rate, gradient_accumulation_steps=accumulate, name="joint")
        self.first, self.second, self.of_second = first, second, of_second
        self._keys_of_second: set[Any] = set()

    def build(self, variables: list[Any]) -> None:
        """Creates the state of both optimizers."""
        if self.built:
            return
        super().build(variables)
        seconds = [variable for variable in variables if self.of_second(variable.path)]
        self._keys_of_second = {self._var_key(variable) for variable in seconds}
        self.second.build(seconds)
        self.first.build([v for v in variables if self._var_key(v) not in self._keys_of_second])

    @property
    def variables(self) -> list[Any]:
        """The state of both, in a fixed order."""
        return self._variables + self.first.variables + self.second.variables

    def update_step(self, gradient, variable, learning_rate) -> None:
        """Hands one variable to its optimizer."""
        if self._var_key(variable) in self._keys_of_second:
            rate = ops.convert_to_tensor(self.second.learning_rate)
            self.second.update_step(gradient, variable, rate)
        else:
            self.first.update_step(gradient, variable, learning_rate)


class WarmupAndDrops(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to ``base``, then ``base / 4``, and ``base / 8`` for the last half of what follows.

    The schedule of NVIDIA's Wide & Deep reference, which drops by four as soon as the warm-up ends. There it
    is applied one step late, and the very first update takes the full rate; here update ``s`` (from 0) has
    the rate that is meant for it.

    Args:
        base: the rate at the end of the warm-up.
        warmup: updates of the warm-up.
        total: updates of the whole run.
    """

    def __init__(self, base: float, warmup: float, total: float):
        self.base, self.warmup, self.drop = base, warmup, warmup + (total - warmup) / 2

    def __call__(self, step):
        number = ops.cast(step, "float32") + 1.0
        warm = self.base * number / max(self.warmup, 1.0)
        late = ops.where(number > self.drop, self.base / 8, self.base / 4)
        return ops.where(number < self.warmup, warm, late)

    def get_config(self) -> dict[str, float]:
        return {"base": self.base, "warmup": self.warmup, "drop": self.drop}
