"""Several workers on a cluster: makes one MPIJob or adopts the one of an earlier attempt, follows it to its
end, brings the results back, and deletes it."""

import argparse
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubernetes.client.exceptions import ApiException

from components.train import kube, workspace
from components.train.follow import Clock, State, dead_workers, launchers, look, verdict
from components.train.kube import (
    EVENTS,
    JOBS,
    KEEP_LABEL,
    PODS,
    RUN_LABEL,
    Cluster,
    Exists,
    Gone,
    UnreachableError,
)
from components.train.launcher_log import LauncherLog
from components.train.mpijob import SPEC_ANNOTATION, Run, Settings, job_name, render
from components.train.mpirun import flags
from components.train.termination import deleting_on_signals
from recsys.step import Outputs, UserError

log = logging.getLogger(__name__)
JOB_LABEL = "training.kubeflow.org/job-name"
TAIL_LINES, EVENT_LINES = "30", 10
Object = dict[str, Any]


class JobFailedError(Exception):
    """The job failed: ``code`` is its launcher's exit code."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


def manifest(
    arguments: argparse.Namespace,
    trainer: Mapping[str, Any],
    settings: Settings,
    pod: Object,
    namespace: str,
) -> Object:
    """The MPIJob of a step.

    Args:
        trainer: the trainer's flags and their values, as the step got them.
        pod: the step's own; empty outside a cluster.
    """
    # The folder of a step's outputs names the execution: equal in a retry, new in another run or step.
    workflow, run = kube.workflow_of(pod), kube.run_id(pod)
    folder = (arguments.executor_input.get("outputs") or {}).get("outputFile") or str(arguments.checkpoint)
    name = job_name(arguments.model, [workflow.get("uid", run), os.path.dirname(folder)])
    shared = Path(arguments.workspace) / name
    paths = {"dataset": shared / "dataset", **{output: shared / output for output in workspace.OUTPUTS}}
    if arguments.resume and not Path(arguments.resume).is_relative_to(arguments.workspace):
        paths["resume"] = shared / "resume"
    given = {
        output: {"artifacts": [{"name": output, "uri": str(paths[output])}]} for output in workspace.OUTPUTS
    }
    executor = {"outputs": {"outputFile": str(workspace.marker(shared)), "artifacts": given}}
    containers = {entry["name"]: entry["image"] for entry in pod.get("spec", {}).get("containers", ())}
    labels = {RUN_LABEL: run} if run else {}
    job = render(
        settings,
        Run(
            name=name,
            namespace=namespace,
            image=settings.image or containers.get("main", ""),
            workers=arguments.num_workers,
            gpus=arguments.gpus,
            arguments=flags({**trainer, **paths, "executor_input": executor}),
            claim=arguments.workspace_claim,
            workspace=arguments.workspace,
            labels=labels,
            owner=workflow,
        ),
    )
    if arguments.keep:
        job["metadata"]["labels"][KEEP_LABEL] = "true"
    return job


def train(
    arguments: argparse.Namespace, trainer: Mapping[str, Any], settings: Settings, outputs: Outputs
) -> None:
    """Trains on a cluster and fills the step's outputs.

    Raises:
        UserError: the workspace is not there, or the cluster cannot or may not do it.
        JobFailedError: the job failed, was deleted, or took too long.
    """
    mounted = Path(arguments.workspace)
    if not mounted.is_dir():
        raise UserError(
            f"--workspace {mounted}: no such folder; {arguments.num_workers} workers need a volume claim "
            "that all of them and this step mount (workspace_claim)"
        )
    cluster = Cluster(arguments.kubeconfig, settings.api_seconds)
    pod = cluster.own_pod()
    job = manifest(arguments, trainer, settings, pod, cluster.namespace)
    name = job["metadata"]["name"]
    shared = mounted / name
    try:
        workspace.share(Path(arguments.dataset), shared / "dataset")
        if arguments.resume and not Path(arguments.resume).is_relative_to(mounted):
            workspace.share(Path(arguments.resume), shared / "resume")
        workflow = kube.workflow_of(pod).get("name", "")
        with deleting_on_signals(Cluster(arguments.kubeconfig), name, workflow):
            created = create_or_adopt(cluster, job, shared)
            state = follow(cluster, created, settings)
            try:
                if state.phase == "succeeded" and not workspace.complete(shared, settings.results_seconds):
                    state = State("failed", f"it succeeded, but did not leave its results in {shared}")
                if state.phase == "succeeded":
                    workspace.take(shared, outputs)
            finally:
                if not arguments.keep:
                    cluster.delete(JOBS, name)
    except UnreachableError as error:
        raise JobFailedError(
            f"{error}; MPIJob {name} may still run, the step's next attempt adopts it"
        ) from None
    except OSError as error:
        raise UserError(f"--workspace {shared}: {error.strerror or error}") from None
    if state.phase == "succeeded":
        workspace.clear(shared)
        return
    partial = shared / "checkpoint.partial"
    hint = f"; continue with resume={partial}" if (partial / "last.npz").is_file() else ""
    workspace.clear(shared, keep=partial.name if hint else "")
    raise JobFailedError(f"MPIJob {name}: {state.detail}{hint}", state.code)


def create_or_adopt(cluster: Cluster, job: Object, shared: Path) -> Object:
    """The job on the cluster: made now, or by an attempt before this one."""
    name, wanted = job["metadata"]["name"], job["metadata"]["annotations"][SPEC_ANNOTATION]
    while True:
        try:
            found = cluster.get(JOBS, name)
        except Gone:
            with contextlib.suppress(Exists):
                workspace.marker(shared).unlink(missing_ok=True)
                created = cluster.create(JOBS, job)
                log.info("MPIJob %s created in namespace %s", name, cluster.namespace)
                return created
            continue
        metadata, state = found["metadata"], look(found, ())
        if metadata.get("deletionTimestamp"):
            reason = "is being deleted"
        elif metadata.get("annotations", {}).get(SPEC_ANNOTATION) != wanted:
            reason = "is of another specification"
        elif found.get("status", {}).get("completionTime") and not (
            state.phase == "succeeded" and workspace.complete(shared)
        ):
            reason = "has ended without results"
        else:
            log.info("MPIJob %s is there already; this attempt adopts it", name)
            return found
        log.info("MPIJob %s %s; it makes room for a new one", name, reason)
        cluster.delete(JOBS, name, wait=True)


def follow(cluster: Cluster, job: Object, settings: Settings) -> State:
    """Watches a job to its end, copying its launcher's log."""
    name, clock, shown = job["metadata"]["name"], Clock(), ""
    output = LauncherLog(cluster, lambda line: print(line, flush=True))
    pods: list[Object] = []
    ended = False  # the launcher
    try:
        while True:
            try:
                state, pods = _observe(cluster, job)
            except Gone:
                state = State("failed", "it was deleted by someone else")
            for pod in launchers(pods):
                phase = pod["status"].get("phase")
                ended = phase in ("Succeeded", "Failed")
                if ended or phase == "Running":
                    output.tell(pod["metadata"]["name"], ended)
            state = verdict(state, clock.seconds(state.phase), settings)
            if state.phase in ("succeeded", "failed"):
                break
            if state.detail != shown:
                log.info("MPIJob %s: %s", name, state.detail)
                shown = state.detail
            time.sleep(settings.poll_seconds)
    finally:
        output.close(15 if ended else 1)
    if state.phase == "failed":
        _explain(cluster, name, pods)
    return state


def _observe(cluster: Cluster, job: Object) -> tuple[State, list[Object]]:
    name = job["metadata"]["name"]
    found = cluster.get(JOBS, name)
    if found["metadata"]["uid"] != job["metadata"]["uid"]:
        raise Gone(name)
    accepted = found.get("status", {}).get("conditions")
    pods = cluster.list(PODS, labelSelector=f"{JOB_LABEL}={name}")
    return look(found, pods, () if accepted else _events(cluster, name)), pods


def _events(cluster: Cluster, name: str) -> list[Object]:
    """Of the job, the latest last; none where they may not be listed."""
    query = {"fieldSelector": f"involvedObject.name={name}"}
    try:
        found = cluster.once("GET", cluster.path(EVENTS), query=query)["items"]
    except (ApiException, *kube.CONNECTION_ERRORS):
        return []
    return sorted(
        found, key=lambda event: event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]
    )


def _explain(cluster: Cluster, name: str, pods: list[Object]) -> None:
    """Prints what the launcher's log does not hold: the end of dead workers' logs, and warnings."""
    for pod in dead_workers(pods):
        worker = pod["metadata"]["name"]
        path = cluster.path(PODS, worker) + "/log"
        try:
            response = cluster.once("GET", path, query={"tailLines": TAIL_LINES}, stream=True)
            for line in response.data.decode(errors="replace").splitlines():
                print(f"[{worker}] {line}", flush=True)
        except (ApiException, *kube.CONNECTION_ERRORS):
            log.info("the log of %s cannot be read", worker)
    for event in [event for event in _events(cluster, name) if event["type"] == "Warning"][-EVENT_LINES:]:
        log.info("event %s: %s", event["reason"], " ".join(event.get("message", "").split()))
