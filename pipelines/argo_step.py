"""One step of the compiled pipeline as a container template of Argo; see :mod:`pipelines.argo`."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hera import workflows as argo
from hera.workflows import models

INPUTS, OUTPUTS = "/tmp/inputs", "/tmp/outputs"
# Argo's user interface chooses a viewer by the name's end.
ENDINGS = {"system.HTML": ".html", "system.Markdown": ".md", "system.Metrics": ".json"}
CHANNEL = "pipelinechannel--"  # before names that the compiler hands from group to group
COMPILED_NAME = re.compile(rf"^(?:{CHANNEL})?(?:condition-branches-\d+-)?")
PLACEHOLDER = re.compile(
    r"\{\{\$(?:\.(inputs\.parameters|inputs\.artifacts|outputs\.artifacts)\['([\w-]+)'\](?:\.path)?)?\}\}"
)
# A pod that Kubernetes lost, evicted or preempted. Not: a mistake (2), a fault (1), too little memory (137).
RETRY_WHEN = (
    "lastRetry.status == 'Error' || asInt(lastRetry.exitCode) in [-1, 143]"
    " || lastRetry.message matches 'low on resource|node shutdown'"
)
Object = Mapping[str, Any]


def template(
    name: str, component: Object, container: Object, platform: Object, parameters: Collection[str]
) -> argo.Container:
    """The template of a step.

    Args:
        component, container: of the compiled pipeline.
        platform: what kfp.kubernetes has set on the step.
        parameters: of the pipeline.
    Raises:
        ValueError: the step uses something that has no translation here.
    """
    produced = artifacts(component, "output")
    paths = {key: f"{OUTPUTS}/{key}{ENDINGS.get(kind, '')}" for key, kind in produced.items()}
    metrics = [key for key, kind in produced.items() if kind == "system.Metrics"]
    resources = container.get("resources", {})
    secrets, volumes = _platform(name, platform, parameters)
    return argo.Container(
        name=name,
        image=container["image"],
        command=container["command"],
        args=[_filled(word, paths, parameters) for word in container["args"]],
        # The launch and the cleanup program ask the cluster about their own pod.
        env=[_own_name("KFP_POD_NAME"), *(argo.Env(**entry) for entry in container.get("env", ())), *secrets],
        inputs=[
            *(argo.Parameter(name=key) for key in inputs(component)),
            *(argo.Artifact(name=key, path=f"{INPUTS}/{key}") for key in artifacts(component, "input")),
        ],
        outputs=[
            *(argo.Artifact(name=k, path=p, archive=argo.NoneArchiveStrategy()) for k, p in paths.items()),
            *(_shown(key, paths[key], f"{name}-{key}") for key in metrics),
        ],
        labels={"pipeline/runid": "{{workflow.uid}}"},  # by which the cleanup finds what the run has started
        resources=argo.Resources(
            cpu_request=resources.get("resourceCpuRequest"),
            cpu_limit=resources.get("resourceCpuLimit"),
            memory_request=resources.get("resourceMemoryRequest"),
            memory_limit=resources.get("resourceMemoryLimit"),
        ),
        pod_spec_patch=_accelerator(resources.get("accelerator"), parameters),
        security_context=models.SecurityContext(
            allow_privilege_escalation=False, capabilities=models.Capabilities(drop=["ALL"])
        ),
        # On a volume, Argo uploads outputs from where they are, without a copy.
        volumes=[argo.EmptyDirVolume(name="outputs", mount_path=OUTPUTS), *volumes],
        retry_strategy=argo.RetryStrategy(
            limit=2,
            retry_policy="Always",
            expression=RETRY_WHEN,
            backoff=models.Backoff(duration="10s", factor=models.IntOrString(root=3)),
        ),
    )


def plain(name: str) -> str:
    """A name without what the compiler puts before it."""
    return COMPILED_NAME.sub("", name)


def inputs(component: Object) -> Object:
    """Parameters of a component."""
    return component.get("inputDefinitions", {}).get("parameters", {})


def artifacts(component: Object, side: str) -> dict[str, str]:
    """Artifacts of a component, ``input`` or ``output``, and the titles of their types."""
    found = component.get(f"{side}Definitions", {}).get("artifacts", {})
    return {key: spec["artifactType"]["schemaTitle"] for key, spec in found.items()}


def channel(name: str, parameters: Collection[str]) -> str:
    """A parameter of the pipeline, handed on to a group of tasks, as Argo writes it."""
    if plain(name) not in parameters:
        raise ValueError(f"{name} is no parameter of the pipeline; only those are translated to Argo")
    return f"{{{{workflow.parameters.{plain(name)}}}}}"


def value(binding: Object, parameters: Collection[str]) -> str:
    """What a step or a volume gets: a constant, or a parameter of the pipeline."""
    if "runtimeValue" in binding:
        return text(binding["runtimeValue"]["constant"])
    if "componentInputParameter" not in binding:
        raise ValueError(f"{dict(binding)} has no translation to Argo")
    return channel(binding["componentInputParameter"], parameters)


def text(content: Any) -> str:
    """A value as a command line takes it."""
    return content if isinstance(content, str) else json.dumps(content)


def _filled(word: str, outputs: Mapping[str, str], parameters: Collection[str]) -> str:
    """A word of a command line with Kubeflow's placeholders replaced."""

    def fill(match: re.Match[str]) -> str:
        kind, key = match.groups()
        if kind == "inputs.parameters":
            return channel(key, parameters) if key.startswith(CHANNEL) else f"{{{{inputs.parameters.{key}}}}}"
        if kind:
            return outputs[key] if kind == "outputs.artifacts" else f"{INPUTS}/{key}"
        given = {key: {"artifacts": [{"name": key, "uri": path}]} for key, path in outputs.items()}
        executor = {"outputFile": f"{OUTPUTS}/executor_output.json", "artifacts": given}
        return json.dumps({"outputs": executor})

    filled = PLACEHOLDER.sub(fill, word)
    if "{{$" in filled:
        raise ValueError(f"{word} has no translation to Argo")
    return filled


def _accelerator(accelerator: Object | None, parameters: Collection[str]) -> str | None:
    """As a patch of the pod, for in a template a limit must be a number; 0 is legal and means none."""
    if not accelerator:
        return None
    limits = {accelerator["resourceType"]: _filled(accelerator["resourceCount"], {}, parameters)}
    return json.dumps({"containers": [{"name": "main", "resources": {"limits": limits}}]})


def _platform(
    name: str, platform: Object, parameters: Collection[str]
) -> tuple[list[argo.SecretEnv], list[argo.ExistingVolume]]:
    """Variables and volumes of what kfp.kubernetes has set on a step."""
    unknown = ", ".join(sorted(set(platform) - {"pvcMount", "secretAsEnv"}))
    if unknown:
        raise ValueError(f"{name}: {unknown} has no translation to Argo")
    volumes = [
        argo.ExistingVolume(
            name=Path(mount["mountPath"]).name,
            claim_name=value(mount["pvcNameParameter"], parameters),
            mount_path=mount["mountPath"],
        )
        for mount in platform.get("pvcMount", ())
    ]
    secrets = [
        argo.SecretEnv(
            name=key["envVar"],
            secret_name=value(secret["secretNameParameter"], parameters),
            secret_key=key["secretKey"],
            optional=secret.get("optional"),
        )
        for secret in platform.get("secretAsEnv", ())
        for key in secret["keyToEnv"]
    ]
    return secrets, volumes


def _own_name(variable: str) -> models.EnvVar:
    field = models.ObjectFieldSelector(field_path="metadata.name")
    return models.EnvVar(name=variable, value_from=models.EnvVarSource(field_ref=field))


def _shown(name: str, path: str, global_name: str) -> argo.Parameter:
    return argo.Parameter(name=name, value_from=models.ValueFrom(path=path), global_name=global_name)
