"""Folders to a store and back, on real servers: whole, verified, published at the end."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from recsys import storage, transfer
from recsys.step import UserError

REPOSITORY = Path(__file__).parents[2]


def fill(folder: Path, files: dict[str, int]) -> Path:
    """Files of random bytes, by name and size."""
    random = np.random.default_rng(0)
    for name, size in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(random.bytes(size))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def direct(place, monkeypatch) -> None:
    """Past the proxy, which is slow."""
    name = "STORAGE_EMULATOR_HOST" if place.scheme == "gs" else "AWS_ENDPOINT_URL"
    monkeypatch.setenv(name, place.server.address)


def test_a_thousand_small_objects_and_back(place, tmp_path, monkeypatch):
    direct(place, monkeypatch)
    source = fill(tmp_path / "in", {f"part {i % 7}/é+{i:04}?#.bin": i * 11 for i in range(1000)})
    manifest = storage.upload(source, place.address)
    assert manifest == storage.download(place.address, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)
    assert len(storage.list_folder(f"{place.address}/part 3")) == 143
    assert storage.read_if_present(storage.list_folder(f"{place.address}/part 3")[1]) is not None


def test_large_objects_and_back_within_bounded_memory(place, tmp_path, monkeypatch):
    direct(place, monkeypatch)
    source = fill(tmp_path / "in", {"a": 100_000_007, "b": 150 << 20, "c": transfer.CHUNK, "empty": 0})
    program = (
        "import resource, sys; from pathlib import Path; from recsys import storage\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "address, folder = sys.argv[1], Path(sys.argv[2])\n"
        "storage.write(f'{address}/x', b'x'); before = most()\n"
        "storage.upload(folder / 'in', address); storage.download(address, folder / 'out')\n"
        "print(most() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, place.address, tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 220  # MiB, for 250 MiB of files and whatever their size
    assert contents(tmp_path / "out") == contents(source)


def test_a_folder_on_this_machine_is_published_alike(tmp_path):
    source = fill(tmp_path / "in", {"a/b": 5, "large": transfer.CHUNK + 1})
    manifest = storage.upload(source, str(tmp_path / "there"))
    assert storage.download(f"file://{tmp_path}/there", tmp_path / "out") == manifest
    assert contents(tmp_path / "out") == contents(source)
    assert set(contents(tmp_path / "there")) == {"a/b", "large", "manifest.json"}


def test_only_the_files_asked_for_travel_and_right_ones_stay(place, tmp_path):
    storage.upload(fill(tmp_path / "in", {"a": 10, "b": 10, "c": 10}), place.address)
    storage.download(place.address, tmp_path / "out", ["b", "c"])
    assert sorted(contents(tmp_path / "out")) == ["b", "c"]
    (tmp_path / "out" / "b").write_bytes(b"0123456789")  # the right size, other bytes
    kept = (tmp_path / "out" / "c").stat().st_mtime_ns
    storage.download(place.address, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    assert (tmp_path / "out" / "c").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match="holds no 'd'; it holds a, b, c"):
        storage.download(place.address, tmp_path / "out", ["d"])


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_a_manifest_cannot_write_outside_the_folder(place, tmp_path, name):
    entry = {"bytes": 1, "sha256": "0" * 64}
    storage.write(f"{place.address}/manifest.json", json.dumps({"files": {name: entry}}).encode())
    with pytest.raises(UserError, match="not a manifest"):
        storage.download(place.address, tmp_path / "out")


def test_of_many_writers_at_once_exactly_one_wins(place):
    address = f"{place.address}/once"
    with ThreadPoolExecutor(24) as pool:
        won = list(
            pool.map(lambda i: storage.write(address, b"writer %d" % i, only_if_absent=True), range(24))
        )
    assert sum(won) == 1
    assert storage.read_if_present(address) == b"writer %d" % won.index(True)
    assert storage.write(address, b"on purpose")
    assert storage.read_if_present(address) == b"on purpose"


def test_a_killed_upload_publishes_nothing_and_the_next_completes_it(place, tmp_path):
    source = fill(tmp_path / "in", {f"{i:03}": 2000 for i in range(200)} | {"large": 3 * transfer.CHUNK})
    program = "import sys; from pathlib import Path; from recsys import storage\n"
    program += "storage.upload(Path(sys.argv[1]), sys.argv[2])"
    place.proxy.delay = 0.02
    process = subprocess.Popen([sys.executable, "-c", program, source, place.address], cwd=REPOSITORY)
    while sum(request.method in ("PUT", "POST") for request in place.proxy.requests) < 100:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    place.proxy.delay = 0.0
    with pytest.raises(UserError, match="nothing is published there"):
        storage.download(place.address, tmp_path / "out")
    storage.upload(source, place.address)
    storage.download(place.address, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)


def test_a_killed_overwrite_leaves_no_manifest_of_other_files(place, tmp_path):
    source = fill(tmp_path / "in", {"a": 1000, "b": 1000})
    storage.upload(source, place.address)
    (source / "a").write_bytes(b"new")
    place.proxy.commit(*["503"] * 99, on=lambda request: request.path.partition("?")[0].endswith("/b"))
    if place.scheme == "gs":  # whose uploads have their names in the body
        place.proxy.commit(*["503"] * 99, on=lambda request: "/upload/" in request.path)
    with pytest.raises(UserError, match="gave up"):
        storage.upload(source, place.address)
    place.proxy.commit()
    with pytest.raises(UserError, match="nothing is published there"):
        storage.published(place.address)


def test_a_killed_download_keeps_the_chunks_that_arrived(place, tmp_path):
    source = fill(tmp_path / "in", {"large": 6 * transfer.CHUNK + 5})
    storage.upload(source, place.address)
    program = "import sys; from pathlib import Path; from recsys import storage\n"
    program += "storage.fetch(sys.argv[1], Path(sys.argv[2]))"
    last = f"bytes={6 * transfer.CHUNK}-"
    place.proxy.commit("stall", on=lambda request: (request.range or "").startswith(last))
    target = tmp_path / "out" / "large"
    process = subprocess.Popen(
        [sys.executable, "-c", program, f"{place.address}/large", target], cwd=REPOSITORY
    )
    state = target.with_name("large.part.json")
    while not (state.exists() and len(json.loads(state.read_text())["chunks"]) == 6):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    place.proxy.requests.clear()
    storage.fetch(f"{place.address}/large", target)
    ranges = [request.range for request in place.proxy.requests if request.range]
    assert [asked.startswith(last) for asked in ranges] == [True]
    assert target.read_bytes() == (source / "large").read_bytes()


def test_an_object_that_changed_meanwhile_is_fetched_anew(place, tmp_path):
    address, target = f"{place.address}/x", tmp_path / "x"
    for seed in (1, 2):
        content = np.random.default_rng(seed).bytes(2 * transfer.CHUNK)
        storage.write(address, content)
        storage.fetch(address, target)
        assert target.read_bytes() == content
