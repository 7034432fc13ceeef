"""Training throughput beside plain PyTorch and JAX loops, in one run on one machine.

``make benchmark`` runs it and writes ``benchmarks/training.json``. The shapes are those of the published
references' data (MovieLens 1M for NCF, 20M for VAE-CF), the values random: speed does not depend on them.
Every contender is a process of its own with the same number of threads; rounds alternate, because shared
machines drift; a contender's figure is its best round's mean, warm-up steps excluded.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.feature_spec import Chunk, FeatureSpec

ROOT = Path(__file__).resolve().parent.parent
TRAIN, PEERS = ROOT / ".venv/train/bin/python", ROOT / ".venv/peers/bin/python"
BATCH = {"ncf": 65536, "vae_cf": 2048}
# What the TensorFlow 1.15 references did, and the plain loops beside them, on one 2.5 GHz Xeon with 2 cores.
REFERENCE = {
    "ncf": {"reference": 73_800, "torch": 52_800, "jax": 74_200},
    "vae_cf": {"reference": 876, "torch": 1_386, "jax": 1_050},
}
CONTENDERS = {
    "ours, tensorflow": (TRAIN, "benchmarks.ours", "tensorflow"),
    "ours, jax": (PEERS, "benchmarks.ours", "jax"),
    "plain torch loop": (PEERS, "benchmarks.torch_loops", ""),
    "plain jax loop": (PEERS, "benchmarks.jax_loops", ""),
}


def ncf_data(folder: Path) -> None:
    """927,499 positives of 6,018 users and 3,018 items."""
    generator, users, items, rows = np.random.default_rng(0), 6018, 3018, 927_499
    train = {
        "user": generator.integers(0, users, rows, dtype=np.int32),
        "item": generator.integers(0, items, rows, dtype=np.int32),
        "label": np.ones(rows, np.float32),
    }
    test = {name: values[:101] * 0 for name, values in train.items()}
    test["label"] = (np.arange(101) == 0).astype(np.float32)
    mappings = {"train": train, "validation": test, "test": test}
    _write(folder, mappings, users, items, {"test_samples_per_series": 101})


def vae_data(folder: Path) -> None:
    """20,000 users of ML-20M's kind, 20,108 items, about 62 items a user with a long tail."""
    generator, users, items = np.random.default_rng(0), 20_000, 20_108
    lengths = np.clip(generator.lognormal(3.6, 1.0, users).astype(int), 5, 3000)
    popularity = 1 / (np.arange(items) + 50.0)
    drawn = generator.choice(items, lengths.sum(), p=popularity / popularity.sum())
    pairs = np.unique(np.repeat(np.arange(users), lengths) * items + drawn)
    train = {"user": (pairs // items).astype(np.int32), "item": (pairs % items).astype(np.int32)}
    few = {name: values[:10] for name, values in train.items()}
    held_out = [f"{group}_{part}" for group in ("validation", "test") for part in ("input", "target")]
    _write(folder, {"train": train, **dict.fromkeys(held_out, few)}, users, items, {})


def _write(folder: Path, mappings: dict, users: int, items: int, metadata: dict) -> None:
    folder.mkdir(parents=True)
    sources = {}
    for name, columns in mappings.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        sources[name] = (Chunk("parquet", tuple(columns), (f"{name}.parquet",)),)
    features = {
        "user": {"dtype": "int32", "cardinality": users},
        "item": {"dtype": "int32", "cardinality": items},
        "label": {"dtype": "float32"},
    }
    used = {name: features[name] for name in mappings["train"]}
    FeatureSpec(folder, used, sources, {name: (name,) for name in used}, metadata).write()


def measure(python: Path, module: str, backend: str, model: str, folder: Path, steps: int) -> dict:
    """Runs one contender; it prints JSON with ``per_second`` and ``gflops`` (of a matrix product) last."""
    threads = str(len(os.sched_getaffinity(0)))
    environment = {**os.environ, "KERAS_BACKEND": backend or "jax", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment |= {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
    command = [str(python), "-m", module, model, str(folder), str(BATCH[model]), str(steps)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=8, help="measured steps of each round, after 2 of warm-up"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/training.json")
    arguments = parser.parse_args()
    result: dict = {"rounds": arguments.rounds, "steps": arguments.steps, "machine": machine()}
    with tempfile.TemporaryDirectory() as temporary:
        for model, write in (("ncf", ncf_data), ("vae_cf", vae_data)):
            folder = Path(temporary) / model
            write(folder)
            rounds: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
            for _ in range(arguments.rounds):
                for name, how in CONTENDERS.items():
                    rounds[name].append(measure(*how, model, folder, arguments.steps))
                    print(f"{model:7} {name:18} {rounds[name][-1]['per_second']:12,.0f}/s", flush=True)
            result[model] = summarize(model, rounds)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {arguments.output}")


def summarize(model: str, rounds: dict[str, list[dict]]) -> dict:
    """Best round of each contender, ratios to ours, and the references by way of the two plain loops."""
    best = {name: max(entry["per_second"] for entry in entries) for name, entries in rounds.items()}
    ours = best["ours, tensorflow"]
    known = REFERENCE[model]
    estimates = [best[f"plain {loop} loop"] * known["reference"] / known[loop] for loop in ("torch", "jax")]
    flops = max(entry.get("flops_per_unit", 0.0) for entry in rounds["ours, tensorflow"])
    gflops = max(entry.get("gflops", 0.0) for entries in rounds.values() for entry in entries)
    return {
        "batch_size": BATCH[model],
        "per_second": {name: round(value, 1) for name, value in best.items()},
        "all_rounds": {
            name: [round(e["per_second"], 1) for e in entries] for name, entries in rounds.items()
        },
        "ours_over": {
            name: round(ours / value, 3) for name, value in best.items() if name != "ours, tensorflow"
        },
        "ours_over_reference_estimated_by_torch_and_jax": [round(ours / value, 2) for value in estimates],
        "matrix_product_gflops": round(gflops, 1),
        "bound_per_second": round(gflops * 1e9 / flops, 1),
        "ours_over_bound": round(ours * flops / gflops / 1e9, 3),
    }


def machine() -> dict:
    """Processor and cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else "unknown", "cores": len(os.sched_getaffinity(0))}


if __name__ == "__main__":
    main()
