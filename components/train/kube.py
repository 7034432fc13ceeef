"""The Kubernetes API as the train step needs it: plain objects, and patience with an API that goes away."""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.incluster_config import InClusterConfigLoader

from recsys.step import UserError

log = logging.getLogger(__name__)
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
JOBS = "apis/kubeflow.org/v2beta1", "mpijobs"
PODS, EVENTS = ("api/v1", "pods"), ("api/v1", "events")
WORKFLOWS = "apis/argoproj.io/v1alpha1", "workflows"
RUN_LABEL, KEEP_LABEL = "recsys/run-id", "recsys/keep"  # of MPIJobs
PASSING = (408, 429, 500, 502, 503, 504)
# While an API server starts, it may refuse for a moment what it will allow; a new token arrives in a while.
REFUSED = (401, 403)
REFUSED_SECONDS = 20.0
CONNECTION_ERRORS = (urllib3.exceptions.HTTPError, OSError)
Object = dict[str, Any]
Kind = tuple[str, str]


class Gone(Exception):
    """The object does not exist."""


class Exists(Exception):
    """An object of this name exists."""


class UnreachableError(Exception):
    """The API has not answered for longer than the user wants to wait."""


def in_cluster() -> bool:
    """Whether this process runs in a pod."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


class Cluster:
    """One namespace of a cluster.

    Args:
        kubeconfig: a kubeconfig file; empty: the service account of this pod.
        outage_seconds: how long the API may be away.
    Raises:
        UserError: there is no configuration, or none that can be read.
    """

    def __init__(self, kubeconfig: str = "", outage_seconds: float = 600):
        self.kubeconfig, self.outage_seconds = kubeconfig, outage_seconds
        self.namespace = self._connect()

    def _connect(self) -> str:
        """Reads address and token, which may be others than before; returns the namespace."""
        settings = client.Configuration()
        settings.retries = False  # ours below knows how long
        try:
            if self.kubeconfig:
                _, context = config.list_kube_config_contexts(self.kubeconfig)
                config.load_kube_config(self.kubeconfig, client_configuration=settings)
                namespace = context["context"].get("namespace", "default")
            else:
                token, authority = str(ACCOUNT / "token"), str(ACCOUNT / "ca.crt")
                InClusterConfigLoader(token, authority).load_and_set(settings)
                namespace = (ACCOUNT / "namespace").read_text().strip()
        except (config.ConfigException, OSError) as error:
            where = f"--kubeconfig {self.kubeconfig}" if self.kubeconfig else "the pod's service account"
            raise UserError(f"{where}: cannot be used: {' '.join(str(error).split())}") from None
        self.api = client.ApiClient(settings)
        return namespace

    def get(self, kind: Kind, name: str, timeout: float = 30) -> Object:
        """Raises :class:`Gone`."""
        return self.request("GET", kind, name, timeout=timeout)

    def list(self, kind: Kind, **selectors: str) -> list[Object]:
        """Objects by ``labelSelector`` and ``fieldSelector``."""
        return self.request("GET", kind, query=selectors)["items"]

    def create(self, kind: Kind, body: Object) -> Object:
        """Raises :class:`Exists`, also when an attempt whose answer was lost has made it."""
        return self.request("POST", kind, body=body)

    def delete(self, kind: Kind, name: str, wait: bool = False) -> None:
        """Deletes an object with what it owns; with ``wait``, returns when it is gone."""
        options = {"propagationPolicy": "Foreground" if wait else "Background"}
        try:
            uid = self.get(kind, name)["metadata"]["uid"] if wait else ""
            self.request("DELETE", kind, name, body=options)
            while wait and self.get(kind, name)["metadata"]["uid"] == uid:
                time.sleep(0.5)
        except Gone:
            return

    def request(
        self,
        method: str,
        kind: Kind,
        name: str = "",
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        timeout: float = 30,
    ) -> Object:
        """One request, repeated while the API is away.

        Raises:
            Gone, Exists: the answer was 404 or 409.
            UserError: not allowed, or the cluster has no such kind.
            UnreachableError: no answer for ``outage_seconds``.
            ApiException: any other refusal.
        """
        started, pause = time.monotonic(), 0.5
        while True:
            try:
                answer = self.once(method, self.path(kind, name), body, query, timeout)
                if pause > 0.5:
                    log.info("the cluster's API answers again")
                return answer
            except ApiException as error:
                limit = REFUSED_SECONDS if error.status in REFUSED else self.outage_seconds
                if error.status not in (*PASSING, *REFUSED):
                    raise self._meaning(error, method, kind, name) from None
                problem = f"{error.status} {error.reason}"
                if time.monotonic() - started > limit and error.status in REFUSED:
                    raise self._refusal(error, method, kind) from None
                if error.status == 401:
                    self._connect()
            except CONNECTION_ERRORS as error:
                limit, problem = self.outage_seconds, type(error).__name__
            if time.monotonic() - started > limit:
                waited = f"{time.monotonic() - started:.0f} s"
                raise UnreachableError(f"the cluster's API has not answered for {waited} ({problem})")
            if pause == 0.5:
                log.info("the cluster's API does not answer (%s); waiting", problem)
            time.sleep(pause)
            pause = min(pause * 2, 10.0)

    def path(self, kind: Kind, name: str = "") -> str:
        """Where objects of a kind are."""
        group, plural = kind
        return f"/{group}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def once(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        timeout: float = 30,
        stream: bool = False,
    ) -> Any:
        """One attempt; with ``stream``, the response itself, unread."""
        return self.api.call_api(
            path,
            method,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            response_type="object",
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _preload_content=not stream,
            _request_timeout=timeout,
        )

    def _meaning(self, error: ApiException, method: str, kind: Kind, name: str) -> Exception:
        status = _status(error)
        if error.status == 404 and name and status.get("details", {}).get("name") == name:
            return Gone(name)
        if error.status == 404:
            return UserError(f"the cluster does not serve {kind[1]} of {kind[0]}: {self._remedy(kind)}")
        if error.status == 409:
            return Exists(name)
        if error.status == 422:
            return UserError(f"the cluster refuses the {kind[1]}: {status.get('message', error.reason)}")
        return error

    def _remedy(self, kind: Kind) -> str:
        if kind != JOBS:
            return "its definition is missing"
        try:
            served = self.once("GET", "/apis/kubeflow.org")["versions"]
        except (ApiException, *CONNECTION_ERRORS):
            served = []
        if any(version["version"] == "v1" for version in served):
            return (
                "the Training Operator's MPIJob v1 is installed and excludes it; install mpi-operator instead"
            )
        return "install mpi-operator 0.6 or newer"

    def _refusal(self, error: ApiException, method: str, kind: Kind) -> UserError:
        if error.status == 401:
            return UserError("the cluster refuses this pod's token (401)")
        return UserError(
            f"this step's service account may not {method} {kind[1]} in namespace {self.namespace}; "
            "give it the Role recsys-launch of manifests/base/access.yaml"
        )

    def own_pod(self) -> Object:
        """The pod that this process runs in; empty outside one."""
        name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME", "")
        if self.kubeconfig or not name:
            return {}
        try:
            return self.get(PODS, name)
        except Gone:
            return {}


def _status(error: ApiException) -> Object:
    try:
        status = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def run_id(pod: Object) -> str:
    """The id of the Kubeflow run that a pod belongs to; empty for none."""
    return pod.get("metadata", {}).get("labels", {}).get("pipeline/runid", "")


def workflow_of(pod: Object) -> Object:
    """The owner reference of the Argo workflow that a pod belongs to; empty for none."""
    owners = pod.get("metadata", {}).get("ownerReferences", [])
    return next((owner for owner in owners if owner["kind"] == "Workflow"), {})
