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
PIPELINE, PLATFORM = yaml.safe_load_all(COMPILED.read_text())
STEPS = {
    name.removeprefix("comp-"): component
    for name, component in PIPELINE["components"].items()
    if "executorLabel" in component
}
# The pipeline itself, what its exit handler guards, and the branches.
GROUPS = {"root": PIPELINE["root"]} | {n: c for n, c in PIPELINE["components"].items() if "dag" in c}
TASKS = {
    name: task
    for group in GROUPS.values()
    for name, task in group["dag"]["tasks"].items()
    if task["componentRef"]["name"] not in GROUPS
}
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
    content = compiled_with(tmp_path, REGISTRY="registry.invalid/team/", TAG="2.0")
    compiled = next(yaml.safe_load_all(content))
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
    kinds = STEPS[step].get("inputDefinitions", {}).get("parameters", {})
    for word in CONTAINERS[step]["args"]:
        if match := re.fullmatch(r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}", word):
            kind = kinds[match[1]]["parameterType"]
            word = "2" if match[1] in ("num_workers", "gpus") else values[kind]  # numbers, as text
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
    assert parsed.pop("executor_input") == {"outputs": {"outputFile": "/tmp/output_metadata.json"}}
    # The other flags of a program are not for a pipeline.
    assert {name: str(parsed[name]) for name in expected} == {n: str(v) for n, v in expected.items()}


def test_pure_steps_are_cached_and_measurements_are_not():
    cached = {name for name, task in TASKS.items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"download", "preprocess", "train", "train-2", "train-3", "evaluate"}


def test_gate_waits_for_every_report():
    assert TASKS["gate"]["dependentTasks"] == ["benchmark", "evaluate"]


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_has_every_parameter_that_its_tasks_take_from_it(group):
    """The compiler forgets those of a resource limit; locally nobody notices, a cluster's driver fails."""
    inputs = GROUPS[group].get("inputDefinitions", {})
    for name, task in GROUPS[group]["dag"]["tasks"].items():
        for value in task.get("inputs", {}).get("parameters", {}).values():
            if "componentInputParameter" in value:
                assert value["componentInputParameter"] in inputs["parameters"], name
        for value in task.get("inputs", {}).get("artifacts", {}).values():
            if "componentInputArtifact" in value:
                assert value["componentInputArtifact"] in inputs["artifacts"], name


ON_KUBERNETES = PLATFORM["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_several_workers_without_a_store_get_the_claim_and_their_launcher_no_gpu():
    assert [name for name, executor in ON_KUBERNETES.items() if "pvcMount" in executor] == ["exec-train-3"]
    [mount] = ON_KUBERNETES["exec-train-3"]["pvcMount"]
    assert mount["mountPath"] == "/workspace"
    assert mount["componentInputParameter"] == "pipelinechannel--workspace_claim"
    [branch] = [c for name, c in GROUPS.items() if "train-3" in c["dag"]["tasks"]]
    [conditions] = [c for c in GROUPS.values() if len(c["dag"]["tasks"]) == 3 and branch is not c]
    told = [task["triggerPolicy"]["condition"] for task in conditions["dag"]["tasks"].values()]
    assert "dataset_store'] != ''" in told[1]
    assert "!(" in told[2]
    assert "dataset_store'] != ''" in told[2]


def test_every_step_that_may_use_a_store_gets_the_keys_where_the_secret_exists():
    steps = {name.removeprefix("exec-") for name in ON_KUBERNETES}
    assert steps == {"download", "preprocess", "train", "train-2", "train-3", "evaluate", "benchmark"}
    for executor in ON_KUBERNETES.values():
        [secret] = executor["secretAsEnv"]
        assert secret["optional"]
        assert secret["secretNameParameter"] == {"componentInputParameter": "pipelinechannel--storage_secret"}
        variables = {entry["secretKey"]: entry["envVar"] for entry in secret["keyToEnv"]}
        assert variables["accesskey"] == "AWS_ACCESS_KEY_ID"
        assert variables["secretkey"] == "AWS_SECRET_ACCESS_KEY"
    for name, group in GROUPS.items():  # the driver looks the name up in the group that the step is in
        if steps & set(group["dag"]["tasks"]):
            parameters_of = group["inputDefinitions"]["parameters"]
            assert "pipelinechannel--storage_secret" in parameters_of, name


def test_cleanup_runs_whatever_became_of_the_rest():
    root = PIPELINE["root"]["dag"]["tasks"]
    assert root["cleanup"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert root["cleanup"]["dependentTasks"] == ["exit-handler-1"]
    assert set(root) == {"cleanup", "exit-handler-1"}


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
