"""The README's commands and paths are real: targets, runs, parameters and files exist."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from benchmarks import embedding_parallel
from pipelines import parameters
from pipelines.pipeline import COMPILED

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^\$ (make .*)$", README, re.MULTILINE)
TARGETS = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_first_command_and_real_output_come_within_forty_lines():
    assert "$ make run" in "\n".join(README.splitlines()[:40])
    assert "succeeded after" in "\n".join(README.splitlines()[:40])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_a_target_and_parameters_that_exist(command):
    target, *words = shlex.split(command)[1:]
    assert target in TARGETS
    settings = dict(word.split("=", 1) for word in words)
    for name in filter(None, settings.get("RUN", "").split(",")):
        parameters.resolve(name, parameters.split(settings.get("PARAMS", "")), COMPILED)


def test_every_parameter_of_the_table_is_one_of_a_run():
    table = re.findall(r"^\| `([a-z_.]+=[^`]*)` \|", README, re.MULTILINE)
    assert len(table) > 5
    for word in table:
        parameters.resolve("ncf_movielens_100k", parameters.split(word), COMPILED)


def test_every_run_of_the_results_table_and_every_file_of_the_tree_exists():
    for name in re.findall(r"\| `([a-z0-9_]+)` \|$", README, re.MULTILINE):
        assert (ROOT / "pipelines/runs" / f"{name}.yaml").is_file(), name
    tree = README.split("## How it is built")[1].split("```")[1]
    names = re.findall(r"(?<![.a-z_])[a-z_]+(?:/|\.py|\.yaml)", tree)
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # The preprocess step writes this one.
    present = {"feature_spec.yaml"} | {part for file in files.splitlines() for part in Path(file).parts}
    assert len(names) > 20
    assert not [name for name in names if name.rstrip("/") not in present]


def test_the_page_on_embedding_parallel_is_that_of_its_figures():
    page = embedding_parallel.page(json.loads(embedding_parallel.FIGURES.read_text()))
    assert embedding_parallel.PAGE.read_text() == page, "run python -m benchmarks.embedding_parallel --page"
