"""What an MPIJob's objects say about it, and when that is the end.

:func:`look` and :func:`verdict` are functions of plain objects, as the API returns them. They know what the
operator does not say: an invalid job gets no condition at all, a dead worker causes none, an evicted one sets
Failed on a job that may yet succeed, and the order of the conditions means nothing.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from components.train.mpijob import Settings
from recsys.step import USER_MISTAKE

Object = dict[str, Any]
ROLE = "training.kubeflow.org/job-role"
# A container that waits for one of these will not start by waiting longer.
HOPELESS = (
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
)


@dataclass(frozen=True)
class State:
    """Where a job stands.

    Attributes:
        phase: ``succeeded``, ``failed``, or what the job waits for: a limit in :class:`Settings`, without
            ``_seconds``.
        detail: one line: what was seen; of a failed job, why.
        code: of a failed job, the launcher's exit code.
    """

    phase: str
    detail: str
    code: int = 1


def look(job: Object, pods: Sequence[Object], events: Iterable[Object] = ()) -> State:
    """Where a job stands, of what the API says now.

    Args:
        job: the MPIJob.
        pods: of launcher and workers.
        events: of the job; only looked at while the operator has not accepted it.
    """
    conditions = {entry["type"]: entry for entry in job.get("status", {}).get("conditions", ())}
    true = {kind for kind, entry in conditions.items() if entry["status"] == "True"}
    if job["metadata"].get("deletionTimestamp"):
        return State("failed", "the job is being deleted by someone else")
    if job.get("status", {}).get("completionTime"):
        if "Succeeded" in true:
            return State("succeeded", "all ranks have ended")
        if "Failed" in true:
            return _failed(conditions["Failed"], pods)
    if not conditions:
        return _not_accepted(events)
    if "Suspended" in true:
        return State("queue", "the job is suspended: it waits for its queue's quota")
    return _of_pods(job, pods)


def verdict(state: State, seconds: float, settings: Settings) -> State:
    """The state, or failure when it has lasted too long.

    Args:
        seconds: since this phase was first seen.
    """
    limit = getattr(settings, f"{state.phase}_seconds", None)
    if limit is None or seconds <= limit:
        return state
    if state.phase == "lost":
        return State("failed", state.detail, state.code)
    return State("failed", f"{state.detail}; gave up after {limit:g} s ({state.phase}_seconds)", state.code)


class Clock:
    """Since when the job is in its phase."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self.now, self.phase, self.since = now, "", now()

    def seconds(self, phase: str) -> float:
        """Seconds in this phase, which starts when it is first asked for."""
        if phase != self.phase:
            self.phase, self.since = phase, self.now()
        return self.now() - self.since


def launchers(pods: Iterable[Object]) -> list[Object]:
    """Launcher pods, the latest last."""
    found = [pod for pod in pods if _role(pod) == "launcher"]
    return sorted(found, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))


def exit_code(pods: Iterable[Object]) -> int:
    """Of the latest launcher that has ended; 1 if unknown."""
    codes = [ended["exitCode"] for pod in launchers(pods) if (ended := _terminated(pod))]
    return (codes[-1] if codes else 0) or 1


def dead_workers(pods: Iterable[Object]) -> list[Object]:
    """Worker pods that have failed."""
    return [pod for pod in pods if _role(pod) == "worker" and _is_dead(pod)]


def _failed(condition: Object, pods: Sequence[Object]) -> State:
    lost = [_death(pod) for pod in dead_workers(pods)]
    last = launchers(pods)[-1:]
    deaths = lost or [_death(pod) for pod in last if _is_dead(pod)]
    reason = f"{condition.get('reason', 'Failed')}: {condition.get('message', '')}".strip(": ")
    return State("failed", "; ".join([*deaths, reason]), exit_code(pods))


def _not_accepted(events: Iterable[Object]) -> State:
    told = [event for event in events if event.get("type") == "Warning"]
    for event in told:
        if event.get("reason") == "ValidationError":
            return State("failed", f"the operator refuses the job: {event['message']}")
    said = f" (last event: {told[-1].get('message', '')})" if told else ""
    return State(
        "accept", f"no MPI operator has taken note of the job{said}; is one running for this namespace?"
    )


def _of_pods(job: Object, pods: Sequence[Object]) -> State:
    lost = [_death(pod) for pod in dead_workers(pods)]
    launcher = launchers(pods)[-1:]
    if launcher and (ended := _terminated(launcher[0])) and ended["exitCode"] == USER_MISTAKE:
        return State("failed", "a mistake in the run's parameters; see the log above", USER_MISTAKE)
    if lost:
        return State("lost", "; ".join(lost), exit_code(pods))
    for pod in pods:
        if waiting := _waiting(pod):
            name, reason, message = (
                pod["metadata"]["name"],
                waiting.get("reason", ""),
                waiting.get("message", ""),
            )
            told = f"{name}: {reason} {message}".strip()
            if reason in HOPELESS:
                return State("failed", told)
            if "Pull" in reason:
                return State("pull", told)
    workers = [pod for pod in pods if _role(pod) == "worker"]
    wanted = job["spec"]["mpiReplicaSpecs"]["Worker"]["replicas"]
    without = [pod for pod in pods if not _scheduled(pod)]
    if without:
        message = _condition(without[0], "PodScheduled").get("message", "no node yet")
        return State("pending", f"{without[0]['metadata']['name']}: {message}")
    if len(workers) < wanted:
        return State("pending", f"{len(workers)} of {wanted} worker pods have been created")
    if not launcher or launcher[0]["status"].get("phase") == "Pending":
        ready = sum(_condition(pod, "Ready").get("status") == "True" for pod in workers)
        return State("pull", f"{ready} of {wanted} workers are ready")
    if _is_dead(launcher[0]):
        return State("pull", f"{_death(launcher[0])}; waiting for the operator to start it again")
    return State("run", f"{wanted} workers train")


def _role(pod: Object) -> str:
    return pod["metadata"].get("labels", {}).get(ROLE, "")


def _statuses(pod: Object) -> list[Object]:
    return pod.get("status", {}).get("containerStatuses") or []


def _terminated(pod: Object) -> Object:
    return next((s["state"]["terminated"] for s in _statuses(pod) if "terminated" in s.get("state", {})), {})


def _waiting(pod: Object) -> Object:
    return next((s["state"]["waiting"] for s in _statuses(pod) if "waiting" in s.get("state", {})), {})


def _condition(pod: Object, kind: str) -> Object:
    found = pod.get("status", {}).get("conditions") or ()
    return next((entry for entry in found if entry["type"] == kind), {})


def _scheduled(pod: Object) -> bool:
    return bool(pod["spec"].get("nodeName")) or _condition(pod, "PodScheduled").get("status") == "True"


def _is_dead(pod: Object) -> bool:
    """Whether a pod has failed; one that is being deleted only follows orders."""
    return pod.get("status", {}).get("phase") == "Failed" and not pod["metadata"].get("deletionTimestamp")


def _death(pod: Object) -> str:
    status, ended = pod.get("status", {}), _terminated(pod)
    parts = [status.get("reason"), status.get("message"), ended.get("reason")]
    if ended:
        parts.append(f"exit code {ended['exitCode']}")
    told = ", ".join(dict.fromkeys(part for part in parts if part)) or "failed"
    return f"{pod['metadata']['name']}: {told}"
