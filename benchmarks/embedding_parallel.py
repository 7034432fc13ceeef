"""From which table size on ``embedding_parallel`` pays: two ranks with NCF's user table of growing size.

Writes ``embedding_parallel.json`` beside it and, from that, the page ``embedding_parallel.md``. A rank has
a core of its own. The bytes are counted where they are exchanged, the memory is a rank's peak.
"""

import argparse
import itertools
import json
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.scaling import ROOT, pin, start

ROWS = (10_000, 100_000, 300_000, 1_000_000)
ITEMS, POSITIVES = 3018, 131_072
SETTINGS = {"batch_size": 65_536, "factors": 32, "layers": (128, 64, 32)}
WIDTH = 32 + 64  # numbers of a user's row in both tables
FIGURES = ROOT / "benchmarks/embedding_parallel.json"
PAGE = ROOT / "benchmarks/embedding_parallel.md"


def take_steps(folder: Path, parallel: bool, steps: int) -> None:
    """One rank's part; the first prints JSON."""
    pin()
    import tensorflow as tf

    from recsys import counter_random, device, distributed
    from recsys.engine import create_engine
    from recsys.feature_spec import FeatureSpec
    from recsys.models import ncf

    distributed.init()
    sent = tf.Variable(0, dtype=tf.int64)
    exchange = distributed.alltoall

    def counted(tensor, counts):
        # Ids go one way; rows come one way and their gradients, which this does not see, the other.
        ways = 2 if tensor.dtype.is_floating else 1
        away = tf.reduce_sum(counts) - counts[distributed.rank()]
        width = tensor.shape[1] if len(tensor.shape) == 2 else 1
        sent.assign_add(4 * ways * width * tf.cast(away, tf.int64))
        return exchange(tensor, counts)

    distributed.alltoall = counted
    config = ncf.Config(embedding_parallel=parallel, **SETTINGS)
    model = ncf.Model(config, FeatureSpec.read(folder))
    engine = create_engine(model, model.network(1), config, model.training_arrays())
    seconds = []
    batches = itertools.chain.from_iterable(model.batches(1, epoch) for epoch in itertools.count())
    for step, batch in enumerate(itertools.islice(batches, steps + 2)):
        inputs = model.batch(batch, counter_random.step_seed(1, step), step)
        distributed.gather(None)
        if step == 2:
            sent.assign(0)
        begin = time.perf_counter()
        device.synchronize(engine.train_step(inputs))
        seconds.append(time.perf_counter() - begin)
    summed = [v for v in engine.variables if v.path not in model.sharded]
    summed_bytes = sum(4 * variable.value.shape.num_elements() for variable in summed)
    # Of an allreduce on n ranks, each sends 2 (n - 1) / n of the buffer.
    allreduce = summed_bytes * 2 * (distributed.size() - 1) // distributed.size()
    if distributed.is_first():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sent_bytes = int(sent.numpy()) // steps + allreduce
        print(json.dumps({"seconds": min(seconds[2:]), "sent_bytes": sent_bytes, "peak_bytes": peak}))


def data(folder: Path, users: int) -> None:
    """Positives of evenly drawn users: the most distinct rows that a batch can ask for."""
    import numpy as np

    from benchmarks.training import write_interactions

    generator = np.random.default_rng(0)
    train = {
        "user": generator.integers(0, users, POSITIVES, dtype=np.int32),
        "item": generator.integers(0, ITEMS, POSITIVES, dtype=np.int32),
        "label": np.ones(POSITIVES, np.float32),
    }
    test = {name: values[:2] for name, values in train.items()}
    mappings = {"train": train, "validation": test, "test": test}
    write_interactions(folder, mappings, users, ITEMS, {"test_samples_per_series": 2})


def arithmetic(ranks: int, rows: int, width: int, positives: int) -> dict[str, float]:
    """Bytes of one rank: of the tables with Adam's two states and a gradient, and sent in a step.

    Args:
        rows: of all tables together.
        positives: ids that a rank looks up in a step, at worst all distinct.
    """
    held, distinct = rows * width * 4 * 4, min(positives, rows)
    away = (ranks - 1) / ranks
    return {
        "held": held,
        "held_parallel": held / ranks,
        "sent": 2 * away * rows * width * 4,
        "sent_parallel": away * distinct * (2 * width + 1) * 4,
    }


def page(result: dict) -> str:
    """The page of a result, Markdown."""
    text = (ROOT / "benchmarks/embedding_parallel.template.md").read_text()
    measured = [
        f"| {int(rows):,} | {e['all']['seconds']:.3f} | {e['parallel']['seconds']:.3f} "
        f"| {e['all']['sent_bytes'] / 1e6:,.1f} | {e['parallel']['sent_bytes'] / 1e6:,.1f} "
        f"| {e['all']['peak_bytes'] / 2**30:.2f} | {e['parallel']['peak_bytes'] / 2**30:.2f} |"
        for rows, e in result["rows"].items()
    ]
    computed = []
    for exponent in range(5, 10):
        size = arithmetic(ranks=8, rows=10**exponent, width=192, positives=1_048_576 // 8)
        cells = (f"{size[k] / 1e9:,.2f}" for k in ("held", "held_parallel", "sent", "sent_parallel"))
        computed.append(f"| 10^{exponent} | {' | '.join(cells)} |")
    where = f"{result['machine']['processor']}, {result['machine']['cores']} cores"
    return text.format(machine=where, measured="\n".join(measured), computed="\n".join(computed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6, help="measured steps, after 2 of warm-up")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    parser.add_argument("--rank-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        folder, parallel = arguments.rank_of
        return take_steps(Path(folder), parallel == "1", arguments.steps)
    if not arguments.page:
        from benchmarks.training import machine

        result: dict = {"steps": arguments.steps, "machine": machine(), "settings": SETTINGS, "rows": {}}
        with tempfile.TemporaryDirectory() as temporary:
            for rows in ROWS:
                folder = Path(temporary) / str(rows)
                data(folder, rows)
                result["rows"][rows] = {
                    name: start("embedding_parallel", 2, arguments.steps, str(folder), flag)
                    for name, flag in (("all", "0"), ("parallel", "1"))
                }
                print(rows, json.dumps(result["rows"][rows]), flush=True)
        FIGURES.write_text(json.dumps(result, indent=2) + "\n")
    PAGE.write_text(page(json.loads(FIGURES.read_text())))
    print(f"wrote {FIGURES} and {PAGE}")


if __name__ == "__main__":
    main()
