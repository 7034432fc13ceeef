"""A Kubernetes control plane with the MPI operator: its processes on loopback ports, its data in a folder."""

import contextlib
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from tests.cluster.kubelet import Kubelet
from tests.cluster.processes import BINARIES, Process, free_port, wait

TOKEN = "the-administrator-of-these-tests"
NODE = "node-1"
CONTROLLERS = "job-controller,garbage-collector-controller,namespace-controller,serviceaccount-controller"
# What a pipeline's step may do; a test of rights gives its own.
STEP_RULES = (
    {
        "apiGroups": ["kubeflow.org"],
        "resources": ["mpijobs"],
        "verbs": ["create", "get", "list", "watch", "delete"],
    },
    {"apiGroups": [""], "resources": ["pods", "pods/log", "events"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["argoproj.io"], "resources": ["workflows"], "verbs": ["get"]},
)


class ControlPlane:
    """Starts and stops everything, and gives clients what they need. ``namespace`` is the running test's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespace = "default"
        self.etcd_port, self.port = free_port(), free_port()
        self.server = f"https://127.0.0.1:{self.port}"
        self.ca = folder / "tls.crt"
        self.kubeconfig = folder / "kubeconfig"
        self.api = client.ApiClient(self.configuration(TOKEN))
        self.core, self.batch = client.CoreV1Api(self.api), client.BatchV1Api(self.api)
        self.custom = client.CustomObjectsApi(self.api)
        self.etcd = self._process("etcd", str(folder / "etcd"), str(self.etcd_port))
        self.apiserver = self._process("kube-apiserver", *self._apiserver_flags())
        self.controllers = self._process(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            f"--controllers={CONTROLLERS}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=500",
            "--kube-api-burst=500",
        )
        self.operator = self._process(
            "mpi-operator",
            f"-kubeConfig={self.kubeconfig}",
            "-lock-namespace=default",
            "-kube-api-qps=500",
            "-kube-api-burst=500",
            "-controller-queue-rate-limit=500",
        )
        self.accounts: dict[str, Path] = {}

    def configuration(self, token: str) -> client.Configuration:
        configuration = client.Configuration(host=self.server)
        configuration.ssl_ca_cert = str(self.ca)
        configuration.retries = False  # a test stops the API server to see errors, and waiting is ``wait``'s
        configuration.api_key = {"authorization": f"Bearer {token}"}
        return configuration

    def _process(self, name: str, *arguments: str) -> Process:
        return Process(name, *arguments, log=self.folder / f"{name}.log")

    def _apiserver_flags(self) -> list[str]:
        return [
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self.ca}",
            f"--tls-private-key-file={self.folder}/tls.key",
            f"--kubelet-certificate-authority={self.ca}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={self.folder}/accounts.key",
            f"--service-account-key-file={self.folder}/accounts.key",
            f"--token-auth-file={self.folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none",
        ]

    # Start and end

    def start(self) -> None:
        subprocess.run([BINARIES / "bin" / "certificates", self.folder], check=True, timeout=60)
        (self.folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
        self.kubeconfig.write_text(yaml.safe_dump(self._kubeconfig()))
        self.kubelet = Kubelet(self.ca, self.folder / "tls.key")
        self.etcd.start()
        self.start_apiserver()
        self._install(yaml.safe_load((BINARIES / "mpijobs.yaml").read_text()))
        self._install(workflow_definition())
        self._add_node()
        self.controllers.start()
        self.start_operator()

    def stop(self) -> None:
        for process in (self.operator, self.controllers, self.apiserver, self.etcd):
            process.stop()
        if hasattr(self, "kubelet"):
            self.kubelet.stop()

    def start_apiserver(self) -> None:
        """Same port, same data. Controllers start anew: after an outage they may pause for a minute."""
        back = not self.apiserver.running()
        wanted = [process for process in (self.controllers, self.operator) if process.process]
        self.apiserver.start()
        wait("answer of the API server", self._ready, 120, self.apiserver, self.etcd)
        for process in wanted if back else ():
            process.stop()
        if self.controllers in wanted:
            self.controllers.start()
        if self.operator in wanted:
            self.start_operator()

    def _ready(self) -> bool:
        return (
            self.api.call_api("/readyz", "GET", auth_settings=["BearerToken"], _request_timeout=5)[1] == 200
        )

    def stop_apiserver(self) -> None:
        self.apiserver.stop()

    def start_operator(self) -> None:
        if self.operator.running():
            return
        leases = client.CoordinationV1Api(self.api)
        with contextlib.suppress(client.ApiException):  # else the next leader waits until it runs out
            leases.delete_namespaced_lease("mpi-operator", "default")
        self.operator.start()

        def leads() -> bool:
            return bool(leases.read_namespaced_lease("mpi-operator", "default").spec.holder_identity)

        wait("leading MPI operator", leads, 60, self.operator)

    def stop_operator(self) -> None:
        self.operator.stop()

    def _kubeconfig(self) -> dict[str, Any]:
        cluster = {"server": self.server, "certificate-authority": str(self.ca)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
        }

    def _install(self, definition: dict[str, Any]) -> None:
        extensions = client.ApiextensionsV1Api(self.api)
        extensions.create_custom_resource_definition(definition)
        name = definition["metadata"]["name"]

        def established() -> bool:
            found = extensions.read_custom_resource_definition(name)
            return any(c.type == "Established" and c.status == "True" for c in found.status.conditions or ())

        wait(f"served {name}", established, 30)

    def _add_node(self) -> None:
        self.core.create_node({"metadata": {"name": NODE}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.kubelet.port}},
        }
        self.core.patch_node_status(NODE, {"status": status})

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Runs kubectl as administrator in the test's namespace; returns what it prints."""
        command = [BINARIES / "bin" / "kubectl", f"--kubeconfig={self.kubeconfig}", "-n", self.namespace]
        done = subprocess.run([*command, *arguments], input=stdin, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # What a step sees of the cluster

    @property
    def environment(self) -> dict[str, str]:
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def service_account(self, rules: Iterable[dict[str, Any]] = STEP_RULES) -> Path:
        """A folder like /var/run/secrets/kubernetes.io/serviceaccount, of an account with these rights."""
        if self.namespace in self.accounts:
            return self.accounts[self.namespace]
        rbac, name = client.RbacAuthorizationV1Api(self.api), {"metadata": {"name": "step"}}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "step"}
        subject = {"kind": "ServiceAccount", "name": "step", "namespace": self.namespace}
        self.core.create_namespaced_service_account(self.namespace, name)
        rbac.create_namespaced_role(self.namespace, {**name, "rules": list(rules)})
        rbac.create_namespaced_role_binding(self.namespace, {**name, "roleRef": role, "subjects": [subject]})
        folder = self.folder / "accounts" / self.namespace
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(self.ca.read_bytes())
        (folder / "namespace").write_text(self.namespace)
        self.accounts[self.namespace] = folder
        self._write_token(folder)
        wait("rights of the account", lambda: self._accepts((folder / "token").read_text()), 30)
        return folder

    def rotate_token(self) -> None:
        """Writes a new token into the folder and waits until the old one is refused: about 10 s."""
        folder = self.service_account()
        old = (folder / "token").read_text()
        self._write_token(folder)
        wait("refusal of the old token", lambda: not self._accepts(old), 60)

    def _write_token(self, folder: Path) -> None:
        """The token lives as long as a Secret, so that deleting this one takes it back."""
        with contextlib.suppress(client.ApiException):
            self.core.delete_namespaced_secret("step-token", self.namespace)
        secret = self.core.create_namespaced_secret(self.namespace, {"metadata": {"name": "step-token"}})
        bound = {"kind": "Secret", "apiVersion": "v1", "name": "step-token", "uid": secret.metadata.uid}
        request = {"spec": {"audiences": [], "boundObjectRef": bound}}
        answer = self.core.create_namespaced_service_account_token("step", self.namespace, request)
        (folder / "token").write_text(answer.status.token)

    def _accepts(self, token: str) -> bool:
        with client.ApiClient(self.configuration(token)) as api:
            try:
                api.call_api("/version", "GET", auth_settings=["BearerToken"], _request_timeout=5)
            except client.ApiException as error:
                if error.status == 401:
                    return False
                raise
        return True


def workflow_definition() -> dict[str, Any]:
    """Argo's Workflow as far as it matters here: an owner, with a spec that can be read."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "metadata": {"name": "workflows.argoproj.io"},
        "spec": {
            "group": "argoproj.io",
            "scope": "Namespaced",
            "names": {"kind": "Workflow", "plural": "workflows", "singular": "workflow"},
            "versions": [version],
        },
    }
