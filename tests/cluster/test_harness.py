"""The cluster that other tests rely on behaves like one, and its faults are those that a test asks for."""

import io
import threading
import time

import pytest
import yaml
from kubernetes import client
from kubernetes.config.incluster_config import InClusterConfigLoader

from tests.cluster.processes import BINARIES, wait


@pytest.fixture
def example(cluster, namespace):
    """The operator's own example, which asks for two workers; the launcher waits for them."""
    manifest = yaml.safe_load((BINARIES / "pi.yaml").read_text())
    manifest["spec"]["launcherCreationPolicy"] = "WaitForWorkersReady"
    manifest["spec"]["runPolicy"]["backoffLimit"] = 0
    manifest["spec"]["mpiReplicaSpecs"]["Launcher"]["restartPolicy"] = "Never"
    return cluster.create_mpijob(manifest)


def gone(read, *names):
    try:
        read(*names)
    except client.ApiException as error:
        return error.status == 404
    return False


def test_the_api_server_answers_and_serves_mpijobs(cluster, namespace):
    assert client.VersionApi(cluster.api).get_code().git_version == "v1.35.4"
    groups = {group.name for group in client.ApisApi(cluster.api).get_api_versions().groups}
    assert {"kubeflow.org", "argoproj.io", "batch"} <= groups
    assert cluster.kubectl("get", "mpijobs").strip() == ""


def test_a_job_runs_from_its_pods_to_its_success(cluster, namespace, example):
    workers = cluster.wait_workers("pi", 2)
    assert workers == ["pi-worker-0", "pi-worker-1"]
    cluster.wait_condition("pi", "Created")
    service = cluster.core.read_namespaced_service("pi", namespace)
    assert service.spec.cluster_ip == "None"
    assert "ssh-publickey" in cluster.core.read_namespaced_secret("pi-ssh", namespace).data
    hosts = cluster.core.read_namespaced_config_map("pi-config", namespace).data["hostfile"]
    assert hosts.splitlines() == [f"{worker}.pi.{namespace}.svc slots=1" for worker in workers]

    cluster.play_pod(workers[0], "Running")
    cluster.play_pod(workers[1], "Running", ready=False)
    time.sleep(1)
    assert gone(cluster.batch.read_namespaced_job, "pi-launcher", namespace)
    cluster.play_pod(workers[1], "Running")
    launcher = cluster.play_launcher("pi")
    assert launcher.startswith("pi-launcher-")
    cluster.wait_condition("pi", "Running")

    cluster.play_pod(launcher, "Succeeded")
    cluster.wait_condition("pi", "Succeeded")
    assert cluster.mpijob("pi")["status"]["completionTime"]
    wait("end of the workers", lambda: cluster.workers("pi") == [])  # cleanPodPolicy: Running


def test_a_launcher_that_fails_fails_the_job(cluster, namespace, example):
    cluster.play_workers("pi", 2)
    cluster.play_launcher("pi", "Failed", exit_code=137, reason="OOMKilled")
    cluster.wait_condition("pi", "Failed")
    (failed,) = (c for c in cluster.mpijob("pi")["status"]["conditions"] if c["type"] == "Failed")
    assert failed["reason"].startswith("BackoffLimitExceeded")


def test_statuses_of_pods_are_those_of_a_kubelet(cluster, namespace, example):
    first, second = cluster.wait_workers("pi", 2)
    cluster.play_pod(
        first, "Pending", container_state="waiting", reason="ImagePullBackOff", message="no image"
    )
    cluster.play_unschedulable(second)
    shown = cluster.kubectl("get", "pods")
    assert "ImagePullBackOff" in shown
    conditions = cluster.core.read_namespaced_pod(second, namespace).status.conditions
    assert [c.reason for c in conditions if c.type == "PodScheduled"] == ["Unschedulable"]
    cluster.play_pod(second, "Failed", pod_reason="Evicted", message="The node was low on memory.")
    cluster.wait_condition("pi", "Failed")  # the operator: MPIJobEvicted


def test_logs_are_followed_through_the_api_server(cluster, namespace, example):
    pod = cluster.wait_workers("pi", 2)[0]
    cluster.play_pod(pod, "Pending")
    with pytest.raises(client.ApiException, match="waiting to start"):
        cluster.core.read_namespaced_pod_log(pod, namespace)
    cluster.play_pod(pod, "Running")
    log = cluster.log(pod)
    log.write("one\ntwo")
    assert cluster.core.read_namespaced_pod_log(pod, namespace) == "one\ntwo\n"
    assert cluster.core.read_namespaced_pod_log(pod, namespace, tail_lines=1) == "two\n"

    read = cluster.core.read_namespaced_pod_log
    stream = read(pod, namespace, follow=True, timestamps=True, _preload_content=False, _request_timeout=20)
    lines = io.TextIOWrapper(stream)
    assert [next(lines).split(" ")[1] for _ in range(2)] == ["one\n", "two\n"]
    threading.Timer(0.5, log.write, ["three"]).start()
    line = next(lines)
    assert line.endswith("Z three\n")
    threading.Timer(0.5, cluster.play_pod, [pod, "Succeeded"]).start()
    assert list(lines) == []
    since = time.time() - 3600
    assert read(pod, namespace, since_seconds=int(time.time() - since)) == "one\ntwo\nthree\n"


def test_a_stream_can_be_cut(cluster, namespace, example):
    pod = cluster.wait_workers("pi", 2)[0]
    cluster.play_pod(pod, "Running")
    cluster.log(pod).write("one")
    read = cluster.core.read_namespaced_pod_log
    stream = read(pod, namespace, follow=True, _preload_content=False, _request_timeout=20)
    lines = io.TextIOWrapper(stream)
    assert next(lines) == "one\n"
    threading.Timer(0.5, cluster.log(pod).cut).start()
    assert list(lines) == []  # the API server hides the break: to its client, the log looks complete
    assert read(pod, namespace) == "one\n"


def test_what_an_object_owns_goes_with_it(cluster, namespace):
    workflow = cluster.create_workflow("run")
    owner = {key: workflow[key] for key in ("apiVersion", "kind")}
    owner |= {key: workflow["metadata"][key] for key in ("name", "uid")}
    manifest = yaml.safe_load((BINARIES / "pi.yaml").read_text())
    manifest["metadata"]["ownerReferences"] = [owner]
    cluster.create_mpijob(manifest)
    workers = cluster.play_workers("pi", 2)
    cluster.kubectl("delete", "workflow", "run", "--wait=false")
    wait("end of the job", lambda: gone(cluster.mpijob, "pi"))
    for worker in workers:  # these are on a node, whose kubelet ends them first
        wait("end of a pod", lambda worker=worker: gone(cluster.core.read_namespaced_pod, worker, namespace))


def test_a_step_has_its_own_rights_and_its_token_can_be_taken_back(cluster, namespace, example):
    folder = cluster.service_account()
    configuration = client.Configuration()
    loader = InClusterConfigLoader(folder / "token", folder / "ca.crt", environ=cluster.environment)
    loader.load_and_set(configuration)
    jobs = client.CustomObjectsApi(client.ApiClient(configuration)).list_namespaced_custom_object
    (job,) = jobs("kubeflow.org", "v2beta1", namespace, "mpijobs")["items"]
    assert job["metadata"]["name"] == "pi"
    secrets = client.CoreV1Api(client.ApiClient(configuration)).list_namespaced_secret
    with pytest.raises(client.ApiException, match="secrets is forbidden"):
        secrets(namespace)

    old = client.CoreV1Api(client.ApiClient(cluster.configuration((folder / "token").read_text())))
    old.list_namespaced_pod(namespace)
    cluster.rotate_token()
    with pytest.raises(client.ApiException, match="Unauthorized"):
        old.list_namespaced_pod(namespace)
    new = client.CoreV1Api(client.ApiClient(cluster.configuration((folder / "token").read_text())))
    new.list_namespaced_pod(namespace)


def test_data_and_jobs_outlive_the_api_server_and_the_operator(cluster, namespace, example):
    cluster.play_workers("pi", 2)
    uid = cluster.mpijob("pi")["metadata"]["uid"]
    cluster.stop_operator()
    cluster.stop_apiserver()
    with pytest.raises(Exception, match="refused"):
        cluster.mpijob("pi")
    cluster.start_apiserver()
    assert cluster.mpijob("pi")["metadata"]["uid"] == uid
    cluster.start_operator()
    cluster.play_launcher("pi")
    cluster.wait_condition("pi", "Running")
