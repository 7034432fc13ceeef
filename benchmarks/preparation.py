"""Preparation measured side by side: this project's preprocess step against plain pandas.

Writes a seeded CSV in the shape of MovieLens 20M (by default 18.5 M ratings, 470 MB) and prepares it for each
model by

* ``python -m components.preprocess.main`` with the reference's options, and
* plain pandas, which follows the procedure of NVIDIA's reference for that model operation by operation
  (per-user callbacks and per-value look-ups included; written anew here),

each as a process of its own, and records wall time and peak resident memory. The step does more than the
references: it checks every value, draws the test negatives of NCF (the TensorFlow reference leaves that to
training), saves the workflow and writes a statistics page.

Run from the repository root, with the preprocess environment and nothing else on the machine:

    .venv/preprocess/bin/python -m benchmarks.preparation [--ratings 18500000]
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Only the child processes import pandas: a parent's memory would show in its children's peak.
FULL = {"ratings": 18_500_000, "users": 138_493, "items": 26_744, "draws": 22_600_000}
RESULT = Path(__file__).with_suffix(".json")


def generate(path: Path, ratings: int) -> None:
    """Writes the CSV: ids, half-star ratings and times spread like those of MovieLens 20M, sorted by user."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    scale = ratings / FULL["ratings"]
    users, items = round(FULL["users"] * scale), max(200, round(FULL["items"] * scale))
    rng = np.random.default_rng(0)
    activity = rng.lognormal(0, 1.35, users)
    counts = 20 + np.floor(activity * max(0.0, FULL["draws"] * scale - 20 * users) / activity.sum()).astype(
        int
    )
    popularity = np.cumsum(1 / (np.arange(items) + 60.0) ** 1.25)
    drawn = np.searchsorted(popularity / popularity[-1], rng.random(counts.sum()))
    # A user rates an item once.
    user, item = np.divmod(np.unique(np.repeat(np.arange(users), counts) * items + drawn), items)
    stars = rng.choice(np.arange(0.5, 5.1, 0.5), len(user),
                       p=[0.012, 0.034, 0.014, 0.072, 0.044, 0.214, 0.110, 0.278, 0.077, 0.145])  # fmt: skip
    first = rng.integers(789_652_000, 1_427_784_000, users)
    table = pa.table(
        {
            "userId": user + 1,
            "movieId": (rng.permutation(131_262)[:items] + 1)[item],
            "rating": stars,
            "timestamp": first[user] + rng.integers(0, 30 * 86_400, len(user)),
        }
    )
    pa.csv.write_csv(table, path, pa.csv.WriteOptions(quoting_style="none"))


def plain_ncf(path: Path, target: Path) -> None:
    """The TensorFlow NCF reference's preparation: minimum 20 ratings, ids, time order, leave-one-out."""
    import pandas as pd

    ratings = pd.read_csv(path, names=["user", "item", "rating", "timestamp"], header=0)
    ratings = ratings.groupby("user").filter(lambda rows: len(rows) >= 20)
    ratings["user"] = pd.factorize(ratings["user"])[0]
    ratings["item"] = pd.factorize(ratings["item"])[0]
    ratings = ratings.sort_values("timestamp")[["user", "item"]].drop_duplicates()
    by_user = ratings.groupby("user", group_keys=False)
    test = by_user.tail(1).sort_values("user")
    train = by_user.apply(lambda rows: rows.iloc[:-1]).sort_values(["user", "item"])
    train.to_pickle(target / "train.pickle")
    test.to_pickle(target / "test.pickle")


def plain_vae_cf(path: Path, target: Path) -> None:
    """The VAE-CF reference's preparation: threshold 4, minimum 5, held-out users, fold-in 80/20."""
    import numpy as np
    import pandas as pd
    from scipy import sparse

    rng = np.random.default_rng(0)
    ratings = pd.read_csv(path).drop(columns="timestamp")
    ratings = ratings[ratings["rating"] >= 4]
    counts = ratings.groupby("userId").size()
    ratings = ratings[ratings["userId"].isin(counts.index[counts >= 5])]
    users = rng.permutation(ratings["userId"].unique())
    held_out = min(10_000, len(users) // 10)
    train = ratings[ratings["userId"].isin(users[: -2 * held_out])]
    items = train["movieId"].unique()
    item_ids = {raw: number for number, raw in enumerate(items)}
    user_ids = {raw: number for number, raw in enumerate(users)}
    for name, ids in (("items", item_ids), ("users", user_ids)):
        (target / f"{name}.json").write_text(json.dumps({str(raw): number for raw, number in ids.items()}))

    def save(name: str, rows: "pd.DataFrame") -> None:
        user = rows["userId"].map(lambda raw: user_ids[raw])
        item = rows["movieId"].map(lambda raw: item_ids[raw])
        matrix = sparse.csr_matrix((np.ones(len(rows)), (user, item)), shape=(len(users), len(items)))
        sparse.save_npz(target / f"{name}.npz", matrix)

    save("train", train)
    for name, group in (("validation", users[-2 * held_out : -held_out]), ("test", users[-held_out:])):
        rows = ratings[ratings["userId"].isin(group)]
        inputs, targets = [], []
        for _, of_user in rows[rows["movieId"].isin(items)].groupby("userId"):
            chosen = np.zeros(len(of_user), bool)
            if len(of_user) >= 5:
                chosen[rng.choice(len(of_user), int(0.2 * len(of_user)), replace=False)] = True
                targets.append(of_user[chosen])
            inputs.append(of_user[~chosen])
        save(f"{name}_input", pd.concat(inputs))
        save(f"{name}_target", pd.concat(targets))


def measure(command: list[str], log: Path) -> dict[str, float]:
    """Runs a process to its end; seconds of wall time and GiB of peak resident memory."""
    start = time.perf_counter()
    with open(log, "w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()}")
    # Linux counts ru_maxrss in KiB.
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
    }


def compare(ratings: int, work: Path) -> dict:
    """All four runs on one CSV, alternating, and their ratios."""
    raw = work / "raw"
    raw.mkdir()
    this = [sys.executable, "-m", "benchmarks.preparation"]
    subprocess.run([*this, "--generate", str(raw / "ratings.csv"), "--ratings", str(ratings)], check=True)
    # What RawRatings.write() writes; importing it would bring pyarrow into this process.
    (raw / "raw.yaml").write_text(
        "dataset: benchmark\nfiles: [ratings.csv]\nformat: csv\n"
        "columns: {user: userId, item: movieId, rating: rating, timestamp: timestamp}\n"
    )
    result: dict = {
        "ratings": _lines(raw / "ratings.csv") - 1,
        "csv_mb": round((raw / "ratings.csv").stat().st_size / 1e6),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average_before": [round(load, 2) for load in os.getloadavg()],
        },
        "models": {},
    }
    for model in ("vae_cf", "ncf"):
        target = work / model
        options = {"heldout_users": 0.1} if model == "vae_cf" and ratings < FULL["ratings"] else {}
        step = [
            sys.executable,
            "-m",
            "components.preprocess.main",
            "--raw",
            raw,
            "--model",
            model,
            "--seed",
            "0",
        ]
        step += ["--options", json.dumps(options)]
        step += ["--dataset", target / "dataset", "--statistics", target / "page.html"]
        target.mkdir()
        plain = [*this, "--plain", model, "--csv", str(raw / "ratings.csv"), "--target", str(target)]
        ours = measure([str(word) for word in step], work / "step.log")
        theirs = measure(plain, work / "plain.log")
        result["models"][model] = {
            "step": ours,
            "plain_pandas": theirs,
            "times_faster": round(theirs["seconds"] / ours["seconds"], 2),
        }
        shutil.rmtree(target)
    return result


def _processor() -> str:
    with open("/proc/cpuinfo") as stream:
        names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _lines(path: Path) -> int:
    with open(path, "rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def main() -> None:
    """Measures, prints a table and writes ``preparation.json`` (for the full size only)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ratings", type=int, default=FULL["ratings"], help="fewer for a quick check")
    parser.add_argument("--work", help="folder for about 2 GB of temporary files")
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", choices=["ncf", "vae_cf"], help=argparse.SUPPRESS)
    parser.add_argument("--csv", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.generate:
        generate(arguments.generate, arguments.ratings)
        return
    if arguments.plain:
        {"ncf": plain_ncf, "vae_cf": plain_vae_cf}[arguments.plain](arguments.csv, arguments.target)
        return
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        result = compare(arguments.ratings, Path(work))
    print(f"{result['ratings']:,} ratings, {result['csv_mb']} MB of CSV")
    print(f"{'':8}{'':14}{'seconds':>9}{'peak GiB':>10}")
    for model, rows in result["models"].items():
        for who in ("step", "plain_pandas"):
            print(f"{model:8}{who:14}{rows[who]['seconds']:9.1f}{rows[who]['peak_gib']:10.2f}")
        print(f"{model:8}{'times faster':14}{rows['times_faster']:9.2f}")
    if arguments.ratings == FULL["ratings"]:
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
