"""The training run, read from top to bottom: data, network, loop, validation, checkpoint."""

import argparse
import contextlib
import dataclasses
import json
import logging
import math
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from components.train.learning_curve import learning_curve
from recsys import checkpoint, config, counter_random, device, models
from recsys.checkpoint import Progress
from recsys.engine import Engine, compile_inference, create_engine
from recsys.feature_spec import FeatureSpec
from recsys.input_pipeline import steps_per_epoch
from recsys.step import Outputs, UserError

log = logging.getLogger(__name__)
LOSS_CHECK_STEPS = 50  # how many losses may wait on the device before one look at all of them
# Hyperparameters that a resumed run may set anew; the others decide what the saved state means.
MAY_CHANGE = (
    "epochs",
    "target",
    "eval_after",
    "validation_step",
    "validation_batch_size",
    "checkpoint_seconds",
)
TRACED_STEPS = range(2, 7)  # after the compilation


class Stopped(Exception):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number


def train(arguments: argparse.Namespace, outputs: Outputs) -> None:
    """Trains, keeps the best checkpoint by the validation metric, and reports."""
    # Data and model.
    if arguments.seed < 0:
        raise UserError(f"--seed must be 0 or more, not {arguments.seed}")
    module = models.load(arguments.model)
    hyperparameters: Any = config.from_json(module.Config, arguments.hyperparameters, "--hyperparameters")
    spec = FeatureSpec.read(arguments.dataset)
    model = module.Model(hyperparameters, spec)
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

    # Where the run stands.
    identity = {"model": arguments.model, "seed": arguments.seed, "dataset": spec.digest()}
    identity["hyperparameters"] = {k: v for k, v in as_json(hyperparameters).items() if k not in MAY_CHANGE}
    folder = outputs.folder("checkpoint", keep=True)
    if arguments.resume:
        progress = checkpoint.restore(Path(arguments.resume), engine, identity)
        checkpoint.copy_best(Path(arguments.resume), folder)
        log.info("resumed after epoch %d, step %d", progress.epoch, progress.step)
    else:
        progress = Progress()
        (folder / checkpoint.LAST).unlink(missing_ok=True)
        (folder / checkpoint.MODEL).unlink(missing_ok=True)

    # Epochs.
    run = Run(model, engine, progress, folder, identity, arguments.seed)
    with run.stop_on_signals():
        while progress.epoch < hyperparameters.epochs and not run.reached_target():
            run.epoch()
        run.save()

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


class Run:
    """The loop over epochs and steps, and what is saved between them."""

    def __init__(
        self,
        model: models.Recommender,
        engine: Engine,
        progress: Progress,
        folder: Path,
        identity: dict[str, Any],
        seed: int,
    ):
        self.model, self.engine, self.progress = model, engine, progress
        self.folder, self.identity, self.seed = folder, identity, seed
        self.config = model.config
        self.signal = 0
        self.saved = self.logged = time.monotonic()

    def epoch(self) -> None:
        """Trains one epoch (the rest of one, after a resume), validates when it is due, records."""
        progress, model = self.progress, self.model
        waiting: list[Any] = []
        first = progress.step_in_epoch
        seconds, start = 0.0, time.perf_counter()
        trace = contextlib.ExitStack()
        for batch in model.batches(self.seed, progress.epoch, first):
            if self.config.trace and progress.step == TRACED_STEPS.start:
                trace.enter_context(device.trace(self.folder / "trace"))
            seed = counter_random.step_seed(self.seed, progress.step)
            waiting.append(self.engine.train_step(model.batch(batch, seed, progress.step)))
            progress.step += 1
            progress.step_in_epoch += 1
            if progress.step == TRACED_STEPS.stop or len(waiting) == LOSS_CHECK_STEPS:
                self._collect(waiting)
                trace.close()
            if self.signal or time.monotonic() - self.saved > self.config.checkpoint_seconds:
                self._collect(waiting)
                spent = time.perf_counter() - start
                seconds, progress.seconds = seconds + spent, progress.seconds + spent
                self.save()
                self._stop_if_asked()
                start = time.perf_counter()  # saving is no training
        self._collect(waiting)
        trace.close()
        spent = time.perf_counter() - start
        seconds, progress.seconds = seconds + spent, progress.seconds + spent
        steps = progress.step_in_epoch - first
        examples = min(steps * model.batch_examples, model.examples)
        entry = {
            "loss": float(np.mean(progress.losses)),
            "train_seconds": seconds,
            f"{model.unit}_per_second": examples * model.units_per_example / seconds,
        }
        progress.epoch, progress.step_in_epoch, progress.losses = progress.epoch + 1, 0, []
        self._validate(entry)
        progress.history.append({"epoch": progress.epoch, **entry})
        self._log(entry)

    def reached_target(self) -> bool:
        """Whether the best validation metric has reached the configured target."""
        best = self.progress.best
        return best is not None and best >= self.config.target

    def save(self) -> None:
        """Saves the resumable state."""
        checkpoint.save_last(self.folder, self.engine, self.progress, self.identity)
        self.saved = time.monotonic()

    @contextlib.contextmanager
    def stop_on_signals(self):
        """Turns SIGINT and SIGTERM into a stop after the running step."""

        def note(number, frame):
            self.signal = number
            signal.signal(number, signal.SIG_DFL)  # the second one ends the process at once

        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
            self._stop_if_asked()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _validate(self, entry: dict[str, float]) -> None:
        progress, settings = self.progress, self.config
        last = progress.epoch == settings.epochs
        due = progress.epoch > settings.eval_after and progress.epoch % settings.validation_step == 0
        if not (last or due):
            return
        start = time.perf_counter()
        entry |= self.model.evaluate(
            compile_inference, self.engine.weights(), "validation", settings.validation_batch_size
        )
        entry["validation_seconds"] = time.perf_counter() - start
        if progress.best is None or entry[self.model.metric] > progress.best:
            progress.best, progress.best_epoch = entry[self.model.metric], progress.epoch
            self.engine.synchronize()
            checkpoint.save_best(self.folder, self.engine.network)

    def _collect(self, waiting: list[Any]) -> None:
        """Fetches waiting losses from the device; a NaN or infinite one ends the run with its step."""
        losses = [float(loss) for loss in waiting]
        first = self.progress.step - len(losses)
        waiting.clear()
        for number, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss of step {number} (epoch {self.progress.epoch + 1}) is {loss}; "
                    "lower learning_rate, or use precision float32"
                )
        self.progress.losses += losses

    def _stop_if_asked(self) -> None:
        if self.signal:
            name = signal.Signals(self.signal).name
            where = f"stopped by {name} after epoch {self.progress.epoch}, step {self.progress.step}"
            raise Stopped(self.signal, f"{where}; continue with --resume {self.folder}")

    def _log(self, entry: dict[str, float]) -> None:
        """One line for every validated epoch; of the others at most one in five seconds."""
        if self.model.metric in entry or time.monotonic() - self.logged > 5:
            self.logged = time.monotonic()
            shown = {name: value for name, value in entry.items() if not name.endswith("seconds")}
            text = "  ".join(
                f"{name} {value:,.0f}" if value > 1000 else f"{name} {value:.4f}"
                for name, value in shown.items()
            )
            log.info("epoch %d/%d  %s", self.progress.epoch, self.config.epochs, text)


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
