"""The loop over epochs and steps, and what is saved between them."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recsys import checkpoint, counter_random, device, distributed, models, stall_watch, storage
from recsys.checkpoint import Progress
from recsys.engine import Engine, compile_inference
from recsys.step import UserError

log = logging.getLogger(__name__)
LOSS_CHECK_STEPS = 50  # how many losses may wait on the device before one look at all of them
TRACED_STEPS = range(2, 7)  # after the compilation


class Stopped(Exception):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number


class Run:
    """A training run; of several ranks, all take every step and every decision together.

    Args:
        folder: where the first rank saves.
        address: a URI to which it also uploads what it saves; empty: none.
    """

    def __init__(
        self,
        model: models.Recommender,
        engine: Engine,
        progress: Progress,
        folder: Path,
        identity: dict[str, Any],
        seed: int,
        address: str = "",
    ):
        self.model, self.engine, self.progress = model, engine, progress
        self.folder, self.identity, self.seed, self.address = folder, identity, seed, address
        self.config = model.config
        self.signal = 0
        self.saved = self.logged = self.voted = time.monotonic()
        self.vote_at = self.last_vote = progress.step

    def epoch(self) -> None:
        """Trains one epoch (the rest of one, after a resume), validates when it is due, records."""
        progress, model = self.progress, self.model
        waiting: list[Any] = []
        first = progress.step_in_epoch
        seconds, start = 0.0, time.perf_counter()
        trace = contextlib.ExitStack()
        for batch in model.batches(self.seed, progress.epoch, first):
            if self.config.trace and distributed.is_first() and progress.step == TRACED_STEPS.start:
                trace.enter_context(device.trace(self.folder / "trace"))
            seed = counter_random.step_seed(self.seed, progress.step)
            inputs = model.batch(batch, seed, progress.step)
            with stall_watch.waiting():
                waiting.append(self.engine.train_step(inputs))
            progress.step += 1
            progress.step_in_epoch += 1
            if progress.step == TRACED_STEPS.stop or len(waiting) == LOSS_CHECK_STEPS:
                self._collect(waiting)
                trace.close()
            if self._must_save():
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
        state = checkpoint.state(self.engine)
        self._write(
            checkpoint.LAST,
            lambda: checkpoint.save_last(self.folder, state, self.progress, self.identity),
        )
        self.saved = time.monotonic()

    @contextlib.contextmanager
    def stop_on_signals(self):
        """Turns SIGINT and SIGTERM into a stop after the running step."""

        def note(number, frame):
            self.signal = number
            signal.signal(number, signal.SIG_DFL)  # the second one ends the process at once

        distributed.give_up_after_a_signal(
            f"no step ended within {distributed.SIGNAL_SECONDS} s of the signal, as if a worker were gone; "
            f"continue with --resume {self.address or self.folder}"
        )
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
            self.signal = max(distributed.gather(self.signal))
            self._stop_if_asked()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _must_save(self) -> bool:
        """Whether to save the state now, because that is due or a signal asked to stop.

        Several ranks vote on it about once a second, at a step that the first one has set before.
        """
        now = time.monotonic()
        due = now - self.saved > self.config.checkpoint_seconds
        if distributed.size() == 1:
            return bool(self.signal) or due
        step = self.progress.step
        if step < self.vote_at:
            return False
        per_second = (step - self.last_vote) / max(now - self.voted, 1e-9)
        ahead = min(max(int(per_second), 1), LOSS_CHECK_STEPS)
        votes = distributed.gather((self.signal, due, ahead))
        self.signal = max(vote[0] for vote in votes)
        self.vote_at, self.last_vote, self.voted = step + votes[0][2], step, time.monotonic()
        return bool(self.signal) or votes[0][1]

    def _write(self, name: str, write: Callable[[], None]) -> None:
        """Lets the first rank write a file; what the disk or the store refuses ends all ranks."""
        with distributed.agreed():
            if not distributed.is_first():
                return
            try:
                write()
                if self.address:
                    storage.put(self.folder / name, f"{self.address}/{name}")
            except OSError as error:
                raise UserError(f"--checkpoint: {error}; the last state saved is kept") from None

    def _validate(self, entry: dict[str, float]) -> None:
        progress, settings = self.progress, self.config
        last = progress.epoch == settings.epochs
        due = progress.epoch > settings.eval_after and progress.epoch % settings.validation_step == 0
        if not (last or due):
            return
        start = time.perf_counter()
        metrics = self.model.evaluate(
            compile_inference, self.engine.weights(), "validation", settings.validation_batch_size
        )
        entry |= distributed.broadcast(metrics)
        entry["validation_seconds"] = time.perf_counter() - start
        if progress.best is None or entry[self.model.metric] > progress.best:
            progress.best, progress.best_epoch = entry[self.model.metric], progress.epoch
            network = checkpoint.whole_network(self.engine)
            self._write(checkpoint.MODEL, lambda: checkpoint.save_best(self.folder, network))

    def _collect(self, waiting: list[Any]) -> None:
        """Fetches waiting losses from the device; a NaN or infinite one ends the run with its step."""
        with stall_watch.waiting():
            losses = [float(loss) for loss in waiting]
        first = self.progress.step - len(losses)
        waiting.clear()
        for number, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise distributed.CommonError(
                    f"the loss of step {number} (epoch {self.progress.epoch + 1}) is {loss}; "
                    "lower learning_rate, or use precision float32"
                )
        self.progress.losses += losses

    def _stop_if_asked(self) -> None:
        if self.signal:
            name = signal.Signals(self.signal).name
            where = f"stopped by {name} after epoch {self.progress.epoch}, step {self.progress.step}"
            raise Stopped(self.signal, f"{where}; continue with --resume {self.address or self.folder}")

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
