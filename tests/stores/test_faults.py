"""What goes wrong between a client and a real store: nothing is lost, nothing wrong is taken for right."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from recsys import storage, transfer
from recsys.step import UserError
from tests.stores import servers
from tests.stores.test_stores import contents, fill

SMALL = np.random.default_rng(1).bytes(300_000)
LARGE = np.random.default_rng(2).bytes(2 * transfer.CHUNK + 1000)


def is_read(request) -> bool:
    """Whether the bytes of an object are asked for."""
    path = request.path
    metadata = path.startswith("/storage/v1/") or "list-type" in path
    return request.method == "GET" and not metadata


def is_sent(request) -> bool:
    """Whether the bytes of an object are on their way."""
    return request.method in ("PUT", "POST") and request.size > 1000


def is_write(request) -> bool:
    return request.method in ("PUT", "POST")


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("fault", ["reset", "truncate", "stall", "slow", "corrupt", "503", "429", "lost"])
def test_reading_survives(place, tmp_path, monkeypatch, fault, content):
    source = fill(tmp_path / "in", {})
    source.mkdir()
    (source / "x").write_bytes(content)
    storage.upload(source, place.address)
    monkeypatch.setattr(transfer, "TIMEOUT", (5.0, 1.0))
    faults = [fault] * (1 if fault == "stall" else 2)
    for number, bring in enumerate(
        (
            lambda folder: storage.download(place.address, folder),
            lambda folder: storage.fetch(f"{place.address}/x", folder / "x"),
        )
    ):
        place.proxy.commit(*faults, on=is_read)
        bring(tmp_path / f"{number}")
        assert place.proxy.committed == faults or fault == "slow"  # after which nothing is repeated
        assert (tmp_path / f"{number}" / "x").read_bytes() == content


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("fault", ["reset_request", "corrupt_request", "lost", "503", "429"])
def test_writing_survives(place, tmp_path, fault, content):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes(content)
    place.proxy.commit(fault, fault, on=is_sent)
    storage.upload(tmp_path / "in", place.address)
    assert place.proxy.committed == [fault] * 2
    storage.download(place.address, tmp_path / "out")
    assert contents(tmp_path / "out") == {"x": content}


def test_a_burst_of_refusals_among_many_objects_loses_none(place, tmp_path, monkeypatch):
    source = fill(tmp_path / "in", {f"{i:03}": 500 + i for i in range(150)})
    monkeypatch.setattr(transfer, "ATTEMPTS", 61)  # one object may meet them all
    faults = ["503", "reset", "429", "lost"] * 15
    place.proxy.commit(*faults, on=lambda request: "manifest" not in request.path)
    storage.upload(source, place.address)
    assert place.proxy.committed == faults
    place.proxy.commit(*faults, on=lambda request: "manifest" not in request.path)
    storage.download(place.address, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)


def test_the_wait_that_a_server_asks_for_is_kept(place):
    storage.write(f"{place.address}/x", b"x")
    place.proxy.retry_after = "1"
    place.proxy.commit("429", on=is_read)
    start = time.monotonic()
    assert storage.read_if_present(f"{place.address}/x") == b"x"
    assert 1.0 <= time.monotonic() - start < 4.0


@pytest.mark.parametrize("fault", ["503", "reset", "truncate", "corrupt"])
def test_a_fault_that_stays_ends_in_one_line_and_no_file(place, tmp_path, fault):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes(SMALL)
    storage.upload(tmp_path / "in", place.address)
    place.proxy.commit(*[fault] * 999, on=is_read)
    with pytest.raises(UserError, match=f"gave up after {transfer.ATTEMPTS} attempts") as error:
        storage.fetch(f"{place.address}/x", tmp_path / "out" / "x")
    assert "\n" not in str(error.value)
    assert f"{place.address}/x" in str(error.value)
    assert len(place.proxy.committed) >= transfer.ATTEMPTS
    assert len(place.proxy.committed) < 40  # halves of what is left are progress, down to the last byte
    assert not (tmp_path / "out" / "x").exists()


def test_a_corrupt_part_that_stays_publishes_nothing(place, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes(LARGE)
    place.proxy.commit(*["corrupt_request"] * 9999, on=lambda request: request.size > 1 << 20)
    with pytest.raises(UserError, match="gave up"):
        storage.upload(tmp_path / "in", place.address)
    place.proxy.commit()
    assert storage.list_folder(place.address) == []


def test_a_conditional_write_whose_answer_is_lost_is_still_ours(place):
    place.proxy.commit("lost", on=is_write)
    assert storage.write(f"{place.address}/once", b"first", only_if_absent=True)
    assert place.proxy.committed == ["lost"]
    place.proxy.commit("lost", on=is_write)
    assert not storage.write(f"{place.address}/once", b"second", only_if_absent=True)
    assert storage.read_if_present(f"{place.address}/once") == b"first"


def test_one_wins_among_writers_whose_connections_break(place):
    place.proxy.commit(*["lost", "503", "reset_request"] * 6, on=is_write)
    with ThreadPoolExecutor(12) as pool:
        won = list(
            pool.map(
                lambda i: storage.write(f"{place.address}/once", b"%d" % i, only_if_absent=True), range(12)
            )
        )
    assert sum(won) == 1
    assert storage.read_if_present(f"{place.address}/once") == b"%d" % won.index(True)


def test_an_answer_lost_at_the_end_of_a_large_upload(s3, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes(LARGE)
    s3.proxy.commit("lost", on=lambda request: request.method == "POST" and "uploadId" in request.path)
    storage.upload(tmp_path / "in", s3.address)
    assert s3.proxy.committed == ["lost"]
    storage.download(s3.address, tmp_path / "out")
    assert contents(tmp_path / "out") == {"x": LARGE}


def test_an_upload_that_fails_leaves_no_parts_to_pay_for(s3, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes(LARGE)
    s3.proxy.commit(*["503"] * 999, on=lambda request: "partNumber=2" in request.path)
    with pytest.raises(UserError, match="gave up"):
        storage.upload(tmp_path / "in", s3.address)
    pending = servers.client(s3.server.address).list_multipart_uploads(
        Bucket=servers.BUCKET, Prefix=f"{s3.address.rpartition('/')[2]}/x"
    )
    assert "Uploads" not in pending
