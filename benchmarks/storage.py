"""Folders to an object store and back, beside the limit of the same server and beside one object at a time.

The stores are those of ``tests/stores``, on the loopback interface of this machine, whose cores client and
server share. Large objects are compared with bare HTTP requests for the same bytes, one after another on one
connection, that sign, hash and keep nothing, and with the same requests whose bytes are hashed and kept in
files, as a download has to; small ones with a loop over the store's own client, directly and through a proxy
that answers as late as a store across a network does. Every figure is the best of the rounds, in which the
contenders take turns.

Run from the repository root, in the pipeline environment and with nothing else on the machine:

    .venv/pipeline/bin/python -m benchmarks.storage
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.preparation import _processor
from recsys import storage
from tests.stores import servers
from tests.stores.faults import Proxy

RESULT = Path(__file__).with_suffix(".json")
BLOCK = 1 << 20
DELAY = 0.02  # seconds to an answer, as of a bucket in the same region
ENDPOINT = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}
Work = Callable[[], Any]


class Bare:
    """Requests of whole objects over one connection, by no client at all."""

    def __init__(self, scheme: str, address: str):
        self.scheme, self.address = scheme, address
        self.connection = http.client.HTTPConnection(urlsplit(address).netloc)
        self.s3 = servers.client(address)

    def put(self, name: str, content: bytes) -> None:
        method, path = "POST", f"/upload/storage/v1/b/{servers.BUCKET}/o?uploadType=media&name={name}"
        if self.scheme == "s3":
            method, path = "PUT", self._signed("put_object", name)
        self.connection.request(method, path, content)
        answer = self.connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()

    def get(self, name: str, path: Path | None = None) -> None:
        """Without ``path`` the bytes are dropped."""
        source = f"/download/storage/v1/b/{servers.BUCKET}/o/{name}?alt=media"
        if self.scheme == "s3":
            source = self._signed("get_object", name)
        self.connection.request("GET", source)
        answer, block = self.connection.getresponse(), memoryview(bytearray(BLOCK))
        assert answer.status == 200, answer.read()
        sha256 = hashlib.sha256()
        with open(path or os.devnull, "wb") as stream:
            while count := answer.readinto(block):
                if path:
                    sha256.update(block[:count])
                    stream.write(block[:count])

    def _signed(self, operation: str, name: str) -> str:
        parameters = {"Bucket": servers.BUCKET, "Key": name}
        return self.s3.generate_presigned_url(operation, parameters).removeprefix(self.address)


def loops(scheme: str, endpoint: str, folder: Path, target: Path) -> dict[str, Work]:
    """One object after another, by the plainest calls of the store's own client."""
    paths = sorted(folder.iterdir())
    if scheme == "s3":
        s3 = servers.client(endpoint)

        def send(path: Path) -> None:
            s3.put_object(Bucket=servers.BUCKET, Key=f"loop/{path.name}", Body=path.read_bytes())

        def bring(path: Path) -> None:
            answer = s3.get_object(Bucket=servers.BUCKET, Key=f"loop/{path.name}")
            (target / path.name).write_bytes(answer["Body"].read())

    else:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        options = {"api_endpoint": endpoint}
        bucket = Client("x", AnonymousCredentials(), client_options=options).bucket(servers.BUCKET)

        def send(path: Path) -> None:
            bucket.blob(f"loop/{path.name}").upload_from_filename(str(path))

        def bring(path: Path) -> None:
            bucket.blob(f"loop/{path.name}").download_to_filename(str(target / path.name))

    return {
        "loop_upload": lambda: [send(path) for path in paths],
        "loop_download": lambda: [bring(path) for path in paths],
    }


def best(contenders: dict[str, Work], rounds: int, target: Path) -> dict[str, float]:
    """Seconds of each, the best of the rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            os.sync()
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in seconds.items()}


def fill(folder: Path, count: int, size: int) -> int:
    """Writes random files; returns their bytes."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04}").write_bytes(os.urandom(size))
    return count * size


def large(scheme: str, endpoint: str, work: Path, count: int, size: int, rounds: int) -> dict[str, Any]:
    total = fill(work / "large", count, size)
    separator = "/" if scheme == "s3" else "%2F"
    target, names = work / "out", [f"bare{separator}{number}" for number in range(count)]
    bare, content = Bare(scheme, endpoint), (work / "large" / "0000").read_bytes()
    address = f"{scheme}://{servers.BUCKET}/large"
    contenders = {
        "bare_put": lambda: [bare.put(name, content) for name in names],
        "upload": lambda: storage.upload(work / "large", address),
        "bare_get": lambda: [bare.get(name) for name in names],
        "bare_get_hashed_and_kept": lambda: [bare.get(name, target / name[-1]) for name in names],
        "download": lambda: storage.download(address, target / "x"),
        "local_copy": lambda: shutil.copytree(work / "large", target / "x"),
    }
    seconds = best(contenders, rounds, target)
    return {
        "objects": count,
        "megabytes_per_second": {name: round(total / 1e6 / value) for name, value in seconds.items()},
        "upload_share_of_bare": round(seconds["bare_put"] / seconds["upload"], 2),
        "download_share_of_bare": round(seconds["bare_get"] / seconds["download"], 2),
        "download_share_of_bare_hashed_and_kept": round(
            seconds["bare_get_hashed_and_kept"] / seconds["download"], 2
        ),
    }


def small(scheme: str, endpoint: str, work: Path, count: int, rounds: int) -> dict[str, Any]:
    folder, target = work / "small", work / "out"
    if not folder.exists():
        fill(folder, count, 4096)
    os.environ[ENDPOINT[scheme]] = endpoint
    address = f"{scheme}://{servers.BUCKET}/small"
    contenders = {
        "upload": lambda: storage.upload(folder, address),
        "download": lambda: storage.download(address, target),
        **loops(scheme, endpoint, folder, target),
    }
    seconds = best(contenders, rounds, target)
    return {
        "objects": count,
        "objects_per_second": {name: round(count / value) for name, value in seconds.items()},
        "upload_times_loop": round(seconds["loop_upload"] / seconds["upload"], 2),
        "download_times_loop": round(seconds["loop_download"] / seconds["download"], 2),
    }


def _late_proxy(server: str, address: Any) -> None:
    proxy = Proxy(server)
    proxy.delay = DELAY
    address.send(proxy.address)
    address.recv()


@contextlib.contextmanager
def late(server: str) -> Iterator[str]:
    """The address of a proxy, in a process of its own, that answers late."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_late_proxy, args=(server, theirs), daemon=True
    )
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def measure(
    scheme: str, start: Callable[[Path], servers.Server], work: Path, arguments: Any
) -> dict[str, Any]:
    server = start(work / "server")
    try:
        os.environ[ENDPOINT[scheme]] = server.address
        size = arguments.megabytes << 20
        result = {"large": large(scheme, server.address, work, arguments.large, size, arguments.rounds)}
        result["small"] = small(scheme, server.address, work, arguments.small, arguments.rounds)
        with late(server.address) as proxy:
            result[f"small_{DELAY * 1000:g}ms"] = small(scheme, proxy, work, arguments.small, 1)
        return result
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--large", type=int, default=4, help="large objects")
    parser.add_argument("--megabytes", type=int, default=256, help="MiB of each")
    parser.add_argument("--small", type=int, default=1000, help="objects of 4 KiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stores", nargs="+", choices=list(ENDPOINT), default=list(ENDPOINT))
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    os.environ.update(servers.KEYS, AWS_REGION=servers.REGION)
    machine = {"processor": _processor(), "cores": os.cpu_count(), "load_average_before": os.getloadavg()}
    result: dict[str, Any] = {"machine": machine, "answers_late_by_seconds": DELAY}
    starts = {"s3": servers.start_s3, "gs": servers.start_google}
    for scheme in arguments.stores:
        with tempfile.TemporaryDirectory() as work:
            result[scheme] = measure(scheme, starts[scheme], Path(work), arguments)
        print(json.dumps(result[scheme], indent=2), flush=True)
    result["machine"]["load_average_after"] = os.getloadavg()
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
