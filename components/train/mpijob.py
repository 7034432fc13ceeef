"""The MPIJob of a training run: the template of ``manifests/``, an overlay, and what this run sets in it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

from recsys.step import UserError

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
SPEC_ANNOTATION = "recsys/spec-sha256"
GPU = "nvidia.com/gpu"
MAX_NAME = 45  # with "-launcher-xxxxx" behind it, it still is a label
Object = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What ``--cluster`` may hold.

    Attributes:
        overlay: a folder of manifests/overlays; empty: ``cpu``, or ``single-gpu`` where there are GPUs.
        queue: Kueue's LocalQueue; empty: none.
        image: of the job's pods; empty: the image of this step.
        cpu, memory: that a worker requests, as Kubernetes writes them; empty: the overlay's.
        env: variables of every rank, such as ``NCCL_SOCKET_IFNAME``.
        service_account: of the job's pods, where a cloud gives access to its storage by it.
        accept_seconds: until the operator has taken note of the job.
        queue_seconds: in a queue (suspended).
        pending_seconds: until every worker has a node.
        pull_seconds: until every worker is ready: images, volumes, sshd.
        run_seconds: from the launcher's start to its end.
        lost_seconds: that the launcher gets to fail by itself when a worker is dead.
        results_seconds: until a finished job's results show in the workspace.
        api_seconds: that the cluster's API may be away.
        poll_seconds: between two looks at the job.
    """

    overlay: str = ""
    queue: str = ""
    image: str = ""
    cpu: str = ""
    memory: str = ""
    env: dict[str, str] = field(default_factory=dict)
    service_account: str = ""
    accept_seconds: float = 120
    queue_seconds: float = 86_400
    pending_seconds: float = 3_600
    pull_seconds: float = 1_800
    run_seconds: float = 604_800
    lost_seconds: float = 30
    results_seconds: float = 30
    api_seconds: float = 600
    poll_seconds: float = 5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_seconds") and value <= 0:
                raise UserError(f"--cluster: {name} must be more than 0, not {value:g}")


@dataclass(frozen=True)
class Run:
    """What one training run sets in the template.

    Attributes:
        workers: pods that train.
        gpus: of each; 0 for CPU. A worker has one rank for each of its GPUs, at least one.
        arguments: of ``python -m components.train.main``.
        claim, workspace: the volume claim that step and workers share, and where it is mounted; empty: none.
        secret: name of the Secret with the keys of S3; it need not exist.
        owner: reference to the object whose end is the job's; empty: none.
    """

    name: str
    namespace: str
    image: str
    workers: int
    gpus: int
    arguments: Sequence[str]
    claim: str
    workspace: str
    secret: str = "mlpipeline-minio-artifact"
    labels: dict[str, str] = field(default_factory=dict)
    owner: Object = field(default_factory=dict)


def template(overlay: str) -> Object:
    """The MPIJob that ``kubectl kustomize manifests/overlays/<overlay>`` prints.

    Raises:
        UserError: there is no such overlay.
    """
    overlays = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
    if overlay not in overlays:
        raise UserError(f"--cluster: no overlay {overlay!r}; allowed: {', '.join(overlays)}")
    return _built(MANIFESTS / "overlays" / overlay, {})


def _built(folder: Path, job: Object) -> Object:
    """What a kustomization makes of the job, in kustomize's order."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for name in content.get("resources", ()):
        if (folder / name).is_dir():
            job = _built(folder / name, job)
        else:
            documents = yaml.safe_load_all((folder / name).read_text())
            # Through JSON, because what a YAML alias names twice would be one object, changed once for both.
            found = [json.loads(json.dumps(entry)) for entry in documents if entry["kind"] == "MPIJob"]
            job = found[0] if found else job
    for name in content.get("components", ()):
        job = _built(folder / name, job)
    for patch in content.get("patches", ()):
        if patch["target"]["kind"] == "MPIJob":
            job = jsonpatch.apply_patch(job, yaml.safe_load((folder / patch["path"]).read_text()))
    for entry in content.get("labels", ()):
        job["metadata"].setdefault("labels", {}).update(entry["pairs"])
    if "namespace" in content:
        job["metadata"]["namespace"] = content["namespace"]
    return job


def render(settings: Settings, run: Run) -> Object:
    """The MPIJob of a run, ready to be created."""
    job = template(settings.overlay or ("single-gpu" if run.gpus else "cpu"))
    slots = max(1, run.gpus)
    spec = job["spec"]
    spec["slotsPerWorker"] = slots
    spec["runPolicy"]["activeDeadlineSeconds"] = int(settings.run_seconds)
    if "schedulingPolicy" in spec["runPolicy"]:
        spec["runPolicy"]["schedulingPolicy"]["minAvailable"] = run.workers
    spec["mpiReplicaSpecs"]["Worker"]["replicas"] = run.workers
    for replica in spec["mpiReplicaSpecs"].values():
        replica["template"]["metadata"]["labels"] |= run.labels
        _set_pod(replica["template"]["spec"], settings, run)
    _set_launcher(spec["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0], settings, run)
    _set_worker(spec["mpiReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0], settings, run)

    metadata = job["metadata"]
    metadata |= {"name": run.name, "namespace": run.namespace}
    metadata["labels"] |= {"app.kubernetes.io/managed-by": "recsys-launch", **run.labels}
    if settings.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = settings.queue
    metadata["annotations"] = {SPEC_ANNOTATION: digest(spec)}
    if run.owner:
        # controller: false, as Argo controls nothing here; the job goes when the workflow goes.
        keys = ("apiVersion", "kind", "name", "uid")
        metadata["ownerReferences"] = [{key: run.owner[key] for key in keys}]
    return job


def _set_pod(pod: Object, settings: Settings, run: Run) -> None:
    container = pod["containers"][0]
    container["image"] = run.image or container["image"]
    if settings.service_account:
        pod["serviceAccountName"] = settings.service_account
    if not run.claim:
        for entries in (pod["volumes"], container["volumeMounts"]):
            entries[:] = [entry for entry in entries if entry["name"] != "workspace"]
    for volume in pod["volumes"]:
        if volume["name"] == "workspace":
            volume["persistentVolumeClaim"]["claimName"] = run.claim
    for mount in container["volumeMounts"]:
        if mount["name"] == "workspace":
            mount["mountPath"] = run.workspace


def _set_launcher(container: Object, settings: Settings, run: Run) -> None:
    slots = max(1, run.gpus)
    values = {
        "RECSYS_NUM_WORKERS": str(run.workers * slots),
        "RECSYS_NUM_HOSTS": str(run.workers),
        "PRTE_MCA_prte_set_default_slots": str(slots),
        **settings.env,
    }
    before = [entry for entry in container["env"] if entry["name"] not in values]
    for entry in before:
        if "valueFrom" in entry:
            entry["valueFrom"]["secretKeyRef"]["name"] = run.secret
    # What the template hands to the trainer by these names, a run passes as arguments.
    before = [entry for entry in before if entry["name"] not in ("MODEL", "HYPERPARAMETERS", "SEED")]
    container["env"] = [{"name": name, "value": value} for name, value in values.items()] + before
    arguments = container["args"][: container["args"].index("components.train.main") + 1]
    exports = [word for name in settings.env if name not in arguments for word in ("-x", name)]
    # Kubernetes would replace $(NAME) inside of an argument.
    given = [word.replace("$(", "$$(") for word in run.arguments]
    container["args"] = [*exports, *arguments, *given]


def _set_worker(container: Object, settings: Settings, run: Run) -> None:
    resources = container["resources"]
    if run.gpus:
        resources["limits"][GPU] = run.gpus
    else:
        resources["limits"].pop(GPU, None)
    if settings.cpu:
        resources["requests"]["cpu"] = settings.cpu
    if settings.memory:
        resources["requests"]["memory"] = resources["limits"]["memory"] = settings.memory


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def job_name(model: str, identity: Sequence[str]) -> str:
    """The name of a run's job: the same for every attempt of a step, another for every run and step."""
    prefix = re.sub(r"[^a-z0-9]+", "-", f"recsys-{model}".lower()).strip("-")[: MAX_NAME - 11]
    return f"{prefix.rstrip('-')}-{digest(list(identity))[:10]}"
