"""Every mistake is one line that says what to do, and no line holds a secret."""

import errno
import json
import logging
import os
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import pytest

from recsys import storage, transfer
from recsys.step import UserError
from tests.stores import servers
from tests.stores.test_stores import REPOSITORY, fill


@pytest.fixture(autouse=True)
def _nothing_secret_is_told(caplog, capfd):
    """Looks through all that a test printed and logged."""
    caplog.set_level(logging.DEBUG, logger="recsys")
    caplog.set_level(logging.INFO)
    yield
    told = caplog.text + "".join(capfd.readouterr())
    for secret in (*servers.KEYS.values(), "planted"):
        assert secret not in told


def mistake(act) -> str:
    with pytest.raises(UserError) as caught:
        act()
    line = str(caught.value)
    assert "\n" not in line
    text = "".join(traceback.format_exception(caught.value))
    for secret in (*servers.KEYS.values(), "planted"):
        assert secret not in text
    return line


def every_act(address: str, folder: Path):
    """Each way to use a store."""
    fill(folder / "in", {"a": 10})
    return (
        lambda: storage.write(f"{address}/x", b"x"),
        lambda: storage.write(f"{address}/x", b"x", only_if_absent=True),
        lambda: storage.read_if_present(f"{address}/x"),
        lambda: storage.fetch(f"{address}/x", folder / "x"),
        lambda: storage.list_folder(address),
        lambda: storage.upload(folder / "in", address),
        lambda: storage.download(address, folder / "out"),
    )


def test_no_such_bucket(place, tmp_path):
    place.proxy.error = "The specified bucket does not exist."
    for act in every_act(f"{place.scheme}://no-such-bucket/folder", tmp_path):
        if place.scheme == "gs":  # the server of the tests makes buckets as they are asked for
            place.proxy.commit(*["404"] * 9)
        assert "bucket" in mistake(act).removeprefix(f"{place.scheme}://no-such-bucket")


def test_no_such_object(place, tmp_path):
    storage.write(f"{place.address}/folder/y", b"")
    assert storage.read_if_present(f"{place.address}/folder") is None
    for name in ("x", "folder"):
        line = mistake(lambda name=name: storage.fetch(f"{place.address}/{name}", tmp_path / "x"))
        assert "object" in line
    assert "names no object" in mistake(lambda: storage.fetch(f"{place.address}/folder/", tmp_path / "x"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("AWS_ACCESS_KEY_ID", "check AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "check AWS_SECRET_ACCESS_KEY"),
        ("AWS_SESSION_TOKEN", "session token is not valid"),
    ],
)
def test_wrong_key(s3, tmp_path, monkeypatch, name, says):
    monkeypatch.setenv(name, "planted-wrong-value")
    for act in every_act(s3.address, tmp_path):
        assert says in mistake(act)


def test_no_permission(s3, tmp_path, monkeypatch):
    policy = {
        "Effect": "Allow",
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{servers.BUCKET}/open/*"],
    }
    given = servers.client(s3.server.address, "sts").assume_role(
        RoleArn="arn:x:ignored:by:minio:",
        RoleSessionName="test",
        Policy=json.dumps({"Version": "2012-10-17", "Statement": [policy]}),
    )["Credentials"]
    storage.write(f"s3://{servers.BUCKET}/open/x", b"open")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", given["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", given["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", given["SessionToken"])
    assert storage.read_if_present(f"s3://{servers.BUCKET}/open/x") == b"open"
    for act in every_act(s3.address, tmp_path):
        line = mistake(act)
        assert "no permission" in line
        assert given["AccessKeyId"] not in line
    assert storage.read_if_present(f"{s3.address}/x.md5", hidden=True) is None


def test_without_keys_a_closed_bucket_says_so(s3, tmp_path, monkeypatch):
    for name in servers.KEYS:
        monkeypatch.delenv(name)
    for act in every_act(s3.address, tmp_path):
        assert "no permission" in mistake(act)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (400, "ExpiredToken", "the session token has expired; get new credentials"),
        (301, "PermanentRedirect", "set AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", "set AWS_REGION"),
        (507, "XMinioStorageFull", "the store is full"),
        (501, "NotImplemented", "conditional writes need a newer"),
    ],
)
def test_what_only_other_servers_answer(s3, tmp_path, status, code, says):
    s3.proxy.error = code
    for act in every_act(s3.address, tmp_path):
        # Not of the bucket: there the client itself looks for the right region.
        s3.proxy.commit(*[str(status)] * 99, on=lambda request: request.path != f"/{servers.BUCKET}")
        assert says in mistake(act)


def test_a_wrong_region_is_mended(s3, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-west-1")
    assert storage.write(f"{s3.address}/x", b"x")
    assert storage.read_if_present(f"{s3.address}/x") == b"x"


def test_a_wrong_clock(s3, tmp_path, monkeypatch):
    import botocore.auth

    now = botocore.auth.get_current_datetime
    monkeypatch.setattr(
        botocore.auth, "get_current_datetime", lambda *a, **k: now(*a, **k) - timedelta(hours=1)
    )
    for act in every_act(s3.address, tmp_path):
        assert "set the clock" in mistake(act)


@pytest.mark.parametrize(("status", "says"), [(401, "no permission"), (403, "no permission")])
def test_no_permission_in_cloud_storage(gs, tmp_path, status, says):
    gs.proxy.error = "denied"
    for act in every_act(gs.address, tmp_path):
        gs.proxy.commit(*[str(status)] * 99)
        assert says in mistake(act)


def test_a_server_that_is_not_there(place, tmp_path, monkeypatch):
    name = "STORAGE_EMULATOR_HOST" if place.scheme == "gs" else "AWS_ENDPOINT_URL"
    monkeypatch.setenv(name, f"http://planted:planted@127.0.0.1:{servers.free_port()}")
    for act in every_act(place.address, tmp_path):
        assert "gave up" in mistake(act)


def test_an_endpoint_that_is_no_address(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost")
    assert "write http://HOST:PORT" in mistake(lambda: storage.fetch(f"{s3.address}/x", tmp_path / "x"))


def test_minio_addresses_go_to_kubeflows_store_unless_told_otherwise(s3, monkeypatch):
    address = s3.address.replace("s3://", "minio://")
    storage.write(f"{address}/x", b"x")
    assert storage.list_folder(address) == [f"{address}/x"]
    assert storage.read_if_present(f"{s3.address}/x") == b"x"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    assert "seaweedfs.kubeflow:9000" in mistake(lambda: storage.read_if_present(f"{address}/x"))


def test_a_web_address_can_only_be_read(tmp_path):
    signed = "https://user:planted@host/folder?X-Amz-Signature=planted"
    for act in (
        lambda: storage.write(signed, b""),
        lambda: storage.upload(fill(tmp_path / "in", {"a": 1}), signed),
        lambda: storage.list_folder(signed),
    ):
        assert "https://host/folder: a web address can only be read" in mistake(act)


def test_a_signed_address_is_never_shown(s3, tmp_path):
    storage.write(f"{s3.address}/x", b"x")
    key = s3.address.partition(f"{servers.BUCKET}/")[2] + "/x"
    parameters = {"Bucket": servers.BUCKET, "Key": key}
    signed = servers.client(s3.proxy.address).generate_presigned_url("get_object", parameters)
    storage.fetch(signed, tmp_path / "x")
    assert "planted-access-key" not in "".join(path.read_text() for path in tmp_path.glob("x*"))
    signature = signed.rpartition("=")[2]
    for wrong in (signed[:-1] + "~", signed.replace(f"127.0.0.1:{s3.proxy.http.server_port}", "127.0.0.1:1")):
        assert signature[:-1] not in mistake(lambda wrong=wrong: storage.fetch(wrong, tmp_path / "y"))


def test_a_full_disk(place, tmp_path, monkeypatch):
    storage.upload(fill(tmp_path / "in", {"a": 1 << 20, "large": transfer.CHUNK + 1}), place.address)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for name in ("a", "large"):
        line = mistake(lambda name=name: storage.fetch(f"{place.address}/{name}", tmp_path / "out" / name))
        assert "the disk is full" in line
        assert str(tmp_path / "out" / name) in line
    monkeypatch.setattr(transfer, "SPARE", 1 << 62)
    assert "MB are free" in mistake(lambda: storage.download(place.address, tmp_path / "out"))
    assert [path for path in (tmp_path / "out").iterdir() if ".part" not in path.name] == []


def test_a_folder_in_place_of_a_file(place, tmp_path):
    (tmp_path / "x").mkdir()
    assert "is a folder" in mistake(lambda: storage.fetch(str(tmp_path / "x"), tmp_path / "y"))


def test_the_download_program_tells_a_mistake_in_one_line(place, tmp_path):
    command = [sys.executable, "-m", "components.download.main", "--dataset", "movielens-100k"]
    command += [
        "--source",
        f"{place.address}/none.zip",
        "--raw",
        tmp_path / "raw",
        "--about",
        tmp_path / "about.md",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "no such" in done.stderr
    assert not [secret for secret in servers.KEYS.values() if secret in done.stdout + done.stderr]
