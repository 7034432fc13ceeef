"""What is measured, and how.

Training: real steps on the real data from the checkpoint's weights (which are not changed on disk). The first
steps, which compile, are left out. A clock is read only after the loss has arrived from the device.
Inference: random input of each batch size; the first calls are left out; latencies are per batch.
Both end after a number of repetitions or of seconds, whichever comes first.
"""

import argparse
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys import checkpoint, config, counter_random, device, report
from recsys.checkpoint import Trained
from recsys.engine import compile_inference, create_engine
from recsys.feature_spec import FeatureSpec
from recsys.step import Outputs, UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How long to measure.

    Attributes:
        train_steps, train_warmup, train_seconds: training steps at most, steps left out, seconds at most.
        inference_batches, inference_warmup, inference_seconds: the same, for each batch size; 200 and 10
            are the references' numbers.
        batch_sizes: of inference; null for those of the model's reference.
    """

    train_steps: int = 100
    train_warmup: int = 3
    train_seconds: float = 10.0
    inference_batches: int = 200
    inference_warmup: int = 10
    inference_seconds: float = 2.0
    batch_sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("train_steps", "train_seconds", "inference_batches", "inference_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"--options: {name} must be more than 0, not {getattr(self, name)}")
        if self.batch_sizes is not None and (not self.batch_sizes or min(self.batch_sizes) < 1):
            raise UserError(
                f"--options: batch_sizes must be whole numbers of at least 1, not {self.batch_sizes}"
            )


def benchmark(arguments: argparse.Namespace, outputs: Outputs) -> None:
    """Measures training and inference and writes metrics and page."""
    options = config.from_json(Options, arguments.options, "--options")
    trained = checkpoint.load(arguments.checkpoint, FeatureSpec.read(arguments.dataset))
    model = trained.model
    matrix_rate = device.matrix_product_rate()
    training = measure_training(trained, options)
    training["achieved_gflops"] = training["per_second_mean"] * model.flops_per_unit() / 1e9
    training["matrix_product_gflops"] = matrix_rate / 1e9
    training["share_of_matrix_product_rate"] = training["achieved_gflops"] / training["matrix_product_gflops"]
    log.info(
        "training: %s %s/s, %.0f %% of the matrix product rate",
        f"{training['per_second_mean']:,.0f}",
        model.unit,
        100 * training["share_of_matrix_product_rate"],
    )
    inference = {
        size: measure_inference(trained, options, size)
        for size in options.batch_sizes or model.inference_batch_sizes
    }
    outputs.metrics("throughput", _headline(model, training, inference))
    outputs.file("report").write_text(_page(trained, options, training, inference))


def measure_training(trained: Trained, options: Options) -> dict[str, float]:
    """Throughput in the model's unit per second: mean, best, and spread (standard deviation) over steps."""
    model, about = trained.model, trained.about
    engine = create_engine(model, trained.network, model.config, model.training_arrays())
    batches = _endless(model, about["seed"])
    rates: list[float] = []
    begin = time.perf_counter()
    for step in range(options.train_warmup + options.train_steps):
        if step == options.train_warmup:
            begin = time.perf_counter()
        batch = next(batches)
        start = time.perf_counter()
        loss = engine.train_step(model.batch(batch, counter_random.step_seed(about["seed"], step), step))
        device.synchronize(loss)
        if step >= options.train_warmup:
            rates.append(batch.examples * model.units_per_example / (time.perf_counter() - start))
            if time.perf_counter() - begin > options.train_seconds:
                break
    # Steps of equal size: the mean over time is the harmonic mean of the rates.
    mean = len(rates) / sum(1.0 / rate for rate in rates)
    spread = float(np.std(rates))
    return {
        "steps": len(rates),
        "per_second_mean": mean,
        "per_second_best": max(rates),
        "per_second_spread": spread,
    }


def measure_inference(trained: Trained, options: Options, batch_size: int) -> dict[str, float]:
    """Latency of one batch in seconds (mean, p50, p90, p95, p99) and units per second at the mean."""
    function, units = trained.model.inference(compile_inference, batch_size)
    weights = trained.weights()

    def once() -> float:
        start = time.perf_counter()
        device.synchronize(function(weights))
        return time.perf_counter() - start

    latencies = _repeat(once, options.inference_warmup, options.inference_batches, options.inference_seconds)
    p50, p90, p95, p99 = map(float, np.percentile(latencies, [50, 90, 95, 99]))
    mean = float(np.mean(latencies))
    return {
        "batches": len(latencies),
        "per_second": units / mean,
        "latency_mean": mean,
        "latency_p50": p50,
        "latency_p90": p90,
        "latency_p95": p95,
        "latency_p99": p99,
    }


def _repeat(once: Callable[[], float], warmup: int, repeats: int, seconds: float) -> list[float]:
    """Durations of calls after the warm-up, of which the first (it compiles) is always one."""
    begin = time.perf_counter()
    once()
    for _ in range(warmup - 1):
        if time.perf_counter() - begin > seconds:
            break
        once()
    begin = time.perf_counter()
    durations = [once()]
    while len(durations) < repeats and time.perf_counter() - begin < seconds:
        durations.append(once())
    return durations


def _endless(model: Any, seed: int) -> Iterator[Any]:
    """Full batches of epoch after epoch; a shorter last batch would distort the rate."""
    for epoch in itertools.count():
        for batch in model.batches(seed, epoch):
            if batch.examples == model.batch_examples or model.examples < model.batch_examples:
                yield batch


def _headline(
    model: Any, training: dict[str, float], inference: dict[int, dict[str, float]]
) -> dict[str, float]:
    smallest, fastest = min(inference), max(inference, key=lambda size: inference[size]["per_second"])
    unit = model.unit
    return {
        f"train_{unit}_per_second_mean": round(training["per_second_mean"], 1),
        f"train_{unit}_per_second_best": round(training["per_second_best"], 1),
        f"train_{unit}_per_second_spread": round(training["per_second_spread"], 1),
        "train_achieved_gflops": round(training["achieved_gflops"], 1),
        "matrix_product_gflops": round(training["matrix_product_gflops"], 1),
        "share_of_matrix_product_rate": round(training["share_of_matrix_product_rate"], 4),
        f"inference_{unit}_per_second_best": round(inference[fastest]["per_second"], 1),
        f"inference_latency_ms_p50_batch_{smallest}": round(1000 * inference[smallest]["latency_p50"], 4),
        f"inference_latency_ms_p99_batch_{smallest}": round(1000 * inference[smallest]["latency_p99"], 4),
        "peak_memory_mb": device.peak_memory_bytes() // 1_000_000,
    }


def _page(
    trained: Trained, options: Options, training: dict[str, float], inference: dict[int, dict[str, float]]
) -> str:
    unit = trained.model.unit
    columns = ["latency_mean", "latency_p50", "latency_p90", "latency_p95", "latency_p99"]
    headers = ["batch", f"{unit}/s", *(f"{name.removeprefix('latency_')} ms" for name in columns), "batches"]
    rows = [
        [size, round(row["per_second"], 1), *(round(1000 * row[name], 4) for name in columns), row["batches"]]
        for size, row in inference.items()
    ]
    throughput = {str(size): row["per_second"] for size, row in inference.items()}
    return report.page(
        f"{trained.about['model']}: benchmark",
        report.facts(
            training, f"Training ({unit} per second; warm-up of {options.train_warmup} steps left out)"
        ),
        report.table(headers, rows, "Inference"),
        report.bar_chart(
            "Inference throughput by batch size", list(throughput), list(throughput.values()), f"{unit}/s"
        ),
        report.facts(
            {**device.hardware(), "peak memory (MB)": device.peak_memory_bytes() // 1_000_000}, "Hardware"
        ),
        report.facts(device.versions(), "Versions"),
    )
