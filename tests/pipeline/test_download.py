"""The download step against real local servers: what arrives is whole and verified, and resumes."""

import base64
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import traceback
import zipfile
from collections import namedtuple
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest

from components.download.main import main
from recsys import storage, transfer
from recsys.datasets import movielens
from recsys.raw_data import RawData
from recsys.step import UserError

REPOSITORY = Path(__file__).parents[2]
ML_100K = REPOSITORY.parent / "shared" / "data" / "ml-100k.zip"
PAYLOAD = np.random.default_rng(0).bytes(1_000_003)


class Server:
    """An HTTP server in a thread: files, faults to commit one by one, and a log of the requests."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        self.release = threading.Event()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = self.handle_error
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append((path, request.headers.get("Range")))
        if path not in self.files:
            return request.send_error(404)
        fault = self.faults.pop(0) if self.faults else ""
        if fault.isdigit():
            return request.send_error(int(fault))
        self.send(request, self.files[path], fault)

    def send(self, request: http.server.BaseHTTPRequestHandler, content: bytes, fault: str = "") -> None:
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        asked, guard = request.headers.get("Range"), request.headers.get("If-Range", tag)
        start = int(asked[len("bytes=") : -1]) if asked and self.ranges and guard == tag else 0
        if start and start >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            return request.end_headers()
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.ranges:
            request.send_header("ETag", tag)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        end = start + (len(content) - start) // 2 if fault in ("cut", "hang") else len(content)
        request.wfile.write(content[start:end])
        if fault == "hang":
            self.release.wait(30)
        request.close_connection = True

    def handle_error(self, *_) -> None:
        """A client that hangs up is no fault of the server; anything else is one of the test's."""
        if not isinstance(sys.exception(), ConnectionError):
            traceback.print_exc()

    def starts(self, path: str) -> list[str | None]:
        """The Range header of each request for ``path``."""
        return [asked for requested, asked in self.requests if requested == path]


class CloudStorage(Server):
    """The calls of Cloud Storage's JSON API that reading makes."""

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        media, _, path = parts.path.rpartition("/storage/v1/b/")
        bucket, objects, name = path.partition("/o")
        name = unquote(name.removeprefix("/"))
        self.requests.append((f"{'media' if media else 'meta'}:{name}", request.headers.get("Range")))
        if bucket == "secret":
            return self.send_json(request, 403, "Anonymous caller does not have storage.objects.get access")
        if bucket != "bucket":
            return self.send_json(request, 404, "The specified bucket does not exist.")
        if not objects:  # the client looks at the bucket after a 404
            return self.send_json(request, 200, {"name": bucket})
        if not name:
            prefix = parse_qs(parts.query)["prefix"][0]
            found = [{"name": key, "bucket": bucket} for key in self.files if key.startswith(prefix)]
            return self.send_json(request, 200, {"items": found})
        if name not in self.files:
            return self.send_json(request, 404, f"No such object: {bucket}/{name}")
        content = self.files[name]
        if media:
            return self.send(request, content, self.faults.pop(0) if self.faults else "")
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        meta = {"name": name, "bucket": bucket, "generation": "7", "size": str(len(content)), "md5Hash": md5}
        self.send_json(request, 200, meta)

    def send_json(self, request: http.server.BaseHTTPRequestHandler, code: int, body: object) -> None:
        if code != 200:
            body = {"error": {"code": code, "message": body, "errors": [{"message": body}]}}
        content = json.dumps(body).encode()
        request.send_response(code)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No waits between attempts, no proxy, and an address of GroupLens that leads nowhere."""
    monkeypatch.setattr(transfer, "BACKOFF", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(movielens, "ADDRESS", "http://127.0.0.1:1/{}")


@pytest.fixture
def server():
    server = Server()
    yield server
    server.release.set()
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def cloud(monkeypatch):
    server = CloudStorage()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
    yield server
    server.http.shutdown()
    server.http.server_close()


def archive(entries: dict[str, str] | None = None) -> bytes:
    """A zip archive; by default one of movielens-100k, about 1 MB."""
    rows = "".join(
        f"{user}\t{item}\t{1 + item % 5}\t{880000000 + user}\n"
        for user in range(1, 301)
        for item in range(160)
    )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for name, content in (entries or {"ml-100k/u.data": rows, "ml-100k/README": "terms"}).items():
            opened.writestr(name, content)
    return stream.getvalue()


def arguments(tmp_path: Path, source: object, dataset: str = "movielens-100k") -> list[str]:
    raw, about = tmp_path / "out" / "raw", tmp_path / "out" / "about.md"
    return ["--dataset", dataset, "--source", str(source), "--raw", str(raw), "--about", str(about)]


def refused(capsys, argv: list[str]) -> str:
    """Runs the step, expects a user's mistake: exit code 2, one line, nothing published. Returns the line."""
    assert main(argv) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    raw = Path(argv[argv.index("--raw") + 1])
    assert [path.name for path in raw.parent.glob("*") if not path.name.endswith(".download")] == []
    return line


# ---- fetch


def test_fetch_resumes_a_cut_connection_where_it_was_cut(server, tmp_path):
    server.files["/x.zip"], server.faults = PAYLOAD, ["cut", "503", "cut"]
    storage.fetch(f"{server.address}/x.zip", tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == PAYLOAD
    first, second, repeated, third = server.starts("/x.zip")
    half, three_quarters = len(PAYLOAD) // 2, len(PAYLOAD) * 3 // 4
    assert first is None
    assert second == repeated
    # What had arrived is kept, up to the last block of 64 KiB.
    assert half - 65536 <= int(second[len("bytes=") : -1]) <= half
    assert three_quarters - 65536 <= int(third[len("bytes=") : -1]) <= three_quarters


def test_fetch_starts_over_when_the_server_ignores_ranges(server, tmp_path):
    server.files["/x.zip"], server.faults, server.ranges = PAYLOAD, ["cut"], False
    storage.fetch(f"{server.address}/x.zip", tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == PAYLOAD


def test_fetch_starts_over_when_the_file_changed_meanwhile(server, tmp_path):
    server.files["/x.zip"], server.faults = PAYLOAD, ["cut"] + ["403"]
    with pytest.raises(UserError, match="403"):
        storage.fetch(f"{server.address}/x.zip", tmp_path / "x.zip")
    server.files["/x.zip"] = changed = PAYLOAD[::-1]
    storage.fetch(f"{server.address}/x.zip", tmp_path / "x.zip")
    assert server.starts("/x.zip")[-1] is not None
    assert (tmp_path / "x.zip").read_bytes() == changed


def test_fetch_does_not_load_again_what_is_whole_and_current(server, tmp_path):
    server.files["/x.zip"] = PAYLOAD
    storage.fetch(f"{server.address}/x.zip", tmp_path / "x.zip")
    storage.fetch(f"{server.address}/x.zip", tmp_path / "x.zip")
    assert server.starts("/x.zip") == [None, f"bytes={len(PAYLOAD)}-"]
    assert (tmp_path / "x.zip").read_bytes() == PAYLOAD


def test_fetch_gives_up_after_attempts_without_progress(server, tmp_path):
    server.files["/x.zip"], server.faults = PAYLOAD, ["503"] * 99
    with pytest.raises(UserError, match="503"):
        storage.fetch(f"{server.address}/x.zip", tmp_path / "x.zip")
    assert len(server.requests) == transfer.ATTEMPTS
    assert not (tmp_path / "x.zip").exists()


def test_a_body_that_always_ends_early_is_never_taken_for_the_file(server, tmp_path):
    server.files["/x.zip"], server.faults, server.ranges = PAYLOAD, ["cut"] * 99, False
    with pytest.raises(UserError, match="connection"):
        storage.fetch(f"{server.address}/x.zip", tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize(("fault", "says"), [("404", "404"), ("403", "no permission")])
def test_fetch_does_not_repeat_what_cannot_succeed(server, tmp_path, fault, says):
    server.files["/x.zip"], server.faults = PAYLOAD, [fault] * 2
    with pytest.raises(UserError, match=says):
        storage.fetch(f"{server.address}/x.zip", tmp_path / "x.zip")
    assert len(server.requests) == 1


def test_fetch_checks_the_disk_before_it_writes(server, tmp_path, monkeypatch):
    server.files["/x.zip"] = PAYLOAD
    usage = namedtuple("usage", "total used free")(1, 1, transfer.SPARE + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="MB are free"):
        storage.fetch(f"{server.address}/x.zip", tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize(
    "text",
    ["{}  x.zip\n", "{} *x.zip\n", "{}\n", "MD5 (x.zip) = {}\n", "0" * 32 + "  other.zip\n{}  x.zip\n"],
)
def test_published_md5_reads_every_usual_format(tmp_path, text):
    (tmp_path / "x.zip.md5").write_text(text.format("AB" * 16))
    assert storage.published_md5(str(tmp_path / "x.zip")) == "ab" * 16


# ---- gs://


def test_gs_object_is_fetched_and_resumed(cloud, tmp_path):
    cloud.files["data/x y.zip"], cloud.faults = PAYLOAD, ["cut"]
    storage.fetch("gs://bucket/data/x y.zip", tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == PAYLOAD
    first, second = cloud.starts("media:data/x y.zip")
    assert first is None
    assert second is not None
    assert second.startswith(f"bytes={len(PAYLOAD) // 2}-")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("gs://bucket/none.zip", "No such object: bucket/none.zip"),
        ("gs://nobucket/x.zip", "bucket does not exist"),
        ("gs://secret/x.zip", "no permission"),
        ("gs://bucket", "names no object"),
    ],
)
def test_gs_mistakes_are_one_line(cloud, tmp_path, capsys, address, says):
    line = refused(capsys, arguments(tmp_path, address))
    assert says in line
    assert address in line


def test_gs_archive_is_verified_by_the_md5_beside_it(cloud, tmp_path, capsys):
    content = archive()
    cloud.files["ml-100k.zip"] = content
    cloud.files["ml-100k.zip.md5"] = b"0" * 32
    assert "0" * 32 in refused(capsys, arguments(tmp_path, "gs://bucket/ml-100k.zip"))
    cloud.files["ml-100k.zip.md5"] = hashlib.md5(content).hexdigest().encode()
    assert main(arguments(tmp_path, "gs://bucket/ml-100k.zip")) == 0


def test_gs_folder_of_interactions(cloud, tmp_path):
    for part in ("b", "a"):
        cloud.files[f"data/{part}.csv"] = f"user,item,rating,timestamp\n{part},1,5,1\n".encode()
    cloud.files["data/_SUCCESS"] = b""
    assert main(arguments(tmp_path, "gs://bucket/data/", "interactions")) == 0
    raw = RawData.read(tmp_path / "out" / "raw")
    assert raw.files == ("a.csv", "b.csv")


# ---- the step


def test_known_address_is_verified_and_published_whole(server, tmp_path, monkeypatch):
    content = archive()
    server.files["/ml-100k.zip"] = content
    monkeypatch.setattr(movielens, "ADDRESS", server.address + "/{}")
    known = movielens.Release("ml-100k.zip", hashlib.md5(content).hexdigest(), "u.data", "\t", False)
    monkeypatch.setitem(movielens.RELEASES, "movielens-100k", known)
    executor = {
        "outputs": {
            "outputFile": str(tmp_path / "executor.json"),
            "artifacts": {"raw": {"artifacts": [{"name": "r", "uri": "u"}]}},
        }
    }
    argv = [
        *arguments(tmp_path, ""),
        "--options",
        "{}",
        "--seed",
        "3",
        "--executor_input",
        json.dumps(executor),
    ]
    assert main(argv) == 0
    raw = RawData.read(tmp_path / "out" / "raw")
    assert raw.columns == {"user": 0, "item": 1, "rating": 2, "timestamp": 3}
    assert (raw.separator, raw.header, raw.source["md5"]) == ("\t", False, known.md5)
    assert raw.paths(tmp_path / "out" / "raw")[0].read_text().startswith("1\t0\t1\t880000001\n")
    assert (tmp_path / "out" / "raw" / "README").read_text() == "terms"
    about = (tmp_path / "out" / "about.md").read_text()
    for text in (server.address, known.md5, "u.data", "no commercial use", "Harper", "10.1145/2827872"):
        assert text in about
    assert "Harper" in (tmp_path / "out" / "raw" / "LICENCE.md").read_text()
    metadata = json.loads((tmp_path / "executor.json").read_text())["artifacts"]["raw"]["artifacts"][0][
        "metadata"
    ]
    assert metadata["md5"] == known.md5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["about.md", "raw"]


def test_wrong_md5_publishes_nothing_and_the_next_run_starts_afresh(server, tmp_path, monkeypatch, capsys):
    server.files["/ml-100k.zip"] = archive()
    monkeypatch.setattr(movielens, "ADDRESS", server.address + "/{}")
    for _ in range(2):
        assert "expected 0e33842e24a9c977be4e0107933c0723" in refused(capsys, arguments(tmp_path, ""))
    assert server.starts("/ml-100k.zip") == [None, None]


def test_32m_is_verified_by_the_file_that_grouplens_publishes(server, tmp_path, monkeypatch, capsys):
    content = archive({"ml-32m/ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,4\n"})
    server.files["/ml-32m.zip"] = content
    monkeypatch.setattr(movielens, "ADDRESS", server.address + "/{}")
    assert "ml-32m.zip.md5: missing" in refused(capsys, arguments(tmp_path, "", "movielens-32m"))
    server.files["/ml-32m.zip.md5"] = f"MD5 (ml-32m.zip) = {hashlib.md5(content).hexdigest()}".encode()
    assert main(arguments(tmp_path, "", "movielens-32m")) == 0


def test_killed_step_leaves_no_raw_folder_and_the_rerun_resumes(server, tmp_path):
    server.files["/ml-100k.zip"], server.faults = archive(), ["hang"]
    argv = arguments(tmp_path, f"{server.address}/ml-100k.zip")
    process = subprocess.Popen(
        [sys.executable, "-m", "components.download.main", *argv], cwd=REPOSITORY, stdout=subprocess.DEVNULL
    )
    part = tmp_path / "out" / "raw.download" / "ml-100k.zip.part"
    while not (part.exists() and part.stat().st_size):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "raw").exists()
    assert not (tmp_path / "out" / "about.md").exists()
    had = part.stat().st_size
    assert main(argv) == 0
    assert server.starts("/ml-100k.zip") == [None, f"bytes={had}-"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["about.md", "raw"]


@pytest.mark.skipif(not ML_100K.exists(), reason=f"no {ML_100K.name} in the shared data folder")
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_real_movielens_100k_is_read_in_place(tmp_path, scheme):
    assert main(arguments(tmp_path, f"{scheme}{ML_100K}")) == 0
    raw = RawData.read(tmp_path / "out" / "raw")
    ratings = np.loadtxt(raw.paths(tmp_path / "out" / "raw")[0], dtype=np.int64, delimiter=raw.separator)
    assert ratings.shape == (100_000, 4)
    assert len(np.unique(ratings[:, raw.columns["user"]])) == 943
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["about.md", "raw"]


def test_ratings_file_is_found_at_any_depth(tmp_path):
    (tmp_path / "x.zip").write_bytes(
        archive({"a/b/ml-10M100K/ratings.dat": "1::122::5::838985046\n", "a/x": ""})
    )
    assert main(arguments(tmp_path, tmp_path / "x.zip", "movielens-10m")) == 0
    raw = RawData.read(tmp_path / "out" / "raw")
    assert (raw.files, raw.separator) == (("ratings.dat",), "::")


def link_entry() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        entry = zipfile.ZipInfo("ml-100k/u.data")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(entry, "/etc/passwd")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (archive({"u.data": "1\t2\t3\t4\n", "../evil": "x"}), "'../evil' is a link or points outside"),
        (archive({"/u.data": "1\t2\t3\t4\n"}), "'/u.data' is a link or points outside"),
        (archive({"a\\..\\..\\u.data": "1\t2\t3\t4\n"}), "points outside"),
        (link_entry(), "'ml-100k/u.data' is a link or points outside"),
        (archive()[:-500], "not a whole zip"),
        (archive()[:2000] + b"?" * 50 + archive()[2050:], "damaged"),
        (b"<html>login</html>", "not a whole zip or tar archive"),
        (b"", "not a whole zip or tar archive"),
        (archive({"ml-1m/users.dat": "x"}), "holds no u.data, the ratings file of movielens-100k; it holds"),
        (archive({"ml-20m/ratings.csv": "x"}), "looks like movielens-20m or movielens-25m or movielens-32m"),
        (archive({"u.data": ""}), "u.data is empty"),
        (archive({"u.data": "1,2,3,4\n"}), "which is not movielens-100k"),
    ],
)  # fmt: skip
def test_bad_archive_is_refused(tmp_path, capsys, content, says):
    (tmp_path / "x.zip").write_bytes(content)
    line = refused(capsys, arguments(tmp_path, tmp_path / "x.zip"))
    assert says in line
    assert "x.zip" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.zip"]


def test_header_without_ratings_is_refused(tmp_path, capsys):
    (tmp_path / "x.zip").write_bytes(archive({"ratings.csv": "userId,movieId,rating,timestamp\n"}))
    line = refused(capsys, arguments(tmp_path, tmp_path / "x.zip", "movielens-20m"))
    assert "a header and no ratings" in line


def test_local_md5_is_honoured(tmp_path, capsys):
    (tmp_path / "x.zip").write_bytes(archive())
    (tmp_path / "x.zip.md5").write_text("0" * 32 + "  x.zip\n")
    assert "expected " + "0" * 32 in refused(capsys, arguments(tmp_path, tmp_path / "x.zip"))
    (tmp_path / "x.zip.md5").write_text("no checksum here\n")
    assert "holds no MD5" in refused(capsys, arguments(tmp_path, tmp_path / "x.zip"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"--dataset": "movilens-1m"},
            "did you mean 'movielens-1m'?); allowed: feature_spec, interactions, ",
        ),
        ({"--source": "/no/such/file.zip"}, "/no/such/file.zip: no such file"),
        ({"--source": "/"}, "is a folder"),
        (
            {"--source": "ftp://host/x.zip"},
            "allowed: a local path, file://, gs://, s3:// or minio://; http://",
        ),
        ({"--options": '{"users": 3}'}, "unknown key 'users'"),
        ({"--dataset": "synthetic", "--options": '{"user": 3}'}, "did you mean 'users'?"),
        ({"--dataset": "synthetic"}, "leave --source empty"),
        ({"--dataset": "interactions", "--source": ""}, "needs a file or folder"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, capsys, change, says):
    flags = {"--dataset": "movielens-100k", "--source": "x", "--raw": str(tmp_path / "out" / "raw")} | change
    argv = [part for flag in flags.items() for part in flag]
    assert says in refused(capsys, [*argv, "--about", str(tmp_path / "out" / "about.md")])


def test_missing_file_ends_the_real_program_with_code_2_and_one_line(server, tmp_path):
    argv = arguments(tmp_path, f"{server.address}/none.zip")
    command = [sys.executable, "-m", "components.download.main", *argv]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "NO_PROXY": "*"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "404" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
