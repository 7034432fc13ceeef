"""The training run, read from top to bottom: data, network, loop, validation, checkpoint."""

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from components.train.learning_curve import learning_curve
from components.train.loop import Run
from recsys import checkpoint, config, device, distributed, models, storage
from recsys.checkpoint import Progress
from recsys.engine import Engine, create_engine
from recsys.feature_spec import FeatureSpec
from recsys.input_pipeline import steps_per_epoch
from recsys.step import Outputs, UserError

log = logging.getLogger(__name__)
Begun = tuple[Progress, dict[str, np.ndarray]]
# Hyperparameters that a resumed run may set anew; the others decide what the saved state means.
MAY_CHANGE = (
    "epochs",
    "target",
    "eval_after",
    "validation_step",
    "validation_batch_size",
    "checkpoint_seconds",
    "compress_gradients",
    "embedding_parallel",
)


def train(arguments: argparse.Namespace, outputs: Outputs | None) -> None:
    """Trains, keeps the best checkpoint by the validation metric, and reports.

    Args:
        outputs: None on every rank but the first, which alone writes.
    """
    distributed.init()
    with distributed.agreed():
        model, engine, identity = prepare(arguments)
    hosts = distributed.prove({**same_everywhere(), **{k: str(v) for k, v in identity.items()}})
    if distributed.size() > 1:
        log.info("%d workers: %s", len(hosts), ", ".join(hosts))

    # Where the run stands.
    folder = outputs.folder("checkpoint", keep=True) if outputs else Path(arguments.checkpoint)
    address = arguments.checkpoint if isinstance(arguments.checkpoint, str) else ""
    progress, state = _new()
    with distributed.agreed():
        if outputs:
            progress, state = start(arguments.resume, address or str(folder), folder, identity)
    progress = distributed.broadcast(progress)
    checkpoint.assign(engine, state)

    # Epochs.
    run = Run(model, engine, progress, folder, identity, arguments.seed, address)
    with run.stop_on_signals():
        while progress.epoch < model.config.epochs and not run.reached_target():
            run.epoch()
        run.save()
    if outputs is None:
        return

    # Reports.
    about = {
        "seed": arguments.seed,
        "epoch": progress.best_epoch,
        "metric": model.metric,
        "value": progress.best,
        "dataset_sha256": identity["dataset"],
        "git_revision": git_revision(),
        "versions": device.versions(),
    }
    checkpoint.describe(folder, model, arguments.model, about, progress)
    summary = summarize(model, progress)
    outputs.describe("checkpoint", {"model": arguments.model, model.metric: progress.best})
    outputs.metrics("history", summary)
    page = learning_curve(arguments.model, model, progress, summary)
    outputs.file("learning_curve").write_text(page)
    log.info("best %s %.4f at epoch %d", model.metric, progress.best, progress.best_epoch)


def prepare(arguments: argparse.Namespace) -> tuple[models.Recommender, Engine, dict[str, Any]]:
    """The model on its data, the engine with new weights, and what a resumed run must share with this one."""
    if arguments.seed < 0:
        raise UserError(f"--seed must be 0 or more, not {arguments.seed}")
    module = models.load(arguments.model)
    hyperparameters: Any = config.from_json(module.Config, arguments.hyperparameters, "--hyperparameters")
    spec = FeatureSpec.read(arguments.dataset)
    model = module.Model(hyperparameters, spec)
    if distributed.is_first():
        # A dataset that cannot be validated fails here, before the first epoch and not after it.
        log.info("%s on the validation data: %s", model.baseline, model.baseline_metrics("validation"))
    network = model.network(arguments.seed)
    engine = create_engine(model, network, hyperparameters, model.training_arrays())
    log.info("%s: %s", arguments.model, hyperparameters)
    log.info(
        "%s training examples, %s steps an epoch, %s weights, %s",
        f"{model.examples:,}",
        steps_per_epoch(model.examples, model.batch_examples),
        f"{network.count_params():,}",
        device.hardware(),
    )
    settings = {k: v for k, v in as_json(hyperparameters).items() if k not in MAY_CHANGE}
    digest = spec.digest() if distributed.local_rank() == 0 else ""  # once on each host
    identity = {"model": arguments.model, "seed": arguments.seed, "dataset": digest}
    return model, engine, {**identity, "hyperparameters": settings}


def start(resume: str, own: str, folder: Path, identity: dict[str, Any]) -> Begun:
    """Where the run stands: at the state to resume, or at the beginning, with a cleared folder.

    Args:
        resume: the checkpoint to continue; empty for none.
        own: where this run itself saves. With ``RECSYS_RESUME_OWN=1`` an earlier attempt's state there is
            resumed: the operator starts the launcher of a failed MPIJob again.
    """
    if not resume and os.environ.get("RECSYS_RESUME_OWN") == "1" and _holds_state(own):
        try:
            return _resumed(own, folder, identity)
        except UserError as error:
            log.warning("the state of an earlier run is not resumed: %s", error)
    if resume:
        return _resumed(resume, folder, identity)
    (folder / checkpoint.LAST).unlink(missing_ok=True)
    (folder / checkpoint.MODEL).unlink(missing_ok=True)
    return _new()


def _new() -> Begun:
    return Progress(), {}


def _holds_state(address: str) -> bool:
    if storage.is_remote(address):
        return checkpoint.LAST in map(storage.file_name, storage.list_folder(f"{address.rstrip('/')}/"))
    return (Path(address) / checkpoint.LAST).is_file()


def _resumed(resume: str, folder: Path, identity: dict[str, Any]) -> Begun:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        source = _fetched(resume, Path(scratch)) if storage.is_remote(resume) else Path(resume)
        try:
            progress, state = checkpoint.read_last(source, identity)
        except UserError as error:
            raise UserError(str(error).replace(str(source), resume)) from None
        checkpoint.copy_best(source, folder)
    log.info("resumed after epoch %d, step %d", progress.epoch, progress.step)
    return progress, state


def _fetched(address: str, folder: Path) -> Path:
    """What resuming needs of a checkpoint in a store."""
    for object_ in storage.list_folder(f"{address.rstrip('/')}/"):
        if storage.file_name(object_) in (checkpoint.LAST, checkpoint.MODEL):
            storage.fetch(object_, folder / storage.file_name(object_))
    return folder


def summarize(model: models.Recommender, progress: Progress) -> dict[str, Any]:
    """The scalars that the dashboard shows of a run."""
    rates = [entry[f"{model.unit}_per_second"] for entry in progress.history]
    steady = rates[1:] or rates  # the first epoch holds the compilation
    summary: dict[str, Any] = {
        f"validation_{model.metric}": progress.best,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "steps": progress.step,
        "train_loss": progress.history[-1]["loss"],
        "train_seconds": round(progress.seconds, 3),
        f"train_{model.unit}_per_second_mean": round(float(np.mean(steady)), 1),
        f"train_{model.unit}_per_second_best": round(max(steady), 1),
        "peak_memory_mb": device.peak_memory_bytes() // 1_000_000,
    }
    hit = next(
        (e["epoch"] for e in progress.history if e.get(model.metric, -1.0) >= model.config.target), None
    )
    return summary if hit is None else {**summary, "first_epoch_to_target": hit}


def same_everywhere() -> dict[str, str]:
    """What all ranks must agree on before the first step, beside the run itself."""
    root = Path(__file__).parents[2]
    sha = hashlib.sha256()
    for path in sorted(
        path for package in ("recsys", "components") for path in (root / package).rglob("*.py")
    ):
        sha.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    device_kind = "cpu" if device.on_cpu() else "gpu"
    return {"code": sha.hexdigest()[:12], "device": device_kind, "versions": str(device.versions())}


def as_json(hyperparameters: config.TrainingConfig) -> dict[str, Any]:
    """The hyperparameters as they come back from a JSON file."""
    return json.loads(json.dumps(dataclasses.asdict(hyperparameters)))


def git_revision() -> str:
    """Revision of the source tree, or ``RECSYS_REVISION`` in an image without one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("RECSYS_REVISION", "unknown")
