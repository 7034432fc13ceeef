"""Preparing into a store: found again by what it was made of, published once, verified by who reads it."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from components.preprocess import publication
from components.preprocess.main import main
from recsys import dataset_store
from recsys.feature_spec import FeatureSpec
from recsys.raw_data import RawRatings
from recsys.step import UserError

ROOT = Path(__file__).parents[2]
COLUMNS = {"user": "user", "item": "item", "rating": "rating", "timestamp": "timestamp"}


@pytest.fixture
def raw(tmp_path) -> Path:
    return write_raw(tmp_path / "raw")


def write_raw(folder: Path, rows: int = 3000, source: str = "somewhere") -> Path:
    rng = np.random.default_rng(3)
    folder.mkdir()
    table = np.stack([rng.integers(0, 50, rows), rng.integers(0, 30, rows), np.full(rows, 5), range(rows)], 1)
    lines = [",".join(map(str, row)) for row in table.tolist()]
    (folder / "ratings.csv").write_text("\n".join(["user,item,rating,timestamp", *lines]) + "\n")
    raw = RawRatings(
        dataset="toy", files=("ratings.csv",), format="csv", columns=COLUMNS, source={"address": source}
    )
    raw.write(folder)
    return folder


def flags(raw: Path, target: Path, store: object = "", model="ncf", seed=0, **options) -> list[str]:
    words = ["--raw", raw, "--model", model, "--options", json.dumps(options), "--seed", seed]
    words += [
        "--dataset_store",
        store,
        "--dataset",
        target / "dataset",
        "--statistics",
        target / "statistics",
    ]
    executor = {"outputFile": str(target / "executor.json")}
    executor["artifacts"] = {n: {"artifacts": [{"name": n}]} for n in ("dataset", "statistics")}
    return [*map(str, words), "--executor_input", json.dumps({"outputs": executor})]


def metadata(target: Path) -> dict:
    written = json.loads((target / "executor.json").read_text())
    return written["artifacts"]["dataset"]["artifacts"][0]["metadata"]


def values(spec: FeatureSpec) -> dict:
    return {
        (mapping, name): column
        for mapping, chunks in spec.source_spec.items()
        for name, column in spec.columns(mapping, chunks[0].features).items()
    }


def test_the_artifact_is_only_the_spec_and_says_the_same(raw, tmp_path):
    plain, stored = tmp_path / "plain", tmp_path / "stored"
    assert main(flags(raw, plain)) == 0
    assert main(flags(raw, stored, tmp_path / "store")) == 0
    assert os.listdir(stored / "dataset") == ["feature_spec.yaml"]
    one, other = FeatureSpec.read(plain / "dataset"), FeatureSpec.read(stored / "dataset")
    assert {name: column.tolist() for name, column in values(one).items()} == {
        name: column.tolist() for name, column in values(other).items()
    }
    # A checkpoint of the one may be continued and evaluated on the other.
    assert one.digest() == other.digest()
    # What the folder holds without a store is in the store, with size and checksum.
    beside = {
        p.relative_to(plain / "dataset").as_posix() for p in (plain / "dataset").rglob("*") if p.is_file()
    }
    listed = other.metadata["dataset_store"]["files"]
    assert beside - {"feature_spec.yaml"} < set(listed)
    assert all(re.fullmatch("[0-9a-f]{64}", entry["sha256"]) and entry["bytes"] for entry in listed.values())
    at_its_uri = FeatureSpec.read(other.metadata["dataset_store"]["spec"])
    assert at_its_uri.as_dict() == other.as_dict()


def test_a_second_run_prepares_nothing(raw, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    first, second = tmp_path / "1", tmp_path / "2"
    assert main(flags(raw, first, tmp_path / "store")) == 0
    monkeypatch.setattr("components.preprocess.ratings.dataset.prepare", None)
    elsewhere = write_raw(tmp_path / "copy", source="elsewhere")
    assert main(flags(elsewhere, second, tmp_path / "store")) == 0
    assert "holds this dataset; nothing to prepare" in caplog.messages[-1]
    for name in ("dataset/feature_spec.yaml", "statistics"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert metadata(first)["in_store"] == "prepared"
    assert metadata(second) == {**metadata(first), "in_store": "found"}
    assert metadata(second)["interactions"] > 0


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"model": "vae_cf", "heldout_users": 0.2},
        {"min_user_ratings": 3},
        {"raw": 2999},
        "library",
        "code",
    ],
    ids=str,
)
def test_another_input_is_another_dataset(raw, tmp_path, monkeypatch, change):
    made = []

    def noted(*arguments):
        made.append(publication_key(*arguments))
        raise UserError("enough")

    publication_key = publication.key
    monkeypatch.setattr(publication, "key", noted)
    main(flags(raw, tmp_path, tmp_path / "store"))
    if change == "library":
        monkeypatch.setattr(publication, "version", lambda name: "another")
        change = {}
    if change == "code":
        monkeypatch.setattr(publication, "ROOT", tmp_path)
        change = {}
    if "raw" in change:
        raw, change = write_raw(tmp_path / "other", change["raw"]), {}
    main(flags(raw, tmp_path, tmp_path / "store", **change))
    assert len(set(made)) == 2


def test_the_code_of_training_is_no_part_of_a_dataset():
    names = {str(path.relative_to(ROOT)) for path in publication.code()}
    assert {"components/preprocess/shards.py", "recsys/splits.py", "recsys/chunks.py"} <= names
    assert not {"recsys/engine.py", "recsys/s3_storage.py", "recsys/models/ncf.py"} & names


def test_of_two_that_publish_at_once_one_wins_and_both_can_be_read(raw, tmp_path, monkeypatch):
    """The other run publishes while this one is preparing."""
    from components.preprocess.ratings import dataset

    prepare, store = dataset.prepare, tmp_path / "store"

    def slow(*arguments):
        monkeypatch.setattr(dataset, "prepare", prepare)
        assert main(flags(raw, tmp_path / "other", store)) == 0
        return prepare(*arguments)

    monkeypatch.setattr(dataset, "prepare", slow)
    assert main(flags(raw, tmp_path / "own", store)) == 0
    own, other = (FeatureSpec.read(tmp_path / name / "dataset") for name in ("own", "other"))
    assert own.as_dict() == other.as_dict()
    assert values(own).keys() == values(other).keys()


def test_two_processes_at_once_end_with_the_same_dataset(raw, tmp_path):
    command = [sys.executable, "-m", "components.preprocess.main"]
    runs = [
        subprocess.Popen([*command, *flags(raw, tmp_path / name, tmp_path / "store")], cwd=ROOT)
        for name in "ab"
    ]
    assert [run.wait(120) for run in runs] == [0, 0]
    specs = [FeatureSpec.read(tmp_path / name / "dataset") for name in "ab"]
    assert specs[0].as_dict() == specs[1].as_dict()
    assert values(specs[0])


def test_a_dataset_whose_files_are_gone_is_made_anew(raw, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    store = tmp_path / "store"
    assert main(flags(raw, tmp_path / "1", store)) == 0
    for path in store.rglob("*"):
        if path.is_file() and path.name != "feature_spec.yaml":
            path.unlink()
    for description in store.glob("*/*/feature_spec.yaml"):
        description.unlink()
    assert main(flags(raw, tmp_path / "2", store)) == 0
    assert "names files that are gone" in caplog.text
    assert metadata(tmp_path / "2")["in_store"] == "prepared"
    assert values(FeatureSpec.read(tmp_path / "2/dataset"))


def test_a_failed_upload_publishes_nothing_and_the_next_run_does(raw, tmp_path, monkeypatch, capfd):
    from recsys import storage

    def broken(folder, address):
        raise UserError(f"{address}: no space")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "upload", broken)
        assert main(flags(raw, tmp_path / "1", tmp_path / "store")) == 2
    assert "no space" in capfd.readouterr().err
    assert not list((tmp_path / "store").rglob("feature_spec.yaml"))
    assert not (tmp_path / "1/dataset").exists()
    assert main(flags(raw, tmp_path / "2", tmp_path / "store")) == 0


def test_a_store_that_cannot_be_written_fails_before_the_work(raw, tmp_path, monkeypatch, capfd):
    (tmp_path / "store").write_text("a file")
    monkeypatch.setattr("components.preprocess.ratings.dataset.prepare", None)
    assert main(flags(raw, tmp_path / "1", tmp_path / "store")) == 2
    error = capfd.readouterr().err
    assert "store" in error
    assert len(error.splitlines()) == 1


def test_something_else_under_the_name_is_not_overwritten(raw, tmp_path, capfd):
    assert main(flags(raw, tmp_path / "1", tmp_path / "store")) == 0
    [description] = (tmp_path / "store").glob("*/feature_spec.yaml")
    content = yaml.safe_load(description.read_text())
    del content["metadata"]["dataset_store"]
    description.write_text(yaml.safe_dump(content))
    assert main(flags(raw, tmp_path / "2", tmp_path / "store")) == 2
    assert "was not written by the preprocess step; choose another dataset_store" in capfd.readouterr().err


def test_changed_bytes_are_told_and_not_read(raw, tmp_path):
    assert main(flags(raw, tmp_path / "1", tmp_path / "store")) == 0
    spec = FeatureSpec.read(tmp_path / "1/dataset")
    [file] = spec.source_spec["train"][0].files
    path = Path(file.removeprefix("file://"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.parquet: its SHA-256 is .* was published") as told:
        spec.columns("train", ["user"])
    assert "\n" not in str(told.value)
    assert len(spec.columns("test", ["user"])["user"])  # which is whole


def test_metadata_that_somebody_has_edited_is_one_line(raw, tmp_path):
    assert main(flags(raw, tmp_path / "1", tmp_path / "store")) == 0
    path = tmp_path / "1/dataset/feature_spec.yaml"
    content = yaml.safe_load(path.read_text())
    content["metadata"]["dataset_store"]["files"] = ["train.parquet"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="metadata dataset_store is not as preprocess writes it"):
        FeatureSpec.read(path).columns("train", ["user"])


def test_a_row_group_is_counted_without_its_file(raw, tmp_path):
    from recsys.row_stream import RowGroups

    assert main(flags(raw, tmp_path / "1", tmp_path / "store")) == 0
    spec = FeatureSpec.read(tmp_path / "1/dataset")
    [file] = spec.source_spec["train"][0].files
    counted = len(spec.columns("train", ["user"])["user"])
    Path(file.removeprefix("file://")).unlink()
    groups = RowGroups(
        FeatureSpec.read(tmp_path / "1/dataset", with_files=False), "train", {"user": ["user"]}
    )
    assert groups.rows == counted
    assert dataset_store.published(spec.as_dict()) == spec.metadata["dataset_store"]["spec"]
