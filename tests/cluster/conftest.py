"""One control plane for all tests of this folder; a namespace for each."""

import uuid
from collections.abc import Iterator

import pytest

from tests.cluster.harness import Cluster
from tests.cluster.processes import BINARIES, wait


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not (BINARIES / ".ready").exists():
        pytest.skip("no control plane to test against: `make setup-cluster` builds it, with Go")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace, in which the cluster's methods work during the test."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.core.create_namespace({"metadata": {"name": name}})
    wait("account of the namespace", lambda: cluster.core.read_namespaced_service_account("default", name))
    cluster.namespace = name
    yield name
    cluster.namespace = "default"
    cluster.start_apiserver()  # a test may have left them stopped
    cluster.start_operator()
    cluster.core.delete_namespace(name)
