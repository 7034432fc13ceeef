"""Hyperparameters: one JSON object into a frozen dataclass, strictly.

A key that the dataclass does not have, or a value of another type, ends the step with one line that names
the close and the allowed keys, so that a typing error never trains a model with defaults.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from recsys.step import UserError

T = TypeVar("T")
PRECISIONS = ("float32", "bfloat16", "float16")


def from_json(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds the dataclass ``cls`` from JSON values.

    Args:
        values: keys are field names; an int is taken for a float field, a list for a tuple field.
        where: what the values belong to (a flag), for messages.
    Raises:
        UserError: unknown key or wrong type; a dataclass may raise it for a wrong value.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    converted = {}
    for key, value in values.items():
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UserError(f"{where}: unknown key {key!r}{hint}; allowed: {', '.join(names)}")
        try:
            converted[key] = _convert(hints[key], value)
        except ValueError:
            raise UserError(f"{where}: {key} must be {_describe(hints[key])}, not {value!r}") from None
    return cls(**converted)


def _convert(kind: Any, value: Any) -> Any:
    """``value`` as the type ``kind``; ValueError when it is of another one."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _convert_to_one_of(arguments, value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], entry) for entry in value)
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], entry) for key, entry in value.items()}
    if origin is not None:
        raise ValueError
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    # KFP's protobuf structs hold every number as a double: 30 arrives as 30.0.
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ValueError


def _convert_to_one_of(options: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is not type(None):
            try:
                return _convert(option, value)
            except ValueError:
                continue
    raise ValueError


def _describe(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return f"a list of {_describe(arguments[0]).removeprefix('a ')}s"
    if origin is dict:
        return f"an object of names, each with {_describe(arguments[1])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if option is type(None) else _describe(option) for option in arguments)
    return names.get(kind, str(kind))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every model's ``Config`` has; each model sets its reference's defaults.

    Attributes:
        epochs: passes over the training data.
        batch_size: global batch in the reference's unit (NCF: samples with negatives; VAE-CF: users).
        learning_rate, epsilon: of the optimizer.
        l2: adds ``l2 * sum(w**2)`` over kernels and embeddings to the loss.
        gradient_accumulation: batches whose mean gradient makes one optimizer update.
        precision: compute type; variables and loss stay float32. float16 brings dynamic loss scaling.
        xla: compile the dense part of a training step and the update with XLA (TensorFlow only).
        micro_batch: rows that run through the dense layers at once; 0 leaves the choice to the model.
        topk: k of the top-k metrics.
        eval_after: no validation in the first ``eval_after`` epochs.
        validation_step: epochs between validations; the last epoch always validates.
        validation_batch_size: users scored at once.
        target: stop when the validation metric reaches it.
        checkpoint_seconds: seconds between saves of the resumable state.
        compress_gradients: several workers exchange gradients as float16, half the bytes.
        trace: write a profiler trace of some steps of the first epoch beside the weights.
    """

    epochs: int = 30
    batch_size: int = 1024
    learning_rate: float = 0.001
    epsilon: float = 1e-8
    l2: float = 0.0
    gradient_accumulation: int = 1
    precision: str = "float32"
    xla: bool = True
    micro_batch: int = 0
    topk: int = 10
    eval_after: int = 0
    validation_step: int = 1
    validation_batch_size: int = 1024
    target: float = 1.0
    checkpoint_seconds: float = 60.0
    compress_gradients: bool = False
    trace: bool = False

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "learning_rate", "epsilon", "gradient_accumulation", "topk")
        for name in (*positive, "validation_step", "validation_batch_size"):
            self.check(name, getattr(self, name) > 0, "more than 0")
        for name in ("l2", "micro_batch", "eval_after", "checkpoint_seconds"):
            self.check(name, getattr(self, name) >= 0, "0 or more")
        self.check("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")

    def check(self, name: str, legal: bool, allowed: str) -> None:
        """Raises :class:`UserError` when the field's value is not legal."""
        if not legal:
            raise UserError(f"hyperparameters: {name} must be {allowed}, not {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class AdamConfig(TrainingConfig):
    """Of the models that Adam trains.

    Attributes:
        beta_1, beta_2: decay of Adam's first and second moment.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta_1", "beta_2"):
            self.check(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
