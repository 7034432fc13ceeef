"""A real Kubernetes API server with its Job controller, its garbage collector and the MPI operator; no nodes.

Tests play the kubelet: they say what has become of a pod, and everything else follows as on a cluster.
"""

import contextlib
import threading
import time
from datetime import UTC, datetime
from typing import Any

from tests.cluster.control_plane import NODE, ControlPlane
from tests.cluster.kubelet import Log
from tests.cluster.processes import wait

GROUP = {"group": "kubeflow.org", "version": "v2beta1", "plural": "mpijobs"}
WORKFLOWS = {"group": "argoproj.io", "version": "v1alpha1", "plural": "workflows"}


class Cluster(ControlPlane):
    """A control plane, with short ways to look at MPIJobs and to play what happens on a node."""

    def start(self) -> None:
        super().start()
        threading.Thread(target=self._finish_deleted_pods, daemon=True).start()

    # Objects

    def create_mpijob(self, manifest: dict[str, Any]) -> dict[str, Any]:
        return self.custom.create_namespaced_custom_object(**GROUP, namespace=self.namespace, body=manifest)

    def mpijob(self, name: str) -> dict[str, Any]:
        return self.custom.get_namespaced_custom_object(**GROUP, namespace=self.namespace, name=name)

    def conditions(self, name: str) -> dict[str, str]:
        """Type to status ("True", "False") of an MPIJob's conditions."""
        found = self.mpijob(name).get("status", {}).get("conditions", ())
        return {condition["type"]: condition["status"] for condition in found}

    def wait_condition(self, name: str, kind: str, status: str = "True", seconds: float = 30) -> None:
        wait(
            f"{kind}={status} of {name}",
            lambda: self.conditions(name).get(kind) == status,
            seconds,
            self.operator,
        )

    def create_workflow(self, name: str, spec: dict[str, Any] | None = None) -> dict[str, Any]:
        body = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"name": name},
            "spec": spec or {},
        }
        return self.custom.create_namespaced_custom_object(**WORKFLOWS, namespace=self.namespace, body=body)

    def workers(self, job: str) -> list[str]:
        return sorted(pod.metadata.name for pod in self._pods(job, "worker"))

    def wait_workers(self, job: str, count: int) -> list[str]:
        def complete() -> list[str] | None:
            names = self.workers(job)
            return names if len(names) == count else None

        return wait(f"{count} workers of {job}", complete, 30, self.operator)

    def launcher(self, job: str) -> str:
        """The launcher pod that has not ended; the Job controller makes it."""

        def living() -> str | None:
            pods = (p for p in self._pods(job, "launcher") if p.status.phase in (None, "Pending", "Running"))
            return next((pod.metadata.name for pod in pods), None)

        return wait(f"launcher pod of {job}", living, 60, self.controllers, self.operator)

    def _pods(self, job: str, role: str) -> list[Any]:
        labels = f"training.kubeflow.org/job-name={job},training.kubeflow.org/job-role={role}"
        return self.core.list_namespaced_pod(self.namespace, label_selector=labels).items

    # What a kubelet does

    def play_workers(self, job: str, count: int, phase: str = "Running") -> list[str]:
        names = self.wait_workers(job, count)
        for name in names:
            self.play_pod(name, phase)
        return names

    def play_launcher(self, job: str, phase: str = "Running", **options: Any) -> str:
        name = self.launcher(job)
        self.play_pod(name, phase, **options)
        return name

    def play_pod(
        self,
        name: str,
        phase: str,
        *,
        ready: bool | None = None,
        container_state: str | None = None,
        reason: str = "",
        message: str = "",
        exit_code: int | None = None,
        pod_reason: str = "",
        restarts: int = 0,
    ) -> None:
        """Puts a pod on the node and gives it a status.

        Args:
            name: The pod, in the test's namespace.
            phase: Pending, Running, Succeeded or Failed.
            ready: Whether it counts as ready; a running one does unless told otherwise.
            container_state: waiting, running or terminated; by default what the phase implies.
            reason: The container's: ImagePullBackOff, OOMKilled, ...
            message: Goes with the reason, to the pod's where ``pod_reason`` is given.
            exit_code: Of a terminated container; 1 if failed, else 0.
            pod_reason: The pod's own: Evicted, ...
            restarts: How often the containers have been restarted.
        """
        pod = self.core.read_namespaced_pod(name, self.namespace)
        if not pod.spec.node_name:
            target = {"metadata": {"name": name}, "target": {"kind": "Node", "name": NODE}}
            self.core.create_namespaced_binding(self.namespace, target, _preload_content=False)
        ready = (phase == "Running" and container_state in (None, "running")) if ready is None else ready
        kind = container_state or {"Pending": "waiting", "Running": "running"}.get(phase, "terminated")
        code = int(phase == "Failed") if exit_code is None else exit_code
        container = {
            "ready": ready,
            "started": kind == "running",
            "restartCount": restarts,
            "state": {kind: state(kind, reason, "" if pod_reason else message, code)},
        }
        status = {
            "phase": phase,
            "startTime": now(),
            "hostIP": "127.0.0.1",
            "conditions": conditions(ready),
            "containerStatuses": [
                {"name": spec.name, "image": spec.image, "imageID": "", **container}
                for spec in pod.spec.containers
            ],
        }
        if pod_reason:
            status |= {"reason": pod_reason, "message": message}
        self.core.patch_namespaced_pod_status(name, self.namespace, {"status": status})
        if kind != "waiting":
            log = self.log(name)  # a container that runs has a log, if an empty one
            if kind == "terminated":
                log.end()

    def play_unschedulable(
        self, name: str, message: str = "0/1 nodes are available: 1 Insufficient gpu."
    ) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        status = {"phase": "Pending", "conditions": [condition]}
        self.core.patch_namespaced_pod_status(name, self.namespace, {"status": status})

    def log(self, pod: str) -> Log:
        """What the pod's container has written: ``write``, ``end`` and ``cut`` it."""
        return self.kubelet.log(self.namespace, pod)

    def _finish_deleted_pods(self) -> None:
        """Ends the containers of pods on the node that are being deleted, then lets the pods go."""
        while not self.kubelet.stopped.is_set():
            with contextlib.suppress(Exception):  # the API server may be away
                pods = self.core.list_pod_for_all_namespaces(
                    field_selector=f"spec.nodeName={NODE}", _request_timeout=5
                )
                for pod in pods.items:
                    if pod.metadata.deletion_timestamp:
                        self._finish(pod)
            time.sleep(0.2)

    def _finish(self, pod: Any) -> None:
        name, namespace = pod.metadata.name, pod.metadata.namespace
        self.kubelet.log(namespace, name).end()
        if pod.status.phase not in ("Succeeded", "Failed"):
            self.core.patch_namespaced_pod_status(name, namespace, {"status": {"phase": "Failed"}})
        self.core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def state(kind: str, reason: str, message: str, code: int) -> dict[str, Any]:
    """A container's state, as the kubelet words it."""
    if kind == "running":
        return {"startedAt": now()}
    if kind == "waiting":
        return {"reason": reason or "ContainerCreating", "message": message}
    word = reason or ("Completed" if code == 0 else "Error")
    return {"exitCode": code, "reason": word, "message": message, "startedAt": now(), "finishedAt": now()}


def conditions(ready: bool) -> list[dict[str, Any]]:
    told = {"PodScheduled": True, "Initialized": True, "ContainersReady": ready, "Ready": ready}
    return [{"type": kind, "status": str(value), "lastTransitionTime": now()} for kind, value in told.items()]
