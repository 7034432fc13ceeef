"""The page of operations is true: its targets, runs, flags, files, messages, settings and versions exist."""

import ast
import dataclasses
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from components.train.mpijob import Settings
from pipelines import parameters
from pipelines.pipeline import COMPILED

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
TARGETS = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
SYMPTOMS = [row for row in PAGE.split("## 7.")[1].split("## 8.")[0].splitlines() if row.startswith("| ")][1:]
HOSTS = re.compile(r"\b(docker\.io|nvcr\.io|ghcr\.io|gcr\.io|quay\.io)\b")


def texts():
    """Every literal text of the programs; of an f-string, what is between the braces."""
    for package in ("components", "pipelines", "recsys"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_make_targets_and_the_runs_and_parameters_given_to_them_exist():
    assert len(COMMANDS) > 20
    for target in re.findall(r"(?:^\$|`|&&) ?make ([a-z-]+)", PAGE, re.MULTILINE):
        assert target in TARGETS
    for command in COMMANDS:
        words = shlex.split(command)
        settings = dict(word.split("=", 1) for word in words if re.match(r"(RUN|PARAMS)=", word))
        if words[0] == "make" and "RUN" in settings:
            parameters.resolve(settings["RUN"], parameters.split(settings.get("PARAMS", "")), COMPILED)


def test_parameters_that_the_text_names_exist():
    declared = parameters.declared(COMPILED)
    named = set(re.findall(r"`([a-z_]+)(?:\.[a-z_]+)?(?:=[^`]*)?`", PAGE)) & set(declared)
    assert {"gpus", "num_workers", "dataset_store", "storage_secret", "source", "gate"} <= named
    fields = {field.name for field in dataclasses.fields(Settings)}
    settings = set(re.findall(r"cluster\.([a-z_]+)", PAGE))
    assert settings <= fields
    assert len(settings) > 4
    runs = set(re.findall(r"\b(?:ncf|vae_cf|wide_deep)_[a-z0-9_]+\b", PAGE))
    assert runs
    assert runs <= set(parameters.names())


def test_flags_of_our_programs_exist():
    for module, rest in re.findall(r"-m (pipelines\.\w+|components\.\w+\.\w+)([^`\n]*)", PAGE):
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        for flag in set(re.findall(r"--([a-z_-]+)", rest)) - {"help"}:
            assert f'"--{flag}"' in source or f'parameter("{flag}"' in source, (module, flag)
    submit = (ROOT / "pipelines/submit.py").read_text()
    assert '"--token-file"' in submit
    assert '"--namespace"' in submit


def test_files_exist():
    folders = "benchmarks|components|docs|images|manifests|pipelines|recsys|tests"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    named = re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\w)", PAGE)
    assert len(named) > 8
    for name in named:
        assert any(file == name or file.startswith(f"{name}/") for file in files.stdout.splitlines()), name


@pytest.mark.parametrize("row", SYMPTOMS)
def test_a_message_of_the_playbook_is_one_that_a_program_says(row):
    for message in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
        assert any(message in text for text in texts()), message


def test_the_playbook_has_a_cause_and_a_way_out_for_every_symptom():
    assert len(SYMPTOMS) > 20
    for row in SYMPTOMS:
        assert all(cell.strip() for cell in row.strip("|").split(" | ")), row


def test_what_a_pod_requests_is_what_the_pipeline_says():
    executors = parameters.compiled_spec(COMPILED)["deploymentSpec"]["executors"]
    table = PAGE.split("## 5.")[1].split("Overlays")[0]
    for step in ("download", "preprocess", "train", "train-2", "evaluate", "benchmark", "gate"):
        resources = executors[f"exec-{step}"]["container"]["resources"]
        name = {"train": "train, one worker", "train-2": "train, several workers"}.get(step, step)
        [row] = [line for line in table.splitlines() if line.startswith(f"| {name}")]
        _, _, cpu, memory, gpus, _, _ = (cell.strip() for cell in row.split("|"))
        assert (cpu, memory) == (resources["resourceCpuRequest"], resources["resourceMemoryRequest"]), step
        assert bool(gpus) == ("accelerator" in resources), step


def test_versions_are_those_that_are_tested():
    for path, module in (("tests/cluster/apiserver", "mpi-operator"), ("tests/argo", "argo-workflows/v3")):
        [version] = re.findall(rf"{module} v([\d.]+)\b", (ROOT / path / "go.mod").read_text())
        assert version in PAGE
    [kfp] = re.findall(r"^kfp==(.*)$", (ROOT / "images/download/requirements.in").read_text(), re.MULTILINE)
    assert f"kfp=={kfp}" in PAGE
    assert f"PIPELINE_VERSION={kfp}" in PAGE


def test_no_registry_is_named():
    assert not HOSTS.search(PAGE)
