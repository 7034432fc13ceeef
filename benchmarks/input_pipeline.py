"""Does the streamed input keep the step fed? Wide & Deep's input alone beside its training step, in one run.

The input is measured from Parquet (in the page cache) to tensors that a step can take, over the rows of one
epoch; the step with one batch that is already there. Both take turns; a figure is the best round's mean.
Writes ``benchmarks/input_pipeline.json``. Data and network are those of ``benchmarks.training``.

    .venv/train/bin/python -m benchmarks.input_pipeline [--rows 2000000] [--steps 3]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from benchmarks.training import BATCH, machine, wide_deep_data
from recsys import counter_random, device, models
from recsys.engine import Engine, create_engine
from recsys.feature_spec import FeatureSpec

AIM = 3.0  # times the step's rate


def input_rate(engine: Engine, epoch: int) -> float:
    """Rows per second of one epoch's batches, as tensors."""
    begin, rows = time.perf_counter(), 0
    for batch in engine.model.batches(1, epoch):
        engine.put(engine.model.batch(batch, counter_random.step_seed(1, 0), 0))
        rows += batch.examples
    return rows / (time.perf_counter() - begin)


def step_rate(engine: Engine, steps: int) -> float:
    """Rows per second of training steps on one batch, after one step that is not counted."""
    batches = engine.model.batches(1, 0)
    batch = engine.model.batch(next(batches), counter_random.step_seed(1, 0), 0)
    batches.close()
    device.synchronize(engine.train_step(batch))
    begin = time.perf_counter()
    for _ in range(steps):
        device.synchronize(engine.train_step(batch))
    return steps * engine.model.batch_examples / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured training steps of each round")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    module = models.load("wide_deep")
    inputs, steps = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        wide_deep_data(folder, arguments.rows)
        model = module.Model(module.Config(batch_size=BATCH["wide_deep"]), FeatureSpec.read(folder))
        engine = create_engine(model, model.network(1), model.config, model.training_arrays())
        for number in range(arguments.rounds):
            inputs.append(input_rate(engine, number))
            steps.append(step_rate(engine, arguments.steps))
            print(f"input {inputs[-1]:12,.0f} rows/s, step {steps[-1]:12,.0f} rows/s", flush=True)
    result = {
        "machine": machine(),
        "rows": arguments.rows,
        "batch_size": model.batch_examples,
        "input_rows_per_second": round(max(inputs), 1),
        "step_rows_per_second": round(max(steps), 1),
        "all_rounds": {"input": [round(v, 1) for v in inputs], "step": [round(v, 1) for v in steps]},
        "input_over_step": round(max(inputs) / max(steps), 2),
        "aim": AIM,
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"input over step: {result['input_over_step']} (aim {AIM}); wrote {arguments.output}")


if __name__ == "__main__":
    main()
