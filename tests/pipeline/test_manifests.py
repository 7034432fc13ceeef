"""The manifests: rendered by the real kustomize, valid for the operator's schema, and what launch makes."""

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml

from components import images
from components.train import mpijob
from components.train.mpijob import MANIFESTS, Run, Settings

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / ".venv/cluster"
OPERATOR = "github.com/kubeflow/mpi-operator@v0.8.2"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (MANIFESTS / "components").iterdir())


@cache
def kubectl() -> str:
    built = BUILT / "bin/kubectl"
    found = str(built) if built.exists() else shutil.which("kubectl")
    if not found:
        pytest.skip("no kubectl to render manifests with: `make setup-cluster` builds one, with Go")
    return found


@cache
def definition() -> dict:
    """The operator's definition of MPIJob."""
    if (BUILT / "mpijobs.yaml").exists():
        return yaml.safe_load((BUILT / "mpijobs.yaml").read_text())
    if not shutil.which("go"):
        pytest.skip("no Go to fetch the MPI operator's schema with")
    command = ["go", "mod", "download", "-json", OPERATOR]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/")
    if done.returncode:
        pytest.skip(f"{OPERATOR} cannot be fetched: {done.stdout[-200:]}")
    folder = Path(json.loads(done.stdout)["Dir"])
    return yaml.safe_load((folder / "manifests/base/kubeflow.org_mpijobs.yaml").read_text())


@cache
def schema() -> dict:
    [version] = [v for v in definition()["spec"]["versions"] if v["name"] == "v2beta1"]
    return strict(version["schema"]["openAPIV3Schema"])


def strict(node):
    """The schema, in which an unknown field is an error; an API server would drop it silently."""
    if isinstance(node, list):
        return [strict(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    node = {key: strict(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
        node["additionalProperties"] = False
    return node


def check(job: dict) -> None:
    body = {key: value for key, value in job.items() if key != "metadata"}
    jsonschema.Draft7Validator(schema()).validate(body)


@cache
def rendered(folder: Path) -> str:
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(folder: Path) -> dict[str, dict]:
    """Kind to object."""
    return {entry["kind"]: entry for entry in yaml.safe_load_all(rendered(folder))}


def pods(job: dict) -> list[dict]:
    return [replica["template"]["spec"] for replica in job["spec"]["mpiReplicaSpecs"].values()]


def launcher(job: dict) -> dict:
    return job["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]


def worker(job: dict) -> dict:
    return job["spec"]["mpiReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]


def environment(job: dict) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in launcher(job)["env"]}


def test_the_schema_is_the_operators_and_finds_a_wrong_field():
    job = mpijob.template("cpu")
    check(job)
    job["spec"]["runPolicy"]["backofLimit"] = 1
    with pytest.raises(jsonschema.ValidationError, match="backofLimit"):
        check(job)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_is_valid_and_the_step_makes_the_same_of_it(overlay):
    job = objects(MANIFESTS / "overlays" / overlay)["MPIJob"]
    check(job)
    assert mpijob.template(overlay) == job


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_goes_with_every_overlay(overlay, component, tmp_path):
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    folder = tmp_path / "mine"
    folder.mkdir()
    content = {
        "resources": [f"../manifests/overlays/{overlay}"],
        "components": [f"../manifests/components/{component}"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    check(objects(folder)["MPIJob"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_keeps_the_operators_traps_closed(overlay):
    """Sections 3 and 4 of what is known of the operator, one by one."""
    job = objects(MANIFESTS / "overlays" / overlay)["MPIJob"]
    spec, policy = job["spec"], job["spec"]["runPolicy"]
    replicas = spec["mpiReplicaSpecs"]
    workers, slots = replicas["Worker"]["replicas"], spec["slotsPerWorker"]
    assert (spec["launcherCreationPolicy"], policy["cleanPodPolicy"]) == ("WaitForWorkersReady", "Running")
    assert policy["backoffLimit"] <= 1
    assert policy["activeDeadlineSeconds"] > 0
    assert {replica["restartPolicy"] for replica in replicas.values()} == {"Never"}
    # The number of ranks and hosts is told to mpirun, to the trainer that checks it, and to Open MPI 5.
    words, values = launcher(job)["args"], environment(job)
    assert words[words.index("--hostfile") + 1] == "/etc/mpi/hostfile"
    assert words[words.index("-np") + 1] == "$(RECSYS_NUM_WORKERS)"
    assert (values["RECSYS_NUM_WORKERS"], values["RECSYS_NUM_HOSTS"]) == (str(workers * slots), str(workers))
    assert values["PRTE_MCA_prte_default_hostfile"] == "/etc/mpi/hostfile"
    assert values["PRTE_MCA_prte_set_default_slots"] == str(slots)
    exported = {name for flag, name in zip(words, words[1:], strict=False) if flag == "-x"}
    assert {"PATH", "RECSYS_NUM_WORKERS", "RECSYS_NUM_HOSTS"} <= exported
    assert exported - {"PATH", "LD_LIBRARY_PATH"} <= set(values), "exported, but set nowhere"
    for name in values:
        assert name in exported or name.startswith("PRTE_") or f"$({name})" in words, (
            f"{name} reaches no rank"
        )
    # sshd as an ordinary user, and "ready" means that it answers.
    assert worker(job)["command"] == ["/usr/sbin/sshd"]
    assert worker(job)["readinessProbe"]["tcpSocket"]["port"] == 2222
    assert worker(job)["args"][worker(job)["args"].index("-p") + 1] == "2222"
    assert "-p 2222" in words[words.index("plm_rsh_args") + 1]
    assert spec["sshAuthMountPath"] == "/home/mpiuser/.ssh"
    gpus = worker(job)["resources"]["limits"].get("nvidia.com/gpu", 0)
    assert slots == max(1, gpus)
    if "schedulingPolicy" in policy:  # the launcher comes when the workers are there: no part of the gang
        assert policy["schedulingPolicy"]["minAvailable"] == workers
    for pod, replica in zip(pods(job), replicas.values(), strict=True):
        metadata = replica["template"]["metadata"]
        assert metadata["annotations"]["sidecar.istio.io/inject"] == "false"
        assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        [container] = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert container["image"] == f"recsys-train:{images.VERSION}"
    [shm] = [v["emptyDir"] for v in pods(job)[1]["volumes"] if v["name"] == "shm"]
    assert shm["medium"] == "Memory"
    assert shm["sizeLimit"]


def test_only_rdma_adds_a_capability():
    for overlay in OVERLAYS:
        job = objects(MANIFESTS / "overlays" / overlay)["MPIJob"]
        added = [c["securityContext"]["capabilities"].get("add") for p in pods(job) for c in p["containers"]]
        assert added == [None, ["IPC_LOCK"] if overlay == "multi-node-rdma" else None]


def test_rights_are_those_that_the_programs_use():
    role = objects(MANIFESTS / "base")["Role"]
    given = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    jobs = {("kubeflow.org", "mpijobs", verb) for verb in ("create", "get", "list", "delete")}
    pods = {("", "pods", "get"), ("", "pods", "list"), ("", "pods/log", "get"), ("", "events", "list")}
    assert given == jobs | pods | {("argoproj.io", "workflows", "get")}
    binding = objects(MANIFESTS / "base")["RoleBinding"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == objects(MANIFESTS / "base")["ServiceAccount"]["metadata"]["name"]


def test_no_secret_and_no_registry_is_in_a_manifest():
    for path in MANIFESTS.rglob("*.yaml"):
        text = path.read_text()
        assert "kind: Secret" not in text
        for image in re.findall(r"image: (\S+)", text):
            assert "/" not in image, f"{path}: {image}"


def made(settings: Settings | None = None, **changes) -> dict:
    given = {
        "name": "recsys-ncf-0123456789",
        "namespace": "ana",
        "image": "somewhere/recsys-train@sha256:0",
        "workers": 3,
        "gpus": 2,
        "arguments": ["--model", "ncf", "--hyperparameters", '{"text": "$(PATH)"}'],
        "claim": "mine",
        "workspace": "/mnt/shared",
        "labels": {"recsys/run-id": "r1"},
        "owner": {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "u"},
    }
    return mpijob.render(settings or Settings(), Run(**{**given, **changes}))


@pytest.mark.parametrize("overlay", ["", *OVERLAYS])
@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_rendered_job_is_valid_and_has_the_sizes_asked_for(overlay, gpus):
    job = made(Settings(overlay=overlay), gpus=gpus)
    check(job)
    slots = max(1, gpus)
    assert job["spec"]["slotsPerWorker"] == slots
    assert job["spec"]["mpiReplicaSpecs"]["Worker"]["replicas"] == 3
    assert environment(job)["RECSYS_NUM_WORKERS"] == str(3 * slots)
    assert environment(job)["RECSYS_NUM_HOSTS"] == "3"
    assert worker(job)["resources"]["limits"].get("nvidia.com/gpu", 0) == gpus
    policy = job["spec"]["runPolicy"].get("schedulingPolicy", {"minAvailable": 3})
    assert policy["minAvailable"] == 3


def test_rendered_job_carries_names_owner_claim_and_arguments():
    settings = Settings(
        queue="team-a", env={"NCCL_SOCKET_IFNAME": "eth0"}, cpu="4", memory="9Gi", run_seconds=60
    )
    job = made(settings)
    check(job)
    metadata = job["metadata"]
    assert (metadata["name"], metadata["namespace"]) == ("recsys-ncf-0123456789", "ana")
    assert metadata["labels"]["recsys/run-id"] == "r1"
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    [owner] = metadata["ownerReferences"]
    assert owner == {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "u"}
    assert job["spec"]["runPolicy"]["activeDeadlineSeconds"] == 60
    for pod in pods(job):
        [volume] = [v for v in pod["volumes"] if v["name"] == "workspace"]
        assert volume["persistentVolumeClaim"]["claimName"] == "mine"
        [mount] = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "workspace"]
        assert mount["mountPath"] == "/mnt/shared"
        assert pod["containers"][0]["image"] == "somewhere/recsys-train@sha256:0"
    words = launcher(job)["args"]
    assert words[words.index("components.train.main") + 1 :] == [
        "--model", "ncf", "--hyperparameters", '{"text": "$$(PATH)"}'
    ]  # fmt: skip
    assert environment(job)["NCCL_SOCKET_IFNAME"] == "eth0"
    assert "MODEL" not in environment(job)
    assert words[:2] == ["-x", "NCCL_SOCKET_IFNAME"]
    assert worker(job)["resources"]["requests"] == {"cpu": "4", "memory": "9Gi"}


def test_names_fit_into_a_pods_name_and_tell_runs_and_steps_apart():
    names = {
        mpijob.job_name(model, identity)
        for model in ("ncf", "wide_deep", "A very long name of a model_" * 3)
        for identity in (["w1", "/a"], ["w1", "/b"], ["w2", "/a"])
    }
    assert len(names) == 9
    for name in names:
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= mpijob.MAX_NAME
    assert mpijob.job_name("ncf", ["w", "/a"]) == mpijob.job_name("ncf", ["w", "/a"])
