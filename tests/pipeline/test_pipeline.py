"""The compiled pipeline: up to date, portable to a cluster, and understood by every step's own parser."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from components import images
from pipelines import parameters
from pipelines.local import ENVIRONMENTS
from pipelines.pipeline import COMPILED

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = yaml.safe_load(COMPILED.read_text())
STEPS = {name.removeprefix("comp-"): component for name, component in PIPELINE["components"].items()}
CONTAINERS = {
    name.removeprefix("exec-"): executor["container"]
    for name, executor in PIPELINE["deploymentSpec"]["executors"].items()
}
# What Kubeflow's launcher fills in; anything else stays literal text on a cluster (kfp.local would hide it).
PORTABLE = re.compile(
    r"\{\{\$\}\}"
    r"|\{\{\$\.(inputs|outputs)\.artifacts\['\w+'\]\.(path|uri)\}\}"
    r"|\{\{\$\.inputs\.parameters\['\w+'\]\}\}"
)


def compiled_with(tmp_path, **environment):
    """The bytes that ``python -m pipelines.pipeline`` writes with these environment variables."""
    path = tmp_path / "pipeline.yaml"
    clean = {key: value for key, value in os.environ.items() if key not in ("REGISTRY", "TAG")}
    subprocess.run(
        [sys.executable, "-m", "pipelines.pipeline", str(path)],
        cwd=ROOT,
        env={**clean, **environment},
        check=True,
        capture_output=True,
    )
    return path.read_bytes()


def test_committed_yaml_is_what_compiling_gives(tmp_path):
    assert compiled_with(tmp_path) == COMPILED.read_bytes(), "run `make compile` and commit pipeline.yaml"


def test_images_have_no_host_and_the_projects_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == images.VERSION
    for container in CONTAINERS.values():
        name, _, tag = container["image"].partition(":")
        assert (name in ENVIRONMENTS, tag) == (True, version)
        assert (ROOT / "images" / name.removeprefix("recsys-")).is_dir()


def test_registry_and_tag_are_put_in_front_at_compile(tmp_path):
    compiled = yaml.safe_load(compiled_with(tmp_path, REGISTRY="registry.invalid/team/", TAG="2.0"))
    found = {executor["container"]["image"] for executor in compiled["deploymentSpec"]["executors"].values()}
    assert found == {f"registry.invalid/team/{name}:2.0" for name in ENVIRONMENTS}


@pytest.mark.parametrize("step", CONTAINERS)
def test_holds_no_placeholder_that_a_cluster_leaves_literal(step):
    command, arguments = CONTAINERS[step]["command"], CONTAINERS[step]["args"]
    assert command[:2] == ["python", "-m"], "exec form: a shell would swallow signals"
    assert not any("$" in word or "{" in word for word in command)
    for word in arguments:
        assert "{" not in PORTABLE.sub("", word), f"{word} would stay literal on a cluster"


@pytest.mark.parametrize("step", STEPS)
def test_flags_are_the_inputs_and_outputs_letter_for_letter(step):
    declared = {
        name
        for side in ("inputDefinitions", "outputDefinitions")
        for kind in STEPS[step].get(side, {}).values()
        for name in kind
    }
    words = CONTAINERS[step]["args"]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert set(flags) == {f"--{name}" for name in declared} | {"--executor_input"}
    for name in declared:
        assert f"'{name}'" in flags[f"--{name}"]


def rendered(step):
    """A step's arguments as a cluster's driver and launcher would fill them in, and what should be parsed."""
    values = {"STRING": "ncf", "NUMBER_INTEGER": "7", "STRUCT": '{"epochs":3,"learning_rate":0.001}'}
    words, expected = [], {}
    kinds = STEPS[step]["inputDefinitions"].get("parameters", {})
    for word in CONTAINERS[step]["args"]:
        if match := re.fullmatch(r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}", word):
            word = values[kinds[match[1]]["parameterType"]]
            kind = kinds[match[1]]["parameterType"]
            expected[match[1]] = word if kind == "STRING" else json.loads(word)
        elif match := re.fullmatch(r"\{\{\$\.\w+\.artifacts\['(\w+)'\]\.path\}\}", word):
            word = f"/minio/mlpipeline/v2/artifacts/{match[1]}"
            expected[match[1]] = word
        elif word == "{{$}}":
            word = '{"outputs":{"outputFile":"/tmp/output_metadata.json"}}'
        words.append(word)
    return words, expected


@pytest.mark.parametrize("step", CONTAINERS)
def test_compiled_arguments_are_parsed_by_the_steps_own_parser(step):
    container = CONTAINERS[step]
    module = container["command"][2]
    python = ENVIRONMENTS[container["image"].partition(":")[0]]
    if not python.exists():
        pytest.skip(f"{python} is not set up (make setup)")
    words, expected = rendered(step)
    program = (
        "import importlib, json, sys; step = importlib.import_module(sys.argv[1]).STEP;"
        "print(json.dumps(vars(step.parser.parse_args(json.load(sys.stdin))), default=str))"
    )
    done = subprocess.run(
        [str(python), "-c", program, module],
        input=json.dumps(words),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    parsed = json.loads(done.stdout.splitlines()[-1])
    parsed.pop("executor_input")
    assert parsed == expected


def test_pure_steps_are_cached_and_measurements_are_not():
    tasks = PIPELINE["root"]["dag"]["tasks"]
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"download", "preprocess", "train", "evaluate"}


def test_gate_waits_for_every_report():
    tasks = PIPELINE["root"]["dag"]["tasks"]
    assert tasks["gate"]["dependentTasks"] == ["benchmark", "evaluate"]


def test_gpus_are_text_because_the_backend_reads_a_limit_as_text_only():
    kinds = parameters.declared(COMPILED)
    assert kinds["gpus"]["parameterType"] == "STRING"
    on_gpu = {name for name, c in CONTAINERS.items() if "accelerator" in c["resources"]}
    assert on_gpu == {"train", "evaluate", "benchmark"}


@pytest.mark.parametrize("run", parameters.names())
def test_run_files_resolve_and_say_what_they_reproduce(run):
    values = parameters.resolve(run, [], COMPILED)
    assert list(values) == list(parameters.declared(COMPILED))
    assert run.startswith(values["model"])
    assert (parameters.RUNS / f"{run}.yaml").read_text().startswith("# ")
