"""Outbrain's raw files: the generator's formats and planted structure, and every source of the real ones."""

import base64
import csv
import gzip
import http.server
import io
import json
import re
import stat
import tarfile
import threading
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from components.download.main import main
from recsys import google_storage, object_storage, storage, transfer
from recsys.datasets import outbrain, outbrain_synthetic
from recsys.outbrain_tables import COLUMNS
from recsys.raw_data import RawData, RawOutbrain

SMALL = {"displays": 600, "documents": 400, "ads": 60, "campaigns": 12, "advertisers": 5, "users": 100}


def run(
    tmp_path: Path, source: object = "", dataset: str = "outbrain", seed: int = 0, **options: object
) -> int:
    given = {"dataset": dataset, "source": source, "options": json.dumps(options), "seed": seed}
    given |= {"raw": tmp_path / "out" / "raw", "about": tmp_path / "out" / "about.md"}
    return main([text for name, value in given.items() for text in (f"--{name}", str(value))])


def refused(capsys, tmp_path: Path, *source: object, **options: object) -> str:
    """Runs the step, expects one line, exit code 2 and no output. Returns the line."""
    assert run(tmp_path, *source, **options) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert [path for path in tmp_path.glob("out/*") if path.suffix != ".download"] == []
    return line


def written(tmp_path: Path) -> RawOutbrain:
    return RawData.read(tmp_path / "out" / "raw")


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    with open(folder / f"{table}.csv", newline="") as stream:
        return list(csv.DictReader(stream))


# ---- generated


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("generated")
    outbrain_synthetic.write(path, outbrain_synthetic.Options(**SMALL), 3)
    return path


def test_clicks_are_sorted_displays_of_2_to_12_different_ads_with_one_click(folder):
    clicks = [tuple(map(int, row.values())) for row in rows(folder, "clicks_train")]
    assert clicks == sorted(clicks)
    assert len({click[:2] for click in clicks}) == len(clicks)
    sizes = Counter(display for display, _, _ in clicks)
    assert set(sizes) == set(range(1, 601))
    assert set(sizes.values()) == set(range(2, 13))
    assert 4.7 < np.mean(list(sizes.values())) < 5.4
    assert Counter(display for display, _, clicked in clicks if clicked) == dict.fromkeys(range(1, 601), 1)
    assert {ad for _, ad, _ in clicks} == set(range(1, 61))


def test_events_cover_all_displays_in_time_and_have_gaps(folder):
    events = rows(folder, "events")
    assert [int(row["display_id"]) for row in events] == list(range(1, 751))
    times = [int(row["timestamp"]) for row in events]
    assert times[:600] == sorted(times[:600])
    assert {time // 86_400_000 for time in times[:600]} == set(range(13))
    assert {time // 86_400_000 for time in times[600:]} == set(range(15))
    assert {row["platform"] for row in events} == {"1", "2", "3", "\\N"}
    places = {row["geo_location"] for row in events}
    assert {"US>CA>803", "SG", ""} <= places
    assert all(re.fullmatch("([A-Z]{2}(>[A-Z0-9]{2}(>[0-9]{3})?)?)?", place) for place in places)
    assert all(re.fullmatch("[0-9a-f]{14}", row["uuid"]) for row in events)
    assert len({row["uuid"] for row in events}) == 100
    assert {int(row["document_id"]) for row in events} <= set(range(1, 401))


def test_promoted_content_is_one_row_per_ad_and_a_campaign_has_one_advertiser(folder):
    promoted = [{name: int(text) for name, text in row.items()} for row in rows(folder, "promoted_content")]
    assert [row["ad_id"] for row in promoted] == list(range(1, 61))
    assert len({row["campaign_id"] for row in promoted}) == len(
        {(row["campaign_id"], row["advertiser_id"]) for row in promoted}
    )
    assert max(row["document_id"] for row in promoted) <= 400


def test_documents_meta_lacks_documents_and_values(folder):
    meta = rows(folder, "documents_meta")
    documents = [int(row["document_id"]) for row in meta]
    assert 360 < len(set(documents)) == len(documents) < 400
    assert {"\\N"} < {row["source_id"] for row in meta}
    assert {""} < {row["publisher_id"] for row in meta}
    times = {row["publish_time"] for row in meta}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", time) for time in times - {""})
    assert "" in times
    assert min(times - {""}) < "2002"
    assert max(times) > "2016-07-27"


@pytest.mark.parametrize(
    ("kind", "column", "form"),
    [
        ("topics", "topic_id", r"\d|[12]\d"),
        ("categories", "category_id", r"100\d"),
        ("entities", "entity_id", "[0-9a-f]{32}"),
    ],
)
def test_documents_have_0_to_5_different_topics_entities_and_categories(folder, kind, column, form):
    listed = rows(folder, f"documents_{kind}")
    pairs = [(int(row["document_id"]), row[column]) for row in listed]
    assert len(set(pairs)) == len(pairs)
    counts = Counter(document for document, _ in pairs)
    assert set(counts.values()) == {1, 2, 3, 4, 5}
    assert 30 < 400 - len(counts) < 110
    assert all(re.fullmatch(form, value) for _, value in pairs)
    assert all(0 < float(row["confidence_level"]) < 1 for row in listed)


def test_the_seed_decides_every_byte_of_what_the_step_writes(tmp_path):
    sums = []
    for seed in (5, 5, 6):
        assert run(tmp_path, "", "outbrain_synthetic", seed, **SMALL) == 0
        sums.append(written(tmp_path).source["sha256"])
    assert sums[0] == sums[1]
    assert all(sums[0][name] != sums[2][name] for name in sums[0])
    raw = written(tmp_path)
    assert raw.tables == {table: f"{table}.csv" for table in COLUMNS}
    assert raw.source["options"]["displays"] == 600
    for table, columns in COLUMNS.items():
        path = tmp_path / "out" / "raw" / raw.tables[table]
        assert path.read_text().splitlines()[0] == ",".join(columns)
        assert storage.digest(path, "sha256") == sums[2][path.name]


def test_blocks_join_without_a_seam(tmp_path, monkeypatch):
    monkeypatch.setattr(outbrain_synthetic, "BLOCK", 250)
    outbrain_synthetic.write(tmp_path, outbrain_synthetic.Options(**SMALL), 0)
    displays = [int(row["display_id"]) for row in rows(tmp_path, "events")]
    assert displays == list(range(1, 751))
    assert {row["display_id"] for row in rows(tmp_path, "clicks_train")} == {str(i) for i in range(1, 601)}
    topics = [int(row["document_id"]) for row in rows(tmp_path, "documents_topics")]
    assert topics == sorted(topics)
    assert topics[-1] > 390


def test_smallest_world(tmp_path):
    least = dict.fromkeys(("displays", "documents", "campaigns", "advertisers", "users"), 1)
    outbrain_synthetic.write(tmp_path, outbrain_synthetic.Options(**least, ads=24, topics=5, noise=0.0), 0)
    clicked = [row["clicked"] for row in rows(tmp_path, "clicks_train")]
    assert clicked.count("1") == 1


def mean_reciprocal_rank(score: np.ndarray, block: outbrain_synthetic.Displays) -> float:
    """MAP@12: a display has one clicked ad and at most 12."""
    score = np.where(np.arange(12) < block.size[:, None], score, -np.inf)
    best = np.take_along_axis(score, block.clicked[:, None], 1)
    return float(np.mean(1 / (1 + (score > best).sum(1))))


def auc(score: np.ndarray, block: outbrain_synthetic.Displays) -> float:
    """Share of all (clicked, not clicked) pairs of rows that are in the right order."""
    clicked = np.arange(12) == block.clicked[:, None]
    positive = np.sort(score[clicked])
    negative = score[(np.arange(12) < block.size[:, None]) & ~clicked]
    return 1 - float(np.searchsorted(positive, negative).mean() / len(positive))


def planted(**options: object) -> tuple[outbrain_synthetic.World, outbrain_synthetic.Displays]:
    settings = outbrain_synthetic.Options(displays=20_000, **options)
    world = outbrain_synthetic.plan(settings, 1)
    (block,) = outbrain_synthetic.generate(settings, world, 1)
    return world, block


def test_planted_structure_worth_beats_quality_beats_chance():
    world, block = planted()
    chance = np.random.default_rng(0).random(block.ads.shape)
    topic = world.topic[world.document[block.ads]] == world.topic[block.document][:, None]
    quality = world.quality[block.ads]
    assert 0.80 < auc(block.worth, block) < 0.86
    assert 0.58 < auc(quality, block) < 0.68
    assert 0.60 < auc(topic + chance / 100, block) < 0.70
    assert 0.49 < auc(chance, block) < 0.51
    assert mean_reciprocal_rank(block.worth, block) > mean_reciprocal_rank(quality, block) + 0.15
    assert mean_reciprocal_rank(quality, block) > mean_reciprocal_rank(chance, block) + 0.05


def test_only_the_pairs_of_features_tell_the_context():
    """Without the other parts, an ad's click rate says little, the rate of each pair of features a lot."""
    world, block = planted(topic=0.0, quality=0.0)
    advertiser, clicked = world.advertiser[block.ads], np.arange(12) == block.clicked[:, None]
    real = np.arange(12) < block.size[:, None]

    def rate(key: np.ndarray) -> np.ndarray:
        shown = np.bincount(key[real])
        return (np.bincount(key[real], clicked[real], len(shown)) / np.maximum(shown, 1))[key]

    pair = rate(block.platform[:, None] * 1000 + advertiser)
    assert mean_reciprocal_rank(pair, block) > mean_reciprocal_rank(rate(advertiser), block) + 0.03


def test_shuffled_clicks_change_nothing_but_the_clicks():
    (_, block), (_, shuffled) = planted(), planted(shuffle_clicks=True)
    assert (block.ads == shuffled.ads).all()
    assert (block.worth == shuffled.worth).all()
    assert (block.timestamp == shuffled.timestamp).all()
    assert 0.49 < auc(shuffled.worth, shuffled) < 0.51


def test_without_noise_the_best_ad_is_clicked():
    _, block = planted(noise=0.0)
    assert mean_reciprocal_rank(block.worth, block) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"displays": 0}, "displays must be 1 or more, not 0"),
        ({"ads": 23}, "ads must be 24 or more"),
        ({"topics": 4}, "topics must be 5 or more"),
        ({"noise": -0.5}, "noise must be 0 or more"),
        ({"context": -1}, "context must be 0 or more"),
        ({"click_shuffle": True}, "unknown key 'click_shuffle'"),
        ({"shuffle_clicks": "yes"}, "shuffle_clicks must be true or false"),
        ({"seed": -1}, "--seed -1"),
        ({"source": "x"}, "leave --source empty"),
    ],
)
def test_wrong_options_of_the_generator_are_one_line(tmp_path, capsys, options, says):
    assert says in refused(capsys, tmp_path, dataset="outbrain_synthetic", **options)


# ---- the real files


def zipped(entries: dict[str, bytes], folder: str = "") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in entries.items():
            opened.writestr(folder + name, content)
    return stream.getvalue()


def plain(folder: Path) -> dict[str, bytes]:
    return {f"{table}.csv": (folder / f"{table}.csv").read_bytes() for table in COLUMNS}


def as_kaggle(folder: Path) -> dict[str, bytes]:
    """Each file in a zip archive of its own, and files that are not needed."""
    files = {f"{name}.zip": zipped({name: content}) for name, content in plain(folder).items()}
    return files | {"page_views_sample.csv.zip": b"not read", "sample_submission.csv.zip": b"not read"}


def put(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def tar(path: Path, files: dict[str, bytes], mode: str) -> Path:
    with tarfile.open(path, mode) as opened:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"orig/{name}")
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return path


def mixed(folder: Path) -> dict[str, bytes]:
    """Plain, gzip and zip side by side, and the reference's other name of a file."""
    files = plain(folder)
    files["document_meta.csv"] = files.pop("documents_meta.csv")
    files["events.csv.gz"] = gzip.compress(files.pop("events.csv"))
    files["clicks_train.csv.zip"] = zipped({"clicks_train.csv": files.pop("clicks_train.csv")}, "deep/er/")
    return files | {"._events.csv": b"?", "README.md": b"mine"}


SOURCES = {
    "folder": lambda path, folder: put(path, plain(folder)),
    "folder of zips": lambda path, folder: put(path, as_kaggle(folder)),
    "mixed folder": lambda path, folder: put(path, mixed(folder)),
    "zip": lambda path, folder: put(path, {"a.zip": zipped(plain(folder), "orig/")}) / "a.zip",
    "zip of zips": lambda path, folder: put(path, {"a.zip": zipped(as_kaggle(folder))}) / "a.zip",
    "zip without suffix": lambda path, folder: put(path, {"a": zipped(mixed(folder))}) / "a",
    "tar": lambda path, folder: tar(path, plain(folder), "w"),
    "tar.gz": lambda path, folder: tar(path, mixed(folder), "w:gz"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_gives_the_same_files(tmp_path, folder, kind):
    source = SOURCES[kind](tmp_path / "given", folder)
    assert run(tmp_path, source) == 0
    raw, out = written(tmp_path), tmp_path / "out" / "raw"
    assert {name: (out / name).read_bytes() for name in raw.files} == plain(folder)
    assert raw.tables == {table: f"{table}.csv" for table in COLUMNS}
    assert raw.source["address"] == str(source)
    assert raw.source["sha256"]["events.csv"] == storage.digest(folder / "events.csv", "sha256")
    assert {path.name for path in out.iterdir()} == {*plain(folder), "raw.yaml", "LICENCE.md"}
    assert not (tmp_path / "out" / "raw.download").exists()
    assert "outbrain-click-prediction/rules" in (out / "LICENCE.md").read_text()
    assert source.exists()


def test_plain_file_is_preferred_to_a_compressed_one(tmp_path, folder):
    broken = {"events.csv.zip": b"PK\x03\x04", "ads.csv": b"", "events.csv.gz": b"\x1f\x8b"}
    assert run(tmp_path, put(tmp_path / "given", plain(folder) | broken)) == 0


def test_google_cloud_storage_prefix(tmp_path, folder, monkeypatch):
    files = {f"gs://bucket/orig/{name}": content for name, content in as_kaggle(folder).items()}
    monkeypatch.setattr(google_storage, "list_folder", lambda address: sorted(files))
    fetch = lambda store, address, path, *_: path.write_bytes(files[address])  # noqa: E731
    monkeypatch.setattr(object_storage, "fetch", fetch)
    assert run(tmp_path, "gs://bucket/orig/") == 0
    assert (tmp_path / "out" / "raw" / "events.csv").read_bytes() == plain(folder)["events.csv"]


def test_all_missing_files_are_in_one_line(tmp_path, capsys, folder):
    files = {name: plain(folder)[name] for name in ("clicks_train.csv", "events.csv")}
    files |= {"documents_topic.csv": b"", "page_views.csv": b""}
    line = refused(capsys, tmp_path, put(tmp_path / "given", files))
    missing = ", ".join(table for table in COLUMNS if table not in ("clicks_train", "events"))
    there = "clicks_train.csv, documents_topic.csv, events.csv, page_views.csv"
    assert f"missing {missing} (as *.csv, *.csv.gz, *.csv.zip); there is {there}; all files are at" in line
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped(files))
    assert "missing promoted_content, documents_meta" in refused(capsys, tmp_path, archive)
    assert "there is nothing" in refused(capsys, tmp_path, put(tmp_path / "empty", {}))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("documents_meta.csv", b"document_id,source_id,publish_time\n1,2,\n", "no column publisher_id;"),
        ("clicks_train.csv", b"<html>\n<p>", "clicked; the first line is '<html>'"),
        ("events.csv", b"", "events.csv: no column display_id, uuid"),
        ("promoted_content.csv", b"ad_id,document_id,campaign_id,advertiser_id\n", "a header and no rows"),
        ("events.csv", zipped({"clicks_train.csv": b"1"}), "holds clicks_train.csv, not events.csv"),
        ("events.csv", zipped({"events.csv": b"1" * 99})[:60], "not a whole zip"),
        ("events.csv", gzip.compress(b"display_id" * 99)[:30], "events.csv: damaged ("),
        ("events.csv", b"\x1f\x8bxxxxxxxxx", "events.csv: damaged ("),
    ],
)  # fmt: skip
def test_wrong_file_is_one_line(tmp_path, capsys, folder, name, content, says):
    assert says in refused(capsys, tmp_path, put(tmp_path / "given", plain(folder) | {name: content}))


def test_byte_order_mark_and_more_columns_are_fine(tmp_path, folder):
    files = plain(folder) | {
        "clicks_train.csv": b"\xef\xbb\xbfdisplay_id,ad_id,clicked,source\r\n1,2,1,x\r\n"
    }
    assert run(tmp_path, put(tmp_path / "given", files)) == 0


def unsafe_zip(path: Path, name: str) -> None:
    entry = zipfile.ZipInfo(name)
    if name == "events.csv":
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(entry, "/etc/passwd")


def unsafe_tar(path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    if name == "events.csv":
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(path, "w") as opened:
        opened.addfile(entry)


@pytest.mark.parametrize("make", [unsafe_zip, unsafe_tar])
@pytest.mark.parametrize("name", ["../events.csv", "/tmp/events.csv", "a/../../events.csv", "events.csv"])
def test_unsafe_archive_is_refused(tmp_path, capsys, make, name):
    make(tmp_path / "a.archive", name)
    line = refused(capsys, tmp_path, tmp_path / "a.archive")
    assert f"a.archive: entry {name!r} is a link or points outside the archive" in line


def test_other_wrong_sources_are_one_line(tmp_path, capsys, folder):
    assert "no such file or folder" in refused(capsys, tmp_path, tmp_path / "none")
    assert "not a whole zip or tar archive" in refused(capsys, tmp_path, folder / "events.csv")
    assert "unknown key 'displays'" in refused(capsys, tmp_path, folder, displays=3)


# ---- Kaggle

SECRET = "k3y-of-ann"


class Kaggle:
    """Kaggle's API on one port, the host that it redirects downloads to on another."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.status, self.bare_list = files, 0, False
        self.headers: dict[str, list[str]] = {"api": [], "files": []}
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *_):
                pass

        self.api, self.store = (http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2))
        self.port = self.store.server_port
        for server in (self.api, self.store):
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        name = request.path.partition("?")[0].rpartition("/")[2]
        host = "api" if request.server is self.api else "files"
        self.headers[host].append(str(request.headers))
        content = self.files.get(name, b"")
        if host == "api":
            expected = "Basic " + base64.b64encode(f"ann:{SECRET}".encode()).decode()
            if request.headers.get("Authorization") != expected:
                return request.send_error(401)
            if self.status and "/download/" in request.path:
                return request.send_error(self.status)
            if "/download/" in request.path:
                request.send_response(302)
                request.send_header("Location", f"http://localhost:{self.port}/{name}?signature=s3cret")
                return request.end_headers()
            entries = [{"name": name} for name in self.files]
            content = json.dumps(entries if self.bare_list else {"files": entries}).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def close(self) -> None:
        for server in (self.api, self.store):
            server.shutdown()
            server.server_close()


@pytest.fixture
def kaggle(folder, monkeypatch, tmp_path):
    server = Kaggle(as_kaggle(folder))
    address = f"http://127.0.0.1:{server.api.server_port}/data/{{}}/outbrain-click-prediction"
    monkeypatch.setattr(outbrain, "API", address)
    monkeypatch.setattr(transfer, "BACKOFF", 0.0)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("KAGGLE_USERNAME", "ann")
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    yield server
    server.close()


@pytest.mark.parametrize("bare_list", [False, True])
def test_kaggle_gets_the_token_and_nobody_else(tmp_path, kaggle, folder, caplog, capfd, bare_list):
    kaggle.bare_list = bare_list
    with caplog.at_level("DEBUG"):
        assert run(tmp_path) == 0
    raw, out = written(tmp_path), tmp_path / "out" / "raw"
    assert {name: (out / name).read_bytes() for name in raw.files} == plain(folder)
    login = base64.b64encode(f"ann:{SECRET}".encode()).decode()
    assert all(f"Authorization: Basic {login}" in headers for headers in kaggle.headers["api"])
    assert len(kaggle.headers["files"]) == 7
    assert not any(login in headers or SECRET in headers for headers in kaggle.headers["files"])
    shown = caplog.text + "".join(capfd.readouterr()) + (tmp_path / "out" / "about.md").read_text()
    shown += (out / "raw.yaml").read_text() + (out / "LICENCE.md").read_text()
    assert raw.source["address"] == "https://www.kaggle.com/c/outbrain-click-prediction/data"
    assert SECRET not in shown
    assert login not in shown


def test_kaggle_token_from_its_file(tmp_path, kaggle, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    (tmp_path / "kaggle.json").write_text(json.dumps({"username": "ann", "key": SECRET}))
    assert run(tmp_path) == 0


def test_kaggle_wants_a_token(tmp_path, capsys, kaggle, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    line = refused(capsys, tmp_path)
    assert f"set KAGGLE_USERNAME and KAGGLE_KEY, or make {tmp_path / 'kaggle.json'}" in line
    assert kaggle.headers["api"] == []


@pytest.mark.parametrize("content", ["", "[]", f'{{"key": "{SECRET}"}}', f"ann:{SECRET}"])
def test_broken_token_file_is_named_and_not_shown(tmp_path, capsys, kaggle, monkeypatch, content):
    monkeypatch.delenv("KAGGLE_KEY")
    (tmp_path / "kaggle.json").write_text(content)
    line = refused(capsys, tmp_path)
    assert "kaggle.json: is no readable" in line
    assert SECRET not in line


def test_kaggle_refuses_the_token(tmp_path, capsys, kaggle, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "old-" + SECRET)
    line = refused(capsys, tmp_path)
    assert "Kaggle answers 401: the token of KAGGLE_USERNAME and KAGGLE_KEY is not valid" in line
    assert SECRET not in line


def test_kaggle_wants_its_rules_accepted(tmp_path, capsys, kaggle):
    kaggle.status = 403
    line = refused(capsys, tmp_path)
    assert "Kaggle answers 403" in line
    assert "first accept the rules at https://www.kaggle.com/c/outbrain-click-prediction/rules" in line


def test_kaggle_lacks_files_or_answers_something_else(tmp_path, capsys, kaggle):
    del kaggle.files["events.csv.zip"]
    assert "outbrain-click-prediction: missing events (" in refused(capsys, tmp_path)
    kaggle.files = {"files": b""}
    kaggle.bare_list = True
    assert "missing clicks_train, events" in refused(capsys, tmp_path)
    kaggle.files = {None: b""}
    line = refused(capsys, tmp_path)
    assert "missing clicks_train" in line


def test_signature_of_a_download_is_not_shown(tmp_path, capsys, kaggle, caplog):
    kaggle.port = 1
    with caplog.at_level("DEBUG", "recsys"):
        line = refused(capsys, tmp_path)
    assert "the connection failed" in line
    assert "s3cret" not in line + caplog.text


def test_a_rerun_keeps_what_kaggle_has_sent(tmp_path, capsys, kaggle):
    kaggle.files["events.csv.zip"] = zipped({"events.csv": b"nonsense\n"})
    assert "events.csv.zip: no column display_id" in refused(capsys, tmp_path)
    assert (tmp_path / "out" / "raw.download" / "clicks_train.csv.zip").exists()
