"""Scores a checkpoint on a whole held-out split and reports it beside a baseline."""

import argparse
import logging
import time
from dataclasses import dataclass

from recsys import checkpoint, config
from recsys.checkpoint import Trained
from recsys.engine import compile_inference
from recsys.feature_spec import FeatureSpec
from recsys.step import Outputs, UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Options of the step.

    Attributes:
        mapping: ``test`` or ``validation``.
        batch_size: users (Wide & Deep: rows) scored at once; null for the model's validation_batch_size. It
            cannot change a metric.
    """

    mapping: str = "test"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.mapping not in ("test", "validation"):
            raise UserError(f"--options: mapping must be test or validation, not {self.mapping!r}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--options: batch_size must be at least 1, not {self.batch_size}")


def evaluate(arguments: argparse.Namespace, outputs: Outputs) -> None:
    """Scores the whole held-out mapping and writes metrics and report."""
    options = config.from_json(Evaluation, arguments.options, "--options")
    spec = FeatureSpec.read(arguments.dataset)
    trained = checkpoint.load(arguments.checkpoint, spec)
    start = time.perf_counter()
    batch_size = options.batch_size or trained.model.config.validation_batch_size
    values = trained.model.evaluate(compile_inference, trained.weights(), options.mapping, batch_size)
    seconds = time.perf_counter() - start
    baseline = trained.model.baseline_metrics(options.mapping)
    for name, value in values.items():
        log.info("%s %.4f (%s %.4f)", name, value, trained.model.baseline, baseline[name])
    outputs.metrics(
        "metrics",
        {
            **values,
            **{f"{trained.model.baseline}_{name}": value for name, value in baseline.items()},
            "seconds": round(seconds, 3),
        },
    )
    outputs.file("report").write_text(_report(trained, spec, options, values, baseline))


def _report(
    trained: Trained,
    spec: FeatureSpec,
    options: Evaluation,
    values: dict[str, float],
    baseline: dict[str, float],
) -> str:
    about = trained.about
    rows = [f"| {name} | {value:.4f} | {baseline[name]:.4f} |" for name, value in values.items()]
    lines = [
        f"# {about['model']} on {spec.metadata.get('dataset', 'a dataset')}, {options.mapping} split",
        "",
        f"| metric | model | {trained.model.baseline} |",
        "|---|---|---|",
        *rows,
        "",
        f"Checkpoint: epoch {about['epoch']}, chosen by validation {about['metric']} {about['value']:.4f}; "
        f"seed {about['seed']}, git revision {about['git_revision']}.",
    ]
    if trained.about["dataset_sha256"] != spec.digest():
        lines += ["", "The checkpoint was trained on other data than this (the SHA-256 digests differ)."]
    if spec.source_spec.get("validation") == spec.source_spec.get("test") and "test" in spec.source_spec:
        lines += ["", "The best epoch was chosen on the test data, as the published references do."]
    return "\n".join(lines) + "\n"
