"""Training throughput beside plain PyTorch and JAX loops, in one run on one machine.

``make benchmark`` runs it and writes ``benchmarks/training.json``. The shapes are those of the published
references' data (MovieLens 1M for NCF, 20M for VAE-CF, Outbrain for Wide & Deep), the values random: speed
does not depend on them. Every contender is a process of its own with the same number of threads; rounds
alternate, because shared machines drift; a contender's figure is its best round's mean, warm-up steps
excluded.
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

from components.preprocess.shards import write_shards
from recsys.feature_spec import Chunk, FeatureSpec

ROOT = Path(__file__).resolve().parent.parent
TRAIN, PEERS = ROOT / ".venv/train/bin/python", ROOT / ".venv/peers/bin/python"
BATCH = {"ncf": 65536, "vae_cf": 2048, "wide_deep": 16384}
# What the TensorFlow 1.15 references did, and the plain loops beside them, on one 2.5 GHz Xeon with 2 cores.
# Wide & Deep's reference runs on NVIDIA GPUs only (its --cpu always fails): there is nothing to carry over.
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
WIDE_DEEP_ONLY = {"plain tensorflow loop": (TRAIN, "benchmarks.tensorflow_loop", "tensorflow")}
# The features of the Wide & Deep reference on Outbrain: cardinality and width of the embedding.
ONE_HOT = {
    "ad_id": (250_000, 128),
    "document_id": (300_000, 128),
    "platform": (4, 19),
    "document_id_promo": (100_000, 128),
    "campaign_id": (5000, 128),
    "advertiser_id": (2500, 64),
    "source_id": (4000, 64),
    "geo_location": (2500, 64),
    "geo_location_country": (300, 64),
    "geo_location_state": (2000, 64),
    "publisher_id": (1000, 64),
    "source_id_promo": (4000, 64),
    "publisher_id_promo": (1000, 64),
}
MULTI_HOT = {"topic_id_list": (350, 64), "entity_id_list": (10_000, 64), "category_id_list": (100, 64)}
HOTNESS, NUMERICAL = 3, [f"numerical_{number}" for number in range(13)]


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
    write_interactions(folder, mappings, users, items, {"test_samples_per_series": 101})


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
    write_interactions(folder, {"train": train, **dict.fromkeys(held_out, few)}, users, items, {})


def write_interactions(folder: Path, mappings: dict, users: int, items: int, metadata: dict) -> None:
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


def wide_deep_data(folder: Path, rows: int = 200_000) -> None:
    """Rows of Outbrain's shape, ids with a long tail, lists of up to 3 ids."""
    folder.mkdir(parents=True)
    features: dict[str, dict] = {
        name: {"dtype": "int32", "cardinality": cardinality, "embedding_size": size}
        for name, (cardinality, size) in (ONE_HOT | MULTI_HOT).items()
    }
    for name in MULTI_HOT:
        features[name]["max_hotness"] = HOTNESS
    features |= {name: {"dtype": "float32"} for name in (*NUMERICAL, "label")} | {"group": {"dtype": "int64"}}
    sources = {}
    for number, (mapping, count) in enumerate({"train": rows, "validation": 100, "test": 100}.items()):
        table = _wide_deep_rows(np.random.default_rng(number), count)
        table = table.drop_columns(["group"]) if mapping == "train" else table
        files, _ = write_shards([table], folder, mapping, shuffle=None)
        sources[mapping] = (Chunk("parquet", tuple(table.column_names), files),)
    channels = {
        "onehot_categorical": tuple(ONE_HOT),
        "multihot_categorical": tuple(MULTI_HOT),
        "numerical": tuple(NUMERICAL),
        "label": ("label",),
        "item": ("ad_id",),
        "group": ("group",),
    }
    FeatureSpec(folder, features, sources, channels, {}).write()


def _wide_deep_rows(generator: np.random.Generator, rows: int) -> pa.Table:
    def ids(cardinality: int, count: int) -> np.ndarray:
        return (cardinality * generator.random(count, np.float32) ** 3).astype(np.int32)

    columns = {name: pa.array(ids(cardinality, rows)) for name, (cardinality, _) in ONE_HOT.items()}
    for name, (cardinality, _) in MULTI_HOT.items():
        ends = np.cumsum(generator.integers(0, HOTNESS + 1, rows), dtype=np.int32)
        offsets = np.concatenate([np.zeros(1, np.int32), ends])
        columns[name] = pa.ListArray.from_arrays(offsets, ids(cardinality, ends[-1]))
    for name in NUMERICAL:
        columns[name] = pa.array(generator.random(rows, np.float32))
    columns["label"] = pa.array((generator.random(rows) < 0.2).astype(np.float32))
    return pa.table(columns | {"group": pa.array(np.arange(rows) // 5)})


DATA = {"ncf": ncf_data, "vae_cf": vae_data, "wide_deep": wide_deep_data}


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
    parser.add_argument("--models", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/training.json")
    arguments = parser.parse_args()
    result: dict = {"rounds": arguments.rounds, "steps": arguments.steps, "machine": machine()}
    with tempfile.TemporaryDirectory() as temporary:
        for model in arguments.models:
            folder = Path(temporary) / model
            DATA[model](folder)
            contenders = CONTENDERS | (WIDE_DEEP_ONLY if model == "wide_deep" else {})
            rounds: dict[str, list[dict]] = {name: [] for name in contenders}
            for _ in range(arguments.rounds):
                for name, how in contenders.items():
                    rounds[name].append(measure(*how, model, folder, arguments.steps))
                    print(f"{model:9} {name:21} {rounds[name][-1]['per_second']:12,.0f}/s", flush=True)
            result[model] = summarize(model, rounds)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {arguments.output}")


def summarize(model: str, rounds: dict[str, list[dict]]) -> dict:
    """Best round of each contender, ratios to ours, and the reference by way of the two plain loops."""
    best = {name: max(entry["per_second"] for entry in entries) for name, entries in rounds.items()}
    ours = best["ours, tensorflow"]
    flops = max(entry.get("flops_per_unit", 0.0) for entry in rounds["ours, tensorflow"])
    gflops = max(entry.get("gflops", 0.0) for entries in rounds.values() for entry in entries)
    result = {
        "batch_size": BATCH[model],
        "per_second": {name: round(value, 1) for name, value in best.items()},
        "all_rounds": {
            name: [round(e["per_second"], 1) for e in entries] for name, entries in rounds.items()
        },
        "ours_over": {
            name: round(ours / value, 3) for name, value in best.items() if name != "ours, tensorflow"
        },
        "matrix_product_gflops": round(gflops, 1),
        "bound_per_second": round(gflops * 1e9 / flops, 1),
        "ours_over_bound": round(ours * flops / gflops / 1e9, 3),
    }
    if model in REFERENCE:
        known = REFERENCE[model]
        estimates = [
            best[f"plain {loop} loop"] * known["reference"] / known[loop] for loop in ("torch", "jax")
        ]
        key = "ours_over_reference_estimated_by_torch_and_jax"
        result[key] = [round(ours / value, 2) for value in estimates]
    return result


def machine() -> dict:
    """Processor and cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else "unknown", "cores": len(os.sched_getaffinity(0))}


if __name__ == "__main__":
    main()
