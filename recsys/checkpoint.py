"""A checkpoint folder: the best model for serving, and the last state for resuming.

::

    model.keras        best network by the validation metric, stock Keras layers
    config.json        model name, hyperparameters, seed, epoch, dataset digest, versions, git revision
    feature_spec.yaml  what the ids mean: cardinalities, channels, how the data was split
    history.json       one entry per epoch
    last.npz           weights, optimizer state and progress after the last saved step

Every file is replaced by a rename, so a killed step leaves the previous one. Arrays are read without pickle.
"""

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import yaml

from recsys import config as configuration
from recsys import distributed, models, sharded_tables
from recsys.engine import Engine, Tensors
from recsys.feature_spec import FILE_NAME, FeatureSpec
from recsys.step import UserError, atomic_write

MODEL, CONFIG, HISTORY, LAST = "model.keras", "config.json", "history.json", "last.npz"


@dataclass
class Progress:
    """Where a training run stands.

    Attributes:
        epoch: epochs completed.
        step_in_epoch: steps done of the next epoch.
        step: optimizer steps done in all.
        losses: loss of each step of the unfinished epoch.
        seconds: training time so far, validation excluded.
        best: best validation metric so far; ``best_epoch`` is its epoch, 0 for none.
        history: one dict per completed epoch.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def state(engine: Engine) -> dict[str, np.ndarray]:
    """Weights and optimizer state, on the first rank; puts sharded tables together, so all ranks call it."""
    engine.synchronize()
    arrays = {}
    for name, variable, rows in _variables(engine):
        array = sharded_tables.collect(variable.value, rows) if rows else None
        if distributed.is_first():
            arrays[name] = keras.ops.convert_to_numpy(variable.value) if array is None else array
    return arrays


def assign(engine: Engine, arrays: dict[str, np.ndarray]) -> None:
    """Gives every rank the first one's ``arrays``, or its initial weights where there are none."""
    resumed, first = distributed.broadcast(bool(arrays)), distributed.is_first()
    for name, variable, rows in _variables(engine):
        if rows and resumed:
            variable.assign(sharded_tables.deal(arrays[name] if first else None, variable))
        elif arrays:
            variable.assign(arrays[name])
    distributed.broadcast_variables(variable for _, variable, rows in _variables(engine) if not rows)
    if arrays:
        engine.restore()


def _variables(engine: Engine) -> Iterator[tuple[str, Any, int]]:
    """Name in ``last.npz``, variable, and the rows of the whole table where this rank holds a shard, or 0."""
    sharded = engine.model.sharded
    for variable in engine.variables:
        yield f"weight/{variable.path}", variable, sharded.get(variable.path, 0)
    for number, variable in enumerate(engine.optimizer.variables):
        # Keras names a variable of the optimizer after the one it belongs to.
        rows = (rows for name, rows in sharded.items() if name.replace("/", "_") in variable.path)
        yield f"optimizer/{number}", variable, next(rows, 0)


def save_last(folder: Path, arrays: dict[str, np.ndarray], progress: Progress, run: dict[str, Any]) -> None:
    """Writes ``last.npz``: everything that ``--resume`` needs. ``run`` is what must agree on resuming."""
    state = json.dumps({"progress": dataclasses.asdict(progress), "run": run})
    temporary = folder / f".{LAST}.tmp"
    try:
        with open(temporary, "wb") as stream:
            np.savez(stream, state=np.frombuffer(state.encode(), np.uint8), **arrays)
        temporary.replace(folder / LAST)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk


def read_last(path: Path, run: dict[str, Any]) -> tuple[Progress, dict[str, np.ndarray]]:
    """Reads a saved state: where the run stood, and what :func:`assign` puts back into the engine.

    Raises:
        UserError: there is none, it cannot be read, or it belongs to another run.
    """
    file = path / LAST
    if not file.is_file():
        raise UserError(f"--resume {path}: no {LAST} there; give a checkpoint folder, finished or '.partial'")
    try:
        with np.load(file, allow_pickle=False) as saved:
            state = json.loads(saved["state"].tobytes())
            arrays = {name: saved[name] for name in saved.files if name != "state"}
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"--resume {file}: cannot be read as a saved state: {error}") from None
    for key, value in run.items():
        if state["run"].get(key) != value:
            raise UserError(
                f"--resume {file}: was saved with {key} {state['run'].get(key)!r}, this run has {value!r}"
            )
    return Progress(**state["progress"]), arrays


def whole_network(engine: Engine) -> keras.Model | None:
    """The network for serving, on the first rank; with sharded tables put together, so all ranks call it."""
    engine.synchronize()
    sharded = engine.model.sharded
    if not sharded:
        return engine.network
    tables = {
        variable.path: sharded_tables.collect(variable.value, sharded[variable.path])
        for variable in engine.variables
        if variable.path in sharded
    }
    if not distributed.is_first():
        return None
    weights = {variable.path: variable.value for variable in engine.variables} | tables
    network = engine.model.network(0, whole=True)  # type: ignore[call-arg]
    for variable in network.trainable_variables:
        variable.assign(weights[variable.path])
    return network


def save_best(folder: Path, network: keras.Model) -> None:
    """Writes ``model.keras``."""
    temporary = folder / f".partial.{MODEL}"
    try:
        network.save(temporary)
        temporary.replace(folder / MODEL)
    finally:
        temporary.unlink(missing_ok=True)


def copy_best(source: Path, folder: Path) -> None:
    """Takes the best model of an earlier attempt over, where there is one."""
    if source.resolve() == folder.resolve():
        return
    (folder / MODEL).unlink(missing_ok=True)
    if (source / MODEL).is_file():
        temporary = folder / f".partial.{MODEL}"
        shutil.copyfile(source / MODEL, temporary)
        temporary.replace(folder / MODEL)


def describe(
    folder: Path, model: models.Recommender, name: str, about: dict[str, Any], progress: Progress
) -> None:
    """Writes ``config.json``, ``feature_spec.yaml`` and ``history.json``."""
    content = {"model": name, "hyperparameters": dataclasses.asdict(model.config), **about}
    atomic_write(folder / CONFIG, json.dumps(content, indent=2, allow_nan=False) + "\n")
    atomic_write(folder / HISTORY, json.dumps(progress.history, indent=1, allow_nan=False) + "\n")
    atomic_write(folder / FILE_NAME, yaml.safe_dump(model.spec.as_dict(), sort_keys=False))


@dataclass(frozen=True)
class Trained:
    """A loaded checkpoint on a dataset: ``model`` is the math, ``network`` holds the best weights."""

    model: models.Recommender
    network: keras.Model
    about: dict[str, Any]

    def weights(self) -> Tensors:
        """Weights by name, as the model's functions take them."""
        return {variable.path: variable.value for variable in self.network.trainable_variables}


def load(folder: Path, spec: FeatureSpec) -> Trained:
    """Loads the best model of a checkpoint for a dataset.

    Raises:
        UserError: files are missing or broken, or the dataset has other cardinalities than the checkpoint.
    """
    missing = [name for name in (CONFIG, FILE_NAME, MODEL) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"--checkpoint {folder}: {missing[0]} is missing; give the folder that train wrote")
    try:
        about = json.loads((folder / CONFIG).read_text())
        trained_on = yaml.safe_load((folder / FILE_NAME).read_text())
        module = models.load(about["model"])
        network = keras.models.load_model(folder / MODEL)
    except FileNotFoundError as error:
        raise UserError(
            f"--checkpoint {folder}: {Path(error.filename).name} is missing; is it a checkpoint?"
        ) from None
    except (ValueError, KeyError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise UserError(
            f"--checkpoint {folder}: cannot be read: {' '.join(str(error).split())[:200]}"
        ) from None
    here = _input_shapes(spec.feature_spec, spec.channel_spec, module.Model.inputs)
    there = _input_shapes(trained_on["feature_spec"], trained_on["channel_spec"], module.Model.inputs)
    for channel in module.Model.inputs:
        if here[channel] != there[channel]:
            raise UserError(
                f"--checkpoint {folder}: was trained with channel {channel!r} of {_shown(there[channel])}, "
                f"{spec.folder} has {_shown(here[channel])}"
            )
    parsed: Any = configuration.from_json(module.Config, about["hyperparameters"], str(folder / CONFIG))
    return Trained(module.Model(parsed, spec), network, about)


def _input_shapes(features: Any, channels: Any, names: tuple[str, ...]) -> dict[str, list[tuple]]:
    """Channel to cardinality and hotness of each of its features, in order; names may differ."""
    keys = ("cardinality", "max_hotness")
    return {
        name: [tuple((features[f] or {}).get(key) for key in keys) for f in channels.get(name, ())]
        for name in names
    }


def _shown(shapes: list[tuple]) -> str:
    """``2 features with 943 and 1682 ids``, shortened."""
    cardinalities = [str(cardinality) for cardinality, _ in shapes[:20] if cardinality]
    ids = f" with {', '.join(cardinalities)} ids" if cardinalities else ""
    return f"{len(shapes)} feature{'' if len(shapes) == 1 else 's'}{ids}"
