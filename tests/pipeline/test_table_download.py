"""The download step with a user's table and with a dataset that has a feature spec."""

import functools
import hashlib
import http.server
import json
import threading

import pytest
import yaml

from components.download.main import main
from recsys.raw_data import RawData

TABLE = "clicked,who,what,tags,price,when\n1,a,b,x|y,2.5,7\n0,b,c,,1.0,8\n"
FULL = {
    "label": "clicked",
    "user": "who",
    "item": "what",
    "group": "who",
    "timestamp": "when",
    "onehot": ["who"],
    "multihot": ["tags"],
    "numerical": ["price"],
}


def run(tmp_path, dataset, source, **options):
    """Exit code of the step; the raw folder is ``tmp_path/out/raw``."""
    flags = ["--dataset", dataset, "--source", source, "--options", json.dumps(options)]
    out = tmp_path / "out"
    return main([*map(str, flags), "--raw", str(out / "raw"), "--about", str(out / "about.md")])


def refusal(tmp_path, capsys, dataset, source, **options):
    assert run(tmp_path, dataset, source, **options) == 2
    assert not (tmp_path / "out" / "raw").exists()
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    return complaint


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "clicks.csv"
    path.write_text(TABLE)
    return path


def test_a_table_travels_unchanged_with_what_its_columns_are_for(tmp_path, table):
    assert run(tmp_path, "table", table, **FULL) == 0
    folder = tmp_path / "out" / "raw"
    raw = RawData.read(folder)
    assert (raw.kind, raw.format, raw.separator, raw.list_separator) == ("table", "csv", ",", "|")
    assert raw.columns == {role: FULL[role] for role in ("label", "user", "item", "group", "timestamp")}
    assert raw.features == {"onehot": ["who"], "multihot": ["tags"], "numerical": ["price"]}
    assert (folder / "clicks.csv").read_text() == TABLE
    assert raw.source["sha256"] == {"clicks.csv": hashlib.sha256(TABLE.encode()).hexdigest()}
    assert raw.source["sha256"]["clicks.csv"] in (tmp_path / "out" / "about.md").read_text()


def test_several_files_and_another_separator(tmp_path):
    for name in ("b.tsv", "a.tsv"):
        (tmp_path / name).write_text(TABLE.replace(",", "\t"))
    assert run(tmp_path, "table", tmp_path, label="clicked", onehot=["who"], list_separator=";") == 0
    raw = RawData.read(tmp_path / "out" / "raw")
    assert (raw.files, raw.separator, raw.list_separator) == (("a.tsv", "b.tsv"), "\t", ";")


OPTIONS = {
    "a column that is not there": ({"onehot": ["Who"]}, ["'Who' (option onehot)", "did you mean 'who'"]),
    "a label that is not there": ({"label": "label"}, ["no column 'label'", "clicked, who, what"]),
    "a column with two uses": ({"multihot": ["price"]}, ["'price'", "multihot", "numerical", "choose one"]),
    "a label that is a feature": ({"numerical": ["clicked"]}, ["'clicked'", "label", "numerical"]),
    "a label that is the time": ({"timestamp": "clicked"}, ["label", "timestamp"]),
    "one column as user and item": ({"item": "who"}, ["user and item", "same column"]),
    "a long separator": ({"separator": "::"}, ["separator", "one character"]),
    "an unknown format": ({"format": "json"}, ['"csv", "parquet" or null', "'json'"]),
    "an unknown option": ({"oneshot": ["who"]}, ["did you mean 'onehot'"]),
    "a list that is text": ({"onehot": "who"}, ["onehot", "list"]),
    "a column without a name": ({"onehot": [""]}, ["''", "rename"]),
    "a slash in a name": ({"onehot": ["a/b"]}, ["'a/b'", "slash"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "named"), OPTIONS.values(), ids=OPTIONS.keys())
def test_a_table_is_refused_with(tmp_path, table, capsys, changes, named):
    complaint = refusal(tmp_path, capsys, "table", table, **{**FULL, **changes})
    assert all(part in complaint for part in named)


def test_a_table_needs_a_feature_and_a_source(tmp_path, table, capsys):
    assert "no feature" in refusal(tmp_path, capsys, "table", table, label="clicked")
    assert "needs a file or folder" in refusal(tmp_path, capsys, "table", "", **FULL)


def test_a_column_that_a_file_has_twice_is_refused(tmp_path, table, capsys):
    table.write_text(TABLE.replace("price", "tags"))
    complaint = refusal(tmp_path, capsys, "table", table, **{**FULL, "numerical": []})
    assert "several columns 'tags' (option multihot)" in complaint


SPEC = {
    "feature_spec": {"user": None, "item": {"cardinality": "auto"}, "label": None},
    "source_spec": {
        "train": [
            {"type": "csv", "features": ["user", "item"], "files": ["train/0.csv", "train/1.csv"]},
            {"type": "csv", "features": ["label"], "files": ["labels.csv"]},
        ],
        "test": [{"type": "csv", "features": ["user", "item", "label"], "files": ["test/0.csv"]}],
        "more": [{"type": "parquet", "features": ["user"], "files": ["gs://bucket/far.parquet"]}],
    },
    "channel_spec": {"user": ["user"], "item": ["item"], "label": ["label"]},
    "metadata": {"test_samples_per_series": 1},
}
FILES = {"train/0.csv": "0,1\n", "train/1.csv": "1,2\n", "labels.csv": "1\n1\n", "test/0.csv": "0,2,1\n"}


@pytest.fixture
def given(tmp_path):
    folder = tmp_path / "given"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    (folder / "notes.txt").write_text("not part of the dataset")
    return folder


@pytest.mark.parametrize("place", ["folder", "yaml", "another name", "uri", "http", "http folder"])
def test_a_spec_travels_with_its_files_from(tmp_path, given, place):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=given)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    (given / "mine.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    source = {
        "folder": given,
        "yaml": given / "feature_spec.yaml",
        "another name": given / "mine.yaml",
        "uri": f"file://{given}/feature_spec.yaml",
        "http": f"{address}/feature_spec.yaml",
        "http folder": f"{address}/",
    }[place]
    assert run(tmp_path, "feature_spec", source) == 0
    server.shutdown()
    folder = tmp_path / "out" / "raw"
    raw = RawData.read(folder)
    assert (raw.kind, raw.files) == ("feature_spec", ("feature_spec.yaml", *FILES))
    assert {name: (folder / name).read_text() for name in FILES} == FILES
    assert yaml.safe_load((folder / "feature_spec.yaml").read_text()) == SPEC
    assert not (folder / "notes.txt").exists()
    assert set(raw.source["sha256"]) == {"feature_spec.yaml", *FILES}


def changed(place, value):
    content = json.loads(json.dumps(SPEC))
    *path, last = place.split("/")
    at = content
    for key in path:
        at = at[int(key) if isinstance(at, list) else key]
    at[last] = value
    return content


FAULTS = {
    "a missing file": (changed("source_spec/train/1/files", ["lables.csv"]), ["lables.csv", "no such file"]),
    "a file elsewhere": (changed("source_spec/train/1/files", ["../x.csv"]), ["'../x.csv'", "within"]),
    "an absolute path": (changed("source_spec/train/1/files", ["/etc/hosts"]), ["'/etc/hosts'", "within"]),
    "an unknown channel": (changed("channel_spec/user_ch", ["user"]), ["user_ch", "did you mean 'user'"]),
    "an unknown section": (changed("feature_spce", {}), ["feature_spce", "did you mean 'feature_spec'"]),
    "no spec": ([1], ["must be a mapping with the sections"]),
}  # fmt: skip


@pytest.mark.parametrize(("content", "named"), FAULTS.values(), ids=FAULTS.keys())
def test_a_spec_is_refused_with(tmp_path, given, capsys, content, named):
    (given / "feature_spec.yaml").write_text(yaml.safe_dump(content))
    complaint = refusal(tmp_path, capsys, "feature_spec", given)
    assert all(part in complaint for part in [str(given), *named])


def test_a_spec_must_be_there_and_be_yaml(tmp_path, given, capsys):
    assert "feature_spec.yaml" in refusal(tmp_path, capsys, "feature_spec", "")
    assert "no such file" in refusal(tmp_path, capsys, "feature_spec", tmp_path)
    (given / "feature_spec.yaml").write_text("feature_spec: {user: {dtype: int32")
    assert "not a YAML file" in refusal(tmp_path, capsys, "feature_spec", given)
