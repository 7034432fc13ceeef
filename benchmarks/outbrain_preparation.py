"""Outbrain's preparation on growing generated data: time should grow with the clicks, memory should not.

Generates the raw files (100,000 documents, 50,000 ads, and about as many clicks as asked for), runs the
preprocess step on them as a process of its own, and records its wall time and peak resident memory in
``outbrain_preparation.json``.

Run from the repository root, in the pipeline environment and with nothing else on the machine:

    .venv/pipeline/bin/python -m benchmarks.outbrain_preparation [--clicks 1000000 4000000 16000000]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.preparation import _processor, measure

RESULT = Path(__file__).with_suffix(".json")
CLICKS_PER_DISPLAY = 5.04  # of the generator


def generate(folder: Path, clicks: int) -> None:
    """Writes the raw folder."""
    from recsys.datasets import outbrain_synthetic

    options = outbrain_synthetic.Options(
        displays=round(clicks / CLICKS_PER_DISPLAY), documents=100_000, ads=50_000, campaigns=3000,
        advertisers=1000, users=100_000, topics=60,
    )  # fmt: skip
    outbrain_synthetic.fetch("outbrain_synthetic", "", options, 0, folder, folder).write(folder)


def run(clicks: int, python: Path, work: Path) -> dict:
    """Generates and prepares one size."""
    raw, target = work / "raw", work / "target"
    raw.mkdir()
    target.mkdir()
    # A process of its own: this one's memory would show in the peak of its children.
    this = [sys.executable, "-m", "benchmarks.outbrain_preparation", "--generate", str(raw)]
    subprocess.run([*this, "--clicks", str(clicks)], check=True)
    command = [str(python), "-m", "components.preprocess.main", "--raw", str(raw), "--model", "wide_deep"]
    command += [
        "--seed",
        "0",
        "--dataset",
        str(target / "dataset"),
        "--statistics",
        str(target / "page.html"),
    ]
    csv_mb = sum(path.stat().st_size for path in raw.glob("*.csv")) / 1e6
    step = measure(command, work / "step.log")
    dataset_mb = sum(path.stat().st_size for path in target.rglob("*.parquet")) / 1e6
    shutil.rmtree(raw)
    shutil.rmtree(target)
    return {"clicks": clicks, "csv_mb": round(csv_mb), "dataset_mb": round(dataset_mb), **step}


def main() -> None:
    """Measures, prints a table and writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clicks", type=int, nargs="+", default=[1_000_000, 4_000_000, 16_000_000])
    parser.add_argument("--python", type=Path, default=Path(".venv/preprocess/bin/python"))
    parser.add_argument("--work", help="folder for temporary files, about 400 bytes per click")
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.generate:
        generate(arguments.generate, arguments.clicks[0])
        return
    machine = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
    }
    runs = []
    print(f"{'clicks':>12}{'CSV MB':>8}{'seconds':>9}{'CPU s':>7}{'peak GiB':>10}")
    for clicks in arguments.clicks:
        with tempfile.TemporaryDirectory(dir=arguments.work) as work:
            one = run(clicks, arguments.python, Path(work))
        runs.append(one)
        print(
            f"{clicks:12,}{one['csv_mb']:8}{one['seconds']:9.1f}{one['cpu_seconds']:7.1f}{one['peak_gib']:10.2f}"
        )
    RESULT.write_text(json.dumps({"machine": machine, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
