"""Several workers on a cluster: makes one MPIJob or adopts the one of an earlier attempt, follows it to its
end, brings the results back, and deletes it."""

import argparse
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kubernetes.client.exceptions import ApiException

from components.train import kube
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
from components.train.workspace import OUTPUTS, ObjectStorage, Volume, place
from recsys.step import Outputs, UserError

log = logging.getLogger(__name__)
JOB_LABEL = "training.kubeflow.org/job-name"
TAIL_LINES, EVENT_LINES = "30", 10
# Where a store is, which the workers of a job must know as well as this step; keys come from a Secret.
STORE_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "STORAGE_EMULATOR_HOST")
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
) -> tuple[Object, Volume | ObjectStorage]:
    """The MPIJob of a step, and where the two meet.

    Args:
        trainer: the trainer's flags and their values, as the step got them.
        pod: the step's own; empty outside a cluster.
    """
    # The folder of a step's outputs names the execution: equal in a retry, new in another run or step.
    workflow, run = kube.workflow_of(pod), kube.run_id(pod)
    folder = (arguments.executor_input.get("outputs") or {}).get("outputFile") or str(arguments.checkpoint)
    name = job_name(arguments.model, [workflow.get("uid", run), os.path.dirname(folder)])
    shared = place(arguments, name)
    given = {output: {"artifacts": [{"name": output, "uri": shared.flags[output]}]} for output in OUTPUTS}
    executor = {"outputs": {"outputFile": shared.marker, "artifacts": given}}
    if isinstance(shared, ObjectStorage):
        known = {variable: os.environ.get(variable, "") for variable in STORE_VARIABLES}
        known = {variable: value for variable, value in known.items() if value}
        settings = replace(settings, env=known | settings.env)
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
            arguments=flags({**trainer, **shared.flags, "executor_input": executor}),
            claim=shared.claim,
            workspace=arguments.workspace,
            secret=arguments.storage_secret,
            labels=labels,
            owner=workflow,
        ),
    )
    if arguments.keep:
        job["metadata"]["labels"][KEEP_LABEL] = "true"
    return job, shared


def train(
    arguments: argparse.Namespace, trainer: Mapping[str, Any], settings: Settings, outputs: Outputs
) -> None:
    """Trains on a cluster and fills the step's outputs.

    Raises:
        UserError: workspace or store cannot be used, or the cluster cannot or may not do it.
        JobFailedError: the job failed, was deleted, or took too long.
    """
    cluster = Cluster(arguments.kubeconfig, settings.api_seconds)
    pod = cluster.own_pod()
    job, shared = manifest(arguments, trainer, settings, pod, cluster.namespace)
    name = job["metadata"]["name"]
    try:
        shared.fill()
        workflow = kube.workflow_of(pod).get("name", "")
        with deleting_on_signals(Cluster(arguments.kubeconfig), name, workflow):
            created = create_or_adopt(cluster, job, shared)
            state = follow(cluster, created, settings)
            try:
                if state.phase == "succeeded" and not shared.complete(settings.results_seconds):
                    state = State("failed", f"it succeeded, but did not leave its results in {shared}")
                if state.phase == "succeeded":
                    shared.take(outputs)
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
        shared.clear()
        return
    saved = shared.state()
    shared.clear(keep=saved)
    hint = f"; continue with resume={saved}" if saved else ""
    raise JobFailedError(f"MPIJob {name}: {state.detail}{hint}", state.code)


def create_or_adopt(cluster: Cluster, job: Object, shared: Volume | ObjectStorage) -> Object:
    """The job on the cluster: made now, or by an attempt before this one."""
    name, wanted = job["metadata"]["name"], job["metadata"]["annotations"][SPEC_ANNOTATION]
    while True:
        try:
            found = cluster.get(JOBS, name)
        except Gone:
            with contextlib.suppress(Exists):
                shared.forget()
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
            state.phase == "succeeded" and shared.complete()
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
        if told := output.cause.certain:
            state = dataclasses.replace(state, detail=f"{told}; {state.detail}")
    return state


def _observe(cluster: Cluster, job: Object) -> tuple[State, list[Object]]:
    name = job["metadata"]["name"]
    found = cluster.get(JOBS, name)
    if found["metadata"]["uid"] != job["metadata"]["uid"]:
        raise JobFailedError(f"MPIJob {name}: it was deleted and made anew by someone else, whose it is now")
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
