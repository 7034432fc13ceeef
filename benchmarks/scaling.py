"""What several ranks cost and gain on this machine: time per step, and what of it is the exchange.

Writes ``benchmarks/scaling.json``. Every rank has one core of its own, so that two ranks have twice the cores
of one. The global batch is the same for both, as in training. The bound of the exchange is the bytes of the
gradients over the rate of an allreduce of one buffer of that size, measured in the same processes.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]


def pin() -> None:
    """Gives this rank one core, before anything starts a thread."""
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})


def take_steps(name: str, folder: Path, batch_size: int, steps: int, compress: bool) -> None:
    """One rank's part; the first prints JSON. Steps with and without the exchange alternate."""
    pin()
    from recsys import counter_random, device, distributed, models
    from recsys.engine import create_engine
    from recsys.feature_spec import FeatureSpec

    distributed.init()
    module = models.load(name)
    settings = module.Config(batch_size=batch_size, compress_gradients=compress)
    model = module.Model(settings, FeatureSpec.read(folder))
    exchange = distributed.sum_gradients
    exchanges = {"with": exchange, "without": lambda loss, gradients, compress: (loss, gradients)}
    engines = {}
    for kind in exchanges:
        engines[kind] = create_engine(model, model.network(1), settings, model.training_arrays())
    seconds: dict[str, list[float]] = {kind: [] for kind in engines}
    batches = itertools.chain.from_iterable(model.batches(1, epoch) for epoch in itertools.count())
    for step, batch in enumerate(itertools.islice(batches, steps + 2)):
        inputs = model.batch(batch, counter_random.step_seed(1, step), step)
        for kind, engine in engines.items():
            distributed.sum_gradients = exchanges[kind]
            distributed.gather(None)
            begin = time.perf_counter()
            device.synchronize(engine.train_step(inputs))
            seconds[kind].append(time.perf_counter() - begin)
    distributed.sum_gradients = exchange
    numbers = sum(variable.value.shape.num_elements() for variable in engines["with"].variables)
    rate = allreduce_rate(numbers * 4) if distributed.size() > 1 else None
    if distributed.is_first():
        best = {kind: min(values[2:]) for kind, values in seconds.items()}
        print(json.dumps({"seconds": best, "gradient_bytes": numbers * 4, "allreduce_rate": rate}))


def allreduce_rate(size: int, repeats: int = 5) -> float:
    """Bytes per second of an allreduce of one buffer of ``size`` bytes, the best of some."""
    import tensorflow as tf

    from recsys import device, distributed

    buffer = tf.ones(size // 4)
    step = tf.function(lambda tensor: distributed.sum_gradients(tensor, [], False)[0])
    seconds = []
    for _ in range(repeats):
        distributed.gather(None)
        begin = time.perf_counter()
        device.synchronize(step(buffer))
        seconds.append(time.perf_counter() - begin)
    return size / min(seconds)


def start(program: str, ranks: int, steps: int, *arguments: str) -> dict:
    """Runs ranks of a program of this folder; returns the JSON that the first prints last."""
    command = [sys.executable, "-m", f"benchmarks.{program}", "--steps", str(steps), "--rank-of", *arguments]
    command = [*MPIRUN, "-np", str(ranks), *command] if ranks > 1 else command
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summarize(one: dict, two: dict) -> dict:
    """Seconds of a step, and where those of two ranks go."""
    step, alone = two["seconds"]["with"], one["seconds"]["with"]
    exchange = step - two["seconds"]["without"]
    bound = two["gradient_bytes"] / two["allreduce_rate"]
    return {
        "seconds_per_step": {"1": round(alone, 4), "2": round(step, 4)},
        "speedup": round(alone / step, 2),
        "gradient_bytes_per_step": two["gradient_bytes"],
        "seconds_without_exchange": round(two["seconds"]["without"], 4),
        "communication_share": round(exchange / step, 3),
        "exchange_seconds": round(exchange, 4),
        "allreduce_mb_per_second": round(two["allreduce_rate"] / 1e6, 1),
        "bound_exchange_seconds": round(bound, 4),
        "exchange_over_bound": round(exchange / bound, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6, help="measured steps, after 2 of warm-up")
    parser.add_argument("--models", nargs="+", default=["ncf", "vae_cf", "wide_deep"])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/scaling.json")
    parser.add_argument("--rank-of", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        name, folder, batch, compress = arguments.rank_of
        return take_steps(name, Path(folder), int(batch), arguments.steps, compress == "1")

    from benchmarks.training import BATCH, DATA, machine

    result: dict = {"steps": arguments.steps, "cores_per_rank": 1, "machine": machine()}
    with tempfile.TemporaryDirectory() as temporary:
        for model in arguments.models:
            folder = Path(temporary) / model
            DATA[model](folder)
            one, two, half = (
                start("scaling", ranks, arguments.steps, model, str(folder), str(BATCH[model]), compress)
                for ranks, compress in ((1, "0"), (2, "0"), (2, "1"))
            )
            result[model] = {"batch_size": BATCH[model], **summarize(one, two)}
            result[model]["seconds_per_step_2_compressed"] = round(half["seconds"]["with"], 4)
            print(f"{model:9} {json.dumps(result[model])}", flush=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
