"""Runs the compiled pipeline on this machine: ``python -m pipelines.local RUN[,RUN...] [key=value ...]``.

No cluster and no Docker: each container of ``pipeline.yaml`` is a process in the environment that holds its
image's packages. Every run leaves ``runs/<id>/``: a folder per step with its log and its artifacts,
``summary.json`` and ``report.html``.

Exit code: 0 when every step and the gate passed, 2 for a user's mistake, 1 for any other failure, 130 or 143
after Ctrl-C or SIGTERM; the worst of several runs.

Of this project, it imports the nouns ``recsys.step`` (the contract every step keeps) and ``recsys.report``.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines import parameters, run_report
from pipelines.pipeline import COMPILED
from pipelines.process_runner import run_compiled
from pipelines.step_process import InterruptedRunError, StepFailedError, StepProcesses
from recsys.step import USER_MISTAKE, UserError, atomic_write, finite

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = {
    "recsys-download": ROOT / ".venv/pipeline/bin/python",
    "recsys-preprocess": ROOT / ".venv/preprocess/bin/python",
    "recsys-train": ROOT / ".venv/train/bin/python",
}


@dataclass(frozen=True)
class Workplace:
    """Where runs happen; the defaults are this repository.

    Args:
        root: holds ``components``; ``runs/`` is made in it.
        compiled: the pipeline's YAML.
        run_files: folder of the run files.
        environments: image name to the Python that has the image's packages.
    """

    root: Path = ROOT
    compiled: Path = COMPILED
    run_files: Path = parameters.RUNS
    environments: Mapping[str, Path] = field(default_factory=lambda: ENVIRONMENTS)


def main(argv: list[str] | None = None, workplace: Workplace | None = None) -> int:
    """Runs each of the named runs; returns the worst exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.local", allow_abbrev=False)
    parser.add_argument("runs", metavar="RUN[,RUN...]", help="file names in pipelines/runs/, without .yaml")
    parser.add_argument("words", nargs="*", metavar="key=value", help="pipeline parameters of all these runs")
    parser.add_argument("--params", default="", help="more key=value words, quoted as in a shell")
    arguments = parser.parse_intermixed_args(argv)
    workplace = workplace or Workplace()
    try:
        words = [*parameters.split(arguments.params), *arguments.words]
        # All of them first: a typing error in the last name must not cost the time of the first run.
        runs = [
            (name, parameters.resolve(name, words, workplace.compiled, workplace.run_files))
            for name in filter(None, (part.strip() for part in arguments.runs.split(",")))
        ]
        if not runs:
            raise UserError(f"RUN is empty; runs: {', '.join(parameters.names(workplace.run_files))}")
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return USER_MISTAKE
    worst = 0
    for name, values in runs:
        folder = _new_folder(workplace.root / "runs", name)
        try:
            worst = max(worst, run(name, parameters.with_absolute_paths(values), folder, workplace))
        except InterruptedRunError as interruption:
            _say_how_to_resume(name, words, folder)
            return 128 + interruption.number
    return worst


def run(name: str, values: Mapping[str, Any], folder: Path, workplace: Workplace) -> int:
    """One run of the compiled pipeline with these parameters, into ``folder``.

    Returns:
        The exit code: that of the step that failed.
    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM came; the step has ended and the summary is written.
    """
    print(f"{name}: {_shown(folder)}", flush=True)
    processes = StepProcesses(workplace.root, workplace.environments, sys.stdout)
    outcome: dict[str, Any] = {"status": "failed", "error": "an unexpected fault; see its traceback"}
    code = 0
    started = time.monotonic()
    try:
        with processes.passing_signals():
            run_compiled(workplace.compiled, values, folder.parent, folder.name, processes.launch)
        outcome = {"status": "succeeded"}
    except StepFailedError as failure:
        code = failure.code
        outcome = {"status": "failed", "failed_step": failure.step, "error": failure.reason}
    except UserError as mistake:
        code = USER_MISTAKE
        outcome = {"status": "failed", "error": str(mistake)}
    except InterruptedRunError as interruption:
        outcome = {"status": "interrupted", "failed_step": interruption.step, "error": str(interruption)}
        raise
    finally:
        seconds = round(time.monotonic() - started, 3)
        summary = {"run": name, "id": folder.name, **outcome, "seconds": seconds, "parameters": dict(values)}
        _report(summary, folder, _artifacts(workplace.compiled, processes.seconds), processes.seconds)
    return code


def _report(
    summary: dict[str, Any],
    folder: Path,
    artifacts: Mapping[str, Mapping[str, str]],
    seconds: Mapping[str, float],
) -> None:
    """Writes ``summary.json`` and ``report.html``, then prints the metrics, the paths and the outcome."""
    metrics = {step: _metrics(folder / step, outputs) for step, outputs in artifacts.items()}
    summary["steps"] = {step: values for step, values in metrics.items() if values}
    summary["step_seconds"] = dict(seconds)
    atomic_write(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    atomic_write(folder / "report.html", run_report.html(summary, folder, artifacts))
    if summary["steps"]:
        print(f"\n{run_report.aligned(run_report.metric_rows(summary))}")
    print()
    for name in ("summary.json", "report.html"):
        print(_shown(folder / name))
    outcome = f"{summary['run']}: {summary['status']} after {summary['seconds']:.1f} s"
    if "error" in summary:
        where = f"{summary['failed_step']}: " if summary.get("failed_step") else ""
        outcome += f": {where}{summary['error']}"
    print(outcome, flush=True)


def _artifacts(compiled: Path, steps: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Step that has run (in that order) to its artifacts: name to schema title."""
    components = parameters.compiled_spec(compiled)["components"]
    found = {}
    for step in steps:
        outputs = components[f"comp-{step}"].get("outputDefinitions", {}).get("artifacts", {})
        found[step] = {name: output["artifactType"]["schemaTitle"] for name, output in outputs.items()}
    return found


def _metrics(folder: Path, outputs: Mapping[str, str]) -> dict[str, Any]:
    """What a step's ``Metrics`` artifacts hold, as the dashboard of a cluster would show it."""
    try:
        written = json.loads((folder / "executor_output.json").read_text())["artifacts"]
    except FileNotFoundError:
        return {}
    metrics: dict[str, Any] = {}
    for name, title in outputs.items():
        if title == "system.Metrics":
            metrics |= finite(written[name]["artifacts"][0].get("metadata", {}))
    return metrics


def _new_folder(runs: Path, name: str) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    attempt = 1
    while True:
        folder = runs / (f"{stamp}-{name}" + (f"-{attempt}" if attempt > 1 else ""))
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            attempt += 1


def _say_how_to_resume(name: str, words: list[str], folder: Path) -> None:
    partial = folder / "train" / "checkpoint.partial"
    if partial.is_dir():
        kept = [word for word in words if not word.startswith("resume=")]
        params = shlex.join([*kept, f"resume={_shown(partial)}"])
        print(f"to resume: make run RUN={name} PARAMS={shlex.quote(params)}", flush=True)


def _shown(path: Path) -> str:
    """The path relative to the working folder where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
