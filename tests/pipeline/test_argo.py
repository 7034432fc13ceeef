"""The WorkflowTemplate for plain Argo: up to date, complete, and its command lines reach the metrics."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines import argo, parameters
from pipelines.local import ENVIRONMENTS
from pipelines.pipeline import COMPILED

ROOT = Path(__file__).resolve().parents[2]
SPEC = yaml.safe_load(argo.GENERATED.read_text())["spec"]
TEMPLATES = {template["name"]: template for template in SPEC["templates"]}
PIPELINE, PLATFORM = yaml.safe_load_all(COMPILED.read_text())
CONTAINERS = {
    name.removeprefix("exec-"): executor["container"]
    for name, executor in PIPELINE["deploymentSpec"]["executors"].items()
}
KUBERNETES = PLATFORM["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def changed(tmp_path, change):
    """The templates of a pipeline that is the compiled one but for a change."""
    pipeline, platform = yaml.safe_load_all(COMPILED.read_text())
    change(pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"])
    compiled = tmp_path / "pipeline.yaml"
    compiled.write_text(yaml.safe_dump_all([pipeline, platform]))
    generated = yaml.safe_load(argo.generate(tmp_path / "argo.yaml", compiled).read_text())
    return {template["name"]: template for template in generated["spec"]["templates"]}


def test_committed_template_is_what_generating_gives(tmp_path):
    generated = argo.generate(tmp_path / "template.yaml")
    assert generated.read_bytes() == argo.GENERATED.read_bytes(), "run `make compile` and commit it"


@pytest.mark.parametrize("step", CONTAINERS)
def test_a_step_has_the_image_the_program_and_every_flag_of_kubeflows(step):
    ours, theirs = TEMPLATES[step]["container"], CONTAINERS[step]
    assert (ours["image"], ours["command"]) == (theirs["image"], theirs["command"])
    assert [word for word in ours["args"] if word.startswith("--")] == theirs["args"][::2]
    assert not [word for word in ours["args"] if "$" in word]
    for kind in ("cpu", "memory"):
        assert ours["resources"]["requests"][kind] == theirs["resources"][f"resource{kind.title()}Request"]


def test_parameters_have_the_pipelines_names_and_defaults():
    ours = {entry["name"]: entry.get("value") for entry in SPEC["arguments"]["parameters"]}
    declared = parameters.declared(COMPILED)
    assert list(ours) == list(declared)
    for name, spec in declared.items():
        if "defaultValue" not in spec:
            assert ours[name] is None
        elif spec["parameterType"] == "STRING":
            assert ours[name] == spec["defaultValue"]
        else:
            assert json.loads(ours[name]) == spec["defaultValue"]
            assert "." not in ours[name]


def test_a_new_flag_and_a_new_secret_of_a_step_appear(tmp_path):
    def add(pipeline, executors):
        component = pipeline["components"]["comp-preprocess"]
        component["inputDefinitions"]["parameters"]["compression"] = {"parameterType": "STRING"}
        task = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]["preprocess"]
        task["inputs"]["parameters"]["compression"] = {"runtimeValue": {"constant": "zstd"}}
        container = pipeline["deploymentSpec"]["executors"]["exec-preprocess"]["container"]
        container["args"] += ["--compression", "{{$.inputs.parameters['compression']}}"]
        container["env"] = [{"name": "COLOUR", "value": "no"}]
        executors["exec-preprocess"] = {
            "secretAsEnv": [
                {
                    "secretNameParameter": {"runtimeValue": {"constant": "vault"}},
                    "keyToEnv": [{"envVar": "TOKEN", "secretKey": "token"}],
                    "optional": True,
                }
            ]
        }

    templates = changed(tmp_path, add)
    container = templates["preprocess"]["container"]
    assert container["args"][-2:] == ["--compression", "{{inputs.parameters.compression}}"]
    [task] = [task for task in templates["main"]["dag"]["tasks"] if task["name"] == "preprocess"]
    assert {"name": "compression", "value": "zstd"} in task["arguments"]["parameters"]
    reference = {"secretKeyRef": {"name": "vault", "key": "token", "optional": True}}
    assert {"name": "TOKEN", "valueFrom": reference} in container["env"]
    assert {"name": "COLOUR", "value": "no"} in container["env"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda _, executors: executors["exec-train"].update(nodeSelector={}),
            "exec-train|train: nodeSelector",
        ),
        (
            lambda pipeline, _: pipeline["deploymentSpec"]["executors"]["exec-gate"]["container"][
                "args"
            ].append("{{$.inputs.artifacts['metrics'].uri}}"),
            "has no translation",
        ),
        (lambda pipeline, _: pipeline["root"]["dag"]["tasks"].pop("cleanup"), "dsl.ExitHandler"),
    ],
    ids=["a setting of the pod", "a placeholder", "no exit handler"],
)
def test_what_has_no_translation_is_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        changed(tmp_path, change)


@pytest.mark.parametrize("step", CONTAINERS)
def test_a_pod_is_told_its_name_its_run_its_gpus_and_its_secrets(step):
    template, theirs = TEMPLATES[step], CONTAINERS[step]
    env = {entry["name"]: entry for entry in template["container"]["env"]}
    assert env["KFP_POD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    secrets = [
        key for each in KUBERNETES.get(f"exec-{step}", {}).get("secretAsEnv", ()) for key in each["keyToEnv"]
    ]
    assert set(env) == {"KFP_POD_NAME"} | {key["envVar"] for key in secrets}
    assert template["metadata"]["labels"] == {"pipeline/runid": "{{workflow.uid}}"}
    patch = json.loads(template.get("podSpecPatch", "{}"))
    limits = {"nvidia.com/gpu": "{{workflow.parameters.gpus}}"}
    wanted = {"containers": [{"name": "main", "resources": {"limits": limits}}]}
    assert patch == (wanted if "accelerator" in theirs["resources"] else {})


def test_a_step_that_starts_an_mpijob_mounts_the_claim_and_one_that_trains_itself_does_not():
    claims = {}
    for step in CONTAINERS:
        volumes = {volume["name"]: volume for volume in TEMPLATES[step]["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in TEMPLATES[step]["container"]["volumeMounts"]}
        if "/workspace" in mounts:
            claims[step] = volumes[mounts["/workspace"]]["persistentVolumeClaim"]["claimName"]
    launching = [step for step in CONTAINERS if step.startswith("train-")]
    assert claims == dict.fromkeys(launching, "{{workflow.parameters.workspace_claim}}")
    assert launching


def test_pods_are_not_root_and_cannot_become_it():
    context = SPEC["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["fsGroup"]) == (True, 1000, 1000)
    for step in CONTAINERS:
        security = TEMPLATES[step]["container"]["securityContext"]
        assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


class Argo:
    """What Argo's controller and executor do with a template, on this machine: one process after the other.

    Args:
        root: gets a folder for each pod, which stands for its file system.
    """

    def __init__(self, root, **given):
        self.root, self.ran, self.outputs = root, [], {}
        declared = {entry["name"]: entry.get("value") for entry in SPEC["arguments"]["parameters"]}
        values = declared | given
        self.scope = {f"workflow.parameters.{name}": value for name, value in values.items()}

    def filled(self, text, scope):
        return re.sub(r"\{\{([\w.-]+)\}\}", lambda match: (self.scope | scope)[match[1]], text)

    def run(self, name, scope):
        """Runs a template; returns its output artifacts: name to path."""
        template = TEMPLATES[name]
        if "container" in template:
            return self.pod(template, scope)
        scope, done = dict(scope), set()
        tasks = template["dag"]["tasks"]
        assert [
            task["name"]
            for task in tasks
            if not set(task.get("dependencies", ())) <= {t["name"] for t in tasks}
        ] == []
        while len(done) < len(tasks):
            task = next(t for t in tasks if t["name"] not in done and set(t.get("dependencies", ())) <= done)
            done.add(task["name"])
            if not self.holds(task.get("when", "")):
                scope[f"tasks.{task['name']}.status"] = "Skipped"
                continue
            arguments = task.get("arguments", {})
            given = {
                f"inputs.parameters.{entry['name']}": self.filled(entry["value"], scope)
                for entry in arguments.get("parameters", ())
            }
            for entry in arguments.get("artifacts", ()):
                given[f"inputs.artifacts.{entry['name']}"] = scope[entry["from"].strip("{}")]
            made = self.run(task["template"], given)
            scope |= {f"tasks.{task['name']}.outputs.artifacts.{key}": path for key, path in made.items()}
            scope[f"tasks.{task['name']}.status"] = "Succeeded"
        return {
            e["name"]: self.chosen(e["fromExpression"], scope)
            for e in template.get("outputs", {}).get("artifacts", ())
        }

    def holds(self, when):
        """The conditions that there are: of quoted text, with ==, !=, !() and &&."""
        text = self.filled(when, {}).replace("&&", " and ").replace("!(", " not (")
        return eval(text or "True", {"__builtins__": {}})

    def chosen(self, expression, scope):
        """``tasks['a'].status == 'Succeeded' ? tasks['a'][...] : ...``"""
        *choices, last = expression.split(" : ")
        sources = [choice.partition(" ? ")[2] for choice in choices] + [last]
        paths = [scope.get(".".join(["tasks", *re.findall(r"\['([^']+)'\]", source)])) for source in sources]
        [path] = filter(None, paths)
        return path

    def pod(self, template, scope):
        name, container = template["name"], template["container"]
        folder = self.root / name

        def moved(path):
            return path.replace("/tmp/inputs/", f"{folder}/tmp/inputs/").replace(
                "/tmp/outputs/", f"{folder}/tmp/outputs/"
            )

        for entry in template.get("inputs", {}).get("artifacts", ()):
            source, target = scope[f"inputs.artifacts.{entry['name']}"], Path(moved(entry["path"]))
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        python = ENVIRONMENTS[container["image"].rpartition(":")[0]]
        if not python.exists():
            pytest.skip(f"{python} is not set up (make setup)")
        command = [str(python), *container["command"][1:]]
        command += [self.filled(moved(word), scope) for word in container["args"]]
        clean = {
            key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "KUBERNETES_"))
        }
        done = subprocess.run(
            command, cwd=ROOT, env=clean | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.ran.append(name)
        outputs = template.get("outputs", {})
        for entry in outputs.get("parameters", ()):
            self.outputs[entry["globalName"]] = json.loads(
                Path(moved(entry["valueFrom"]["path"])).read_text()
            )
        saved = self.root / "repository" / name
        made = {entry["name"]: Path(moved(entry["path"])) for entry in outputs.get("artifacts", ())}
        for key, path in made.items():
            saved.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy)(path, saved / key)
        shutil.rmtree(folder)
        return {key: saved / key for key in made}


def as_argo_reads_it(run):
    """A run file as ``argo submit --parameter-file`` reads it: text as it is, anything else as JSON."""
    content = yaml.safe_load((parameters.RUNS / f"{run}.yaml").read_text())
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in content.items()}


def test_its_command_lines_reach_the_metrics_as_argo_would_run_them(tmp_path):
    quick = {
        "dataset_options": '{"users": 400, "items": 200}',
        "hyperparameters": '{"batch_size": 1024, "epochs": 3}',
        "benchmark": '{"train_seconds": 0.5, "inference_seconds": 0.1, "batch_sizes": [1, 64]}',
        "gate": "hr@10>0.2",
    }
    cluster = Argo(tmp_path, **as_argo_reads_it("ncf_synthetic") | quick)
    cluster.run(SPEC["entrypoint"], {})
    cluster.run(SPEC["onExit"], {})
    assert cluster.ran == ["download", "preprocess", "train", "evaluate", "benchmark", "gate", "cleanup"]
    metrics = cluster.outputs["evaluate-metrics"]
    assert metrics["hr@10"] > metrics["popularity_hr@10"]
    assert cluster.outputs["benchmark-throughput"]["train_samples_per_second_mean"] > 0
    assert "passed" in (tmp_path / "repository/gate/verdict").read_text()
