"""The pipeline for Argo Workflows without Kubeflow.

``python -m pipelines.argo [FILE]`` writes the compiled pipeline as a WorkflowTemplate: tasks, their order and
conditions, parameters with their defaults, images, command lines, resources, volumes and secrets. What
Kubeflow's driver and launcher do for a step is said in Argo's words:

* an artifact is a path below ``/tmp``, which Argo fills from and saves to its default artifact repository, as
  it is, so that its user interface shows pages and metrics;
* metrics are output parameters too, of their step and of the workflow (``argo get``);
* ``{{$}}`` is the part of Kubeflow's executor input that the programs read;
* a lost, evicted or preempted pod is replaced, a mistake (exit code 2) or a fault (1) is not repeated;
* pods run as user 1000, by the service account of ``manifests/base/access.yaml``.

``pipelines/workflow_template.yaml`` is committed; a test fails when it is out of date.
"""

import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from hera import workflows as argo
from hera.workflows import models

from pipelines import argo_step
from pipelines.argo_step import Object, artifacts, channel, plain

COMPILED = Path(__file__).with_name("pipeline.yaml")
GENERATED = Path(__file__).with_name("workflow_template.yaml")
HEADER = "# Generated from pipeline.yaml by `make compile`; do not edit.\n"
CONDITION_PARAMETER = re.compile(r"inputs\.parameter_values\['([\w-]+)'\]")
Sources = dict[str, list[str]]  # artifact to where it comes from: the task of one branch or of another


def workflow_template(compiled: Path = COMPILED) -> argo.WorkflowTemplate:
    """The WorkflowTemplate of a compiled pipeline.

    Raises:
        ValueError: the pipeline uses something that has no translation here.
    """
    return _Translation(*yaml.safe_load_all(compiled.read_text())).template()


def generate(path: Path = GENERATED, compiled: Path = COMPILED) -> Path:
    """Writes the WorkflowTemplate; equal pipelines give equal bytes."""
    path.write_text(HEADER + workflow_template(compiled).to_yaml(width=110))
    return path


class _Translation:
    def __init__(self, pipeline: Object, platform: Object | None = None):
        self.pipeline = pipeline
        kubernetes = (platform or {}).get("platforms", {}).get("kubernetes", {})
        self.platform = kubernetes.get("deploymentSpec", {}).get("executors", {})
        self.parameters = pipeline["root"]["inputDefinitions"]["parameters"]
        self.templates: list[Any] = []

    def template(self) -> argo.WorkflowTemplate:
        tasks = self.pipeline["root"]["dag"]["tasks"]
        last = [name for name, task in tasks.items() if "strategy" in task.get("triggerPolicy", {})]
        first = [name for name in tasks if name not in last]
        if len(first) != 1 or len(last) != 1:
            raise ValueError(f"the pipeline must be one dsl.ExitHandler, not the tasks {', '.join(tasks)}")
        self._dag(self._component(tasks[first[0]]), "main")
        self._step(last[0], self._component(tasks[last[0]]))
        return argo.WorkflowTemplate(
            name=self.pipeline["pipelineInfo"]["name"],
            annotations={"workflows.argoproj.io/description": self.pipeline["pipelineInfo"]["description"]},
            entrypoint="main",
            on_exit=last[0],
            arguments=[_workflow_parameter(name, spec) for name, spec in self.parameters.items()],
            templates=self.templates,
            service_account_name="recsys-launch",
            archive_logs=True,
            security_context=models.PodSecurityContext(
                run_as_non_root=True,
                run_as_user=1000,
                run_as_group=1000,
                fs_group=1000,
                fs_group_change_policy="OnRootMismatch",
                seccomp_profile=models.SeccompProfile(type="RuntimeDefault"),
            ),
        )

    def _component(self, task: Object) -> Object:
        return self.pipeline["components"][task["componentRef"]["name"]]

    def _step(self, name: str, component: Object) -> None:
        executors = self.pipeline["deploymentSpec"]["executors"]
        container = executors[component["executorLabel"]]["container"]
        # Of branches that differ by a volume only, one does without because Kubeflow's artifacts have URIs.
        # Argo's have none, so here all of them have the volume.
        twins = [label for label, executor in executors.items() if executor["container"] == container]
        platform = {key: value for label in twins for key, value in self.platform.get(label, {}).items()}
        self.templates.append(argo_step.template(name, component, container, platform, self.parameters))

    def _dag(self, group: Object, name: str = "") -> str:
        """Makes a template of a group of tasks and returns its name."""
        inputs = {key: [f"inputs.artifacts.{plain(key)}"] for key in artifacts(group, "input")}
        dag = argo.DAG(name=name, inputs=[argo.Artifact(name=plain(key)) for key in inputs])
        self.templates.append(dag)
        tasks, outputs = self._tasks(group, inputs, "")
        dag.tasks.extend(tasks)
        dag.outputs = [_from(plain(key), sources) for key, sources in outputs.items()]
        dag.name = name or f"{tasks[0].name}-branches"
        return dag.name

    def _tasks(self, group: Object, inputs: Sources, when: str) -> tuple[list[argo.Task], Sources]:
        """The tasks of a group, with those of its branches among them, and the sources of its outputs."""
        tasks: list[argo.Task] = []
        made: dict[str, Sources] = {}  # by the tasks of the group
        names: dict[str, list[str]] = {}  # of Argo's tasks for each of them
        specs = group["dag"]["tasks"]
        before = {name: spec.get("dependentTasks", ()) for name, spec in specs.items()}
        for name in TopologicalSorter(before).static_order():
            component = self._component(specs[name])
            given = {
                key: _sources(binding, made, inputs)
                for key, binding in specs[name].get("inputs", {}).get("artifacts", {}).items()
            }
            condition = self._condition(specs[name].get("triggerPolicy", {}).get("condition", ""))
            if condition:
                both = " && ".join(filter(None, [when, condition]))
                inner, made[name] = self._tasks(component, given, both)
            else:
                inner = [self._task(name, specs[name], component, given, when)]
                made[name] = {
                    key: [f"tasks.{inner[0].name}.outputs.artifacts.{plain(key)}"]
                    for key in artifacts(component, "output")
                }
            earlier = [each for task in before[name] for each in names[task]]
            for task in inner:
                task.dependencies = [*earlier, *(task.dependencies or ())] or None
            names[name] = [task.name for task in inner]
            tasks += inner
        outputs = {
            key: [
                source
                for selector in choice["artifactSelectors"]
                for source in made[selector["producerSubtask"]][selector["outputArtifactKey"]]
            ]
            for key, choice in group["dag"].get("outputs", {}).get("artifacts", {}).items()
        }
        return tasks, outputs

    def _task(self, name: str, spec: Object, component: Object, given: Sources, when: str) -> argo.Task:
        """The task of a step or of a group; makes its template."""
        arguments: list[argo.Parameter | argo.Artifact] = []
        if "dag" in component:
            name = self._dag(component)
        else:
            self._step(name, component)
            bindings = spec.get("inputs", {}).get("parameters", {})
            for key in argo_step.inputs(component):
                content = argo_step.value(bindings[key], self.parameters)
                arguments.append(argo.Parameter(name=key, value=content))
        arguments += [_from(plain(key), sources) for key, sources in given.items()]
        return argo.Task(name=name, template=name, arguments=arguments, when=when or None)

    def _condition(self, text: str) -> str:
        condition = CONDITION_PARAMETER.sub(lambda match: f"'{channel(match[1], self.parameters)}'", text)
        if "inputs." in condition:
            raise ValueError(f"the condition {text} has no translation to Argo")
        return condition


def _sources(binding: Object, made: dict[str, Sources], inputs: Sources) -> list[str]:
    if "taskOutputArtifact" in binding:
        output = binding["taskOutputArtifact"]
        return made[output["producerTask"]][output["outputArtifactKey"]]
    return inputs[binding["componentInputArtifact"]]


def _workflow_parameter(name: str, spec: Object) -> argo.Parameter:
    description = " ".join(spec.get("description", "").split()) or None
    if "defaultValue" not in spec:
        return argo.Parameter(name=name, description=description)
    # YAML holds a whole number of the spec as a double.
    whole = spec["parameterType"] == "NUMBER_INTEGER"
    default = argo_step.text(int(spec["defaultValue"]) if whole else spec["defaultValue"])
    return argo.Parameter(name=name, description=description, value=default)


def _from(name: str, sources: list[str]) -> argo.Artifact:
    """An artifact that comes from its source, or from the one branch of several that has run."""
    if len(sources) == 1:
        return argo.Artifact(name=name, from_=f"{{{{{sources[0]}}}}}")
    expression = _indexed(sources[-1])
    for source in reversed(sources[:-1]):
        succeeded = f"tasks['{source.split('.')[1]}'].status == 'Succeeded'"
        expression = f"{succeeded} ? {_indexed(source)} : {expression}"
    return argo.Artifact(name=name, from_expression=expression)


def _indexed(source: str) -> str:
    """As an expression writes it, where a name may hold a dash."""
    first, *rest = source.split(".")
    return first + "".join(f"['{part}']" for part in rest)


if __name__ == "__main__":
    print(f"wrote {generate(*map(Path, sys.argv[1:2]))}")
