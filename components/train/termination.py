"""What the step does with its job when it is asked to end itself: Argo leaves it half a second."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kubernetes.client.exceptions import ApiException

from components.train.kube import CONNECTION_ERRORS, JOBS, WORKFLOWS, Cluster

# Workflow and DELETE together stay below the half second.
REQUEST_SECONDS = 0.25
KEEP_WARM_SECONDS = 20.0


@contextmanager
def deleting_on_signals(cluster: Cluster, job: str, workflow: str) -> Iterator[None]:
    """Within: SIGTERM and Ctrl-C delete the job and end this process with 128 + the signal's number.

    A thread waits for the signal with a connection that is open already. The job stays where the workflow
    goes on: then only this pod is taken away, and the step's next attempt adopts the job.

    Args:
        cluster: for this only, so that its connection is free.
        workflow: name of the Argo workflow; empty: none.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, lambda *_: None) for number in numbers]
    wakeup = signal.set_wakeup_fd(writer)
    ended = threading.Event()

    def wait() -> None:
        number = os.read(reader, 1)
        if not number:
            return
        said = _end(cluster, job, workflow)
        os.write(2, f"\n{signal.Signals(number[0]).name}: {said}\n".encode())
        os._exit(128 + number[0])

    def keep_warm() -> None:
        while not ended.wait(KEEP_WARM_SECONDS):
            _get_workflow(cluster, workflow, 5)

    _get_workflow(cluster, workflow, 5)
    waiting = threading.Thread(target=wait, name="termination", daemon=True)
    waiting.start()
    threading.Thread(target=keep_warm, name="keep warm", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(wakeup)
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
        os.close(writer)
        waiting.join()
        os.close(reader)


def _end(cluster: Cluster, job: str, workflow: str) -> str:
    found = _get_workflow(cluster, workflow, REQUEST_SECONDS)
    spec = (found or {}).get("spec", {})
    if found is not None and workflow and spec.get("activeDeadlineSeconds") != 0 and not spec.get("shutdown"):
        return f"MPIJob {job} goes on; the step's next attempt adopts it"
    try:
        body = {"propagationPolicy": "Background"}
        cluster.once("DELETE", cluster.path(JOBS, job), body=body, timeout=REQUEST_SECONDS)
    except (ApiException, *CONNECTION_ERRORS) as error:
        return f"MPIJob {job} could not be deleted ({type(error).__name__}); the cleanup step will"
    return f"MPIJob {job} is deleted"


def _get_workflow(cluster: Cluster, workflow: str, timeout: float) -> dict[str, Any] | None:
    """The workflow, or some answer that keeps the connection open; ``None`` when there is none."""
    path = cluster.path(WORKFLOWS, workflow) if workflow else "/version"
    try:
        return cluster.once("GET", path, timeout=timeout)
    except (ApiException, *CONNECTION_ERRORS):
        return None
