"""One server of each kind for all tests of this folder; a folder in its bucket and a proxy for each test."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from recsys import transfer
from tests.stores import servers
from tests.stores.faults import Proxy


@dataclass
class Place:
    """A folder of a store that a test has for itself, and the proxy on the way there."""

    address: str
    proxy: Proxy
    server: servers.Server

    @property
    def scheme(self) -> str:
        return self.address.partition("://")[0]


class Started(dict[str, tuple[servers.Server, Proxy]]):
    """The servers by scheme, each started, with a proxy before it, when a test first asks for it."""

    def __init__(self, factory: pytest.TempPathFactory):
        self.factory = factory

    def __missing__(self, scheme: str) -> tuple[servers.Server, Proxy]:
        start = {"s3": servers.start_s3, "gs": servers.start_google}[scheme]
        server = start(self.factory.mktemp(scheme))
        self[scheme] = server, Proxy(server.address)
        return self[scheme]


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    if not servers.built():
        pytest.skip("no object stores to test against: `make setup-stores` builds them, with Go")
    started = Started(tmp_path_factory)
    yield started
    for server, proxy in started.values():
        proxy.stop()
        server.stop()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Short waits, and nothing of this machine's own credentials and proxies."""
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)
    monkeypatch.setattr(transfer, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(transfer, "TIMEOUT", (5.0, 5.0))
    for name, value in servers.KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_REGION", servers.REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("NO_PROXY", "*")


def place_on(scheme: str, started: Started, monkeypatch: pytest.MonkeyPatch) -> Place:
    server, proxy = started[scheme]
    proxy.reset()
    proxy.json = scheme == "gs"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST" if scheme == "gs" else "AWS_ENDPOINT_URL", proxy.address)
    return Place(f"{scheme}://{servers.BUCKET}/{uuid.uuid4().hex}", proxy, server)


@pytest.fixture(params=["s3", "gs"])
def place(request, started, monkeypatch) -> Place:
    return place_on(request.param, started, monkeypatch)


@pytest.fixture
def s3(started, monkeypatch) -> Place:
    return place_on("s3", started, monkeypatch)


@pytest.fixture
def gs(started, monkeypatch) -> Place:
    return place_on("gs", started, monkeypatch)
