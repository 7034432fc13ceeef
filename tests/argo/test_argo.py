"""The WorkflowTemplate before Argo's own code: linter, conditions, expressions, the schema of its kind."""

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipelines import parameters
from pipelines.argo import GENERATED

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / ".venv/argo/argo-check"
SCHEMA = ROOT / ".venv/argo/workflowtemplates.yaml"
TEMPLATE = yaml.safe_load(GENERATED.read_text())
TEMPLATES = {template["name"]: template for template in TEMPLATE["spec"]["templates"]}
CHOICE = next(template for name, template in TEMPLATES.items() if name.endswith("-branches"))

pytestmark = pytest.mark.skipif(not CHECK.exists(), reason=f"needs {CHECK}; run make setup-argo")


def check(*words):
    """Exit code and output of what Argo says."""
    done = subprocess.run([CHECK, *words], capture_output=True, text=True, timeout=60)
    return done.returncode, (done.stdout + done.stderr).strip()


def written(folder, name, content):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def lint_with_workflow(folder, given):
    """Lints the template and a workflow that is submitted from it with these parameters."""
    metadata = {"name": "recsys", "namespace": "kubeflow"}
    template = written(folder, "template", TEMPLATE | {"metadata": metadata})
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": "recsys-", "namespace": "kubeflow"},
        "spec": {
            "workflowTemplateRef": {"name": "recsys"},
            "arguments": {"parameters": [{"name": key, "value": value} for key, value in given.items()]},
        },
    }
    return check("lint", template, written(folder, "workflow", workflow))


def test_the_linter_finds_nothing():
    assert check("lint", GENERATED) == (0, "no linting errors found!")


@pytest.mark.parametrize(
    ("found", "planted", "complaint"),
    [
        ("{{inputs.parameters.seed}}", "{{inputs.parameters.sede}}", "failed to resolve"),
        ("retryPolicy:", "retryPolcy:", "unknown field"),
        ("tasks.download.outputs", "tasks.dowload.outputs", "dowload"),
    ],
)
def test_the_linter_would_find_a_mistake(found, planted, complaint, tmp_path):
    content = GENERATED.read_text()
    assert found in content
    broken = tmp_path / "broken.yaml"
    broken.write_text(content.replace(found, planted))
    code, said = check("lint", broken)
    assert code == 1
    assert complaint in said


def test_every_run_file_can_be_submitted(tmp_path):
    for run in parameters.names():
        content = yaml.safe_load((parameters.RUNS / f"{run}.yaml").read_text())
        given = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in content.items()
        }
        assert lint_with_workflow(tmp_path, given) == (0, "no linting errors found!"), run


@pytest.mark.parametrize(
    ("workers", "store", "runs"),
    [
        ("1", "", "train"),
        ("1", "s3://b/store", "train"),
        ("2", "s3://b/store", "train-2"),
        ("2", "", "train-3"),
    ],
)
def test_exactly_one_branch_trains_and_its_checkpoint_goes_on(workers, store, runs):
    values = {"workflow.parameters.num_workers": workers, "workflow.parameters.dataset_store": store}
    trained, scope = [], {}
    for task in CHOICE["dag"]["tasks"]:
        when = re.sub(r"\{\{([\w.]+)\}\}", lambda match: values[match[1]], task["when"])
        code, said = check("when", when)
        assert code == 0, said
        name = task["name"]
        scope[f"tasks.{name}.status"] = "Succeeded" if said == "true" else "Skipped"
        if said == "true":
            trained.append(name)
            scope[f"tasks.{name}.outputs.artifacts.checkpoint"] = name
    assert trained == [runs]
    [output] = CHOICE["outputs"]["artifacts"]
    code, said = check("holds", f"({output['fromExpression']}) == '{runs}'", json.dumps(scope))
    assert (code, said) == (0, "true")


@pytest.mark.parametrize(
    ("status", "code", "message", "again"),
    [
        ("Failed", "2", "main: Error (exit code 2)", False),
        ("Failed", "1", "main: Error (exit code 1)", False),
        ("Failed", "137", "main: OOMKilled (exit code 137)", False),
        ("Error", "-1", "pod deleted", True),
        ("Error", "0", "wait: Error (exit code 64): upload failed", True),
        ("Failed", "143", "main: Error (exit code 143)", True),
        ("Failed", "137", "The node was low on resource: memory.", True),
        ("Failed", "137", "Pod was terminated in response to imminent node shutdown.", True),
        ("Failed", "-1", "Preempted", True),
    ],
)
def test_a_lost_pod_is_replaced_and_a_mistake_is_not_repeated(status, code, message, again):
    scope = {"lastRetry.status": status, "lastRetry.exitCode": code, "lastRetry.message": message}
    retries = [template["retryStrategy"] for template in TEMPLATES.values() if "container" in template]
    assert {json.dumps(retry) for retry in retries} == {json.dumps(retries[0])}
    assert retries[0]["retryPolicy"] == "Always", "the expression decides alone"
    assert check("holds", retries[0]["expression"], json.dumps(scope)) == (0, str(again).lower())


def strict(schema):
    """A structural schema of Kubernetes as JSON schema, where an unknown field is a mistake."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(each) for key, each in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


def test_the_definition_of_its_kind_knows_every_field():
    [version] = yaml.load(SCHEMA.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {}
    jsonschema.validate(TEMPLATE, schema)
    broken = json.loads(json.dumps(TEMPLATE))
    broken["spec"]["templates"][1]["container"]["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        jsonschema.validate(broken, schema)
