"""The page that the dashboard shows of a training run."""

import dataclasses

from recsys import report
from recsys.checkpoint import Progress
from recsys.models import Recommender

TRAINING = ("epoch", "loss", "train_seconds", "validation_seconds")


def learning_curve(name: str, model: Recommender, progress: Progress, summary: dict[str, float]) -> str:
    """Loss and validation metrics by epoch, the summary and every hyperparameter, as one HTML page."""
    history = progress.history
    metrics = [key for key in keys_of(history) if key not in TRAINING and not key.endswith("per_second")]
    loss = {"training loss": [(entry["epoch"], entry["loss"]) for entry in history]}
    validation = {key: [(e["epoch"], e[key]) for e in history if key in e] for key in metrics}
    return report.page(
        f"{name}: learning curve",
        report.facts(summary, "Result"),
        report.line_chart("Training loss", loss, "epoch", "loss"),
        report.line_chart("Validation", validation, "epoch", "metric"),
        report.facts(dataclasses.asdict(model.config), "Hyperparameters"),
    )


def keys_of(history: list[dict[str, float]]) -> list[str]:
    """Every key of the history, in order of appearance."""
    return list(dict.fromkeys(key for entry in history for key in entry))
