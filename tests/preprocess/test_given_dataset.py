"""Datasets that come with a feature spec through the preprocess step, for each of the three models."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import spec_families

from components.preprocess.main import main
from recsys import generate_csv
from recsys.feature_spec import FeatureSpec
from recsys.raw_data import RawDataset


def raw_folder(folder, content, files):
    """A raw folder of the download step, with text files and Arrow tables."""
    path = spec_families.save(folder, content)
    for name, data in files.items():
        if isinstance(data, str):
            (folder / name).write_text(data)
        else:
            pq.write_table(data, folder / name)
    RawDataset(dataset="feature_spec", files=(path.name, *files)).write(folder)
    return folder


def prepare(raw, model="wide_deep", seed=1, **options):
    """Runs the step; returns the dataset's spec, or the exit code."""
    target = raw.with_name(f"{raw.name}.{model}.{seed}")
    flags = ["--raw", raw, "--model", model, "--seed", seed, "--options", json.dumps(options)]
    code = main([*map(str, flags), "--dataset", str(target), "--statistics", f"{target}.html"])
    return FeatureSpec.read(target) if code == 0 else code


def read(spec, mapping):
    (chunk,) = spec.source_spec[mapping]
    return pa.concat_tables([pq.read_table(spec.folder / file) for file in chunk.files]).to_pylist()


CLICKS = {
    "feature_spec": {
        "label": None,
        "user": None,
        "item": {"cardinality": "auto"},
        "tags": {"cardinality": 5, "max_hotness": 2, "embedding_size": 16},
        "row": None,
        "when": None,
        "display": None,
    },
    "source_spec": {
        mapping: [
            {"type": "parquet", "features": features, "files": [f"{mapping}.{number}.parquet"]}
            for number, features in enumerate([["label", "user", "item", "tags"], ["row", "when", "display"]])
        ]
        for mapping in ("train", "test")
    },
    "channel_spec": {
        "label": ["label"],
        "user": ["user"],
        "item": ["item"],
        "multihot_categorical": ["tags"],
        "numerical": ["row"],
        "timestamp": ["when"],
        "group": ["display"],
    },
    "metadata": {"dataset": "clicks"},
}  # fmt: skip


def clicks(folder, rows=400, mappings=("train", "test"), **changes):
    content = json.loads(json.dumps(CLICKS))
    for place, value in changes.items():
        content[place] = value
    content["source_spec"] = {
        name: chunks for name, chunks in content["source_spec"].items() if name in mappings
    }
    files = {}
    for number, mapping in enumerate(mappings):
        rng = np.random.default_rng(number)
        columns = {
            "label": pa.array(rng.integers(0, 2, rows), "int8"),
            "user": pa.array(rng.integers(0, 30 + number, rows), "int64"),
            "item": pa.array(rng.integers(0, 20, rows), "int16"),
            "tags": pa.array([[n % 5] * (n % 3) for n in range(rows)], pa.list_(pa.int64())),
        }
        files[f"{mapping}.0.parquet"] = pa.table(columns)
        rest = {
            name: pa.array(np.arange(rows) // size)
            for name, size in (("row", 1), ("when", 1), ("display", 4))
        }
        files[f"{mapping}.1.parquet"] = pa.table({**rest, "row": pa.array(np.arange(rows), "float64")})
    return raw_folder(folder, content, files)


def joined(raw, mapping):
    tables = [pq.read_table(raw / f"{mapping}.{number}.parquet") for number in (0, 1)]
    return [{**ids, **rest} for ids, rest in zip(tables[0].to_pylist(), tables[1].to_pylist(), strict=True)]


def test_wide_and_deep_gets_every_value_in_its_form(tmp_path):
    raw = clicks(tmp_path / "raw")
    spec = prepare(raw)
    inputs = ["label", "user", "item", "tags", "row"]
    for mapping, kept in (("train", inputs), ("test", [*inputs, "display"])):
        expected = [{name: row[name] for name in kept} for row in joined(raw, mapping)]
        found = read(spec, mapping)
        assert sorted(found, key=lambda row: row["row"]) == expected
        assert (found == expected) == (mapping == "test")
        for values in spec.columns(mapping, kept).values():
            assert len(values) == 400
    assert spec.source_spec["validation"] == spec.source_spec["test"]
    assert (spec.cardinality("user"), spec.cardinality("item")) == (31, 20)
    assert spec.feature_spec["tags"] == {
        "cardinality": 5, "max_hotness": 2, "embedding_size": 16, "dtype": "int32"
    }  # fmt: skip
    assert {name: entry["dtype"] for name, entry in spec.feature_spec.items()} == {
        **dict.fromkeys(["label", "row"], "float32"),
        **dict.fromkeys(["user", "item", "tags"], "int32"),
        "display": "int64",
    }
    assert "timestamp" not in spec.channel_spec
    assert spec.metadata["counts"] == {"train_rows": 400, "test_rows": 400}
    assert "clicks for wide_deep" in spec.folder.with_name(f"{spec.folder.name}.html").read_text()


def test_without_a_test_whole_groups_of_train_are_drawn_for_it(tmp_path):
    raw = clicks(tmp_path / "raw", rows=2000, mappings=("train",))
    spec = prepare(raw, test_fraction=0.3)
    train, test = ({row["row"] for row in read(spec, mapping)} for mapping in ("train", "test"))
    assert train | test == set(range(2000))
    assert not {number // 4 for number in train} & {number // 4 for number in test}
    assert 0.2 < len(test) / 2000 < 0.4
    assert spec.metadata["options"] == {"test_fraction": 0.3}
    assert {row["row"] for row in read(prepare(raw, seed=2, test_fraction=0.3), "test")} != test


def test_without_a_group_rows_are_drawn(tmp_path):
    channels = {name: value for name, value in CLICKS["channel_spec"].items() if name != "group"}
    raw = clicks(tmp_path / "raw", rows=2000, mappings=("train",), channel_spec=channels)
    spec = prepare(raw)
    train, test = ({row["row"] for row in read(spec, mapping)} for mapping in ("train", "test"))
    assert not train & test
    assert len(train | test) == 2000
    assert {number // 4 for number in train} & {number // 4 for number in test}
    assert 0.15 < len(test) / 2000 < 0.25


@pytest.mark.parametrize("name", spec_families.families())
def test_every_family_of_specs_is_prepared_for_wide_and_deep(tmp_path, name):
    content = spec_families.families()[name]
    path = spec_families.save(tmp_path / "spec", content)
    raw = tmp_path / "raw"
    assert generate_csv.main(["--spec", str(path), "--output", str(raw), "--rows", "300"]) == 0
    files = tuple(sorted(path.name for path in raw.iterdir()))
    RawDataset(dataset="feature_spec", files=("feature_spec.yaml", *files[:-1])).write(raw)
    spec = prepare(raw)
    given = FeatureSpec.read(raw)
    assert {k: v for k, v in spec.channel_spec.items()} == {k: v for k, v in given.channel_spec.items() if v}
    for mapping in ("train", "validation", "test"):
        values = spec.columns(mapping, spec.source_spec[mapping][0].features)
        assert {len(column) for column in values.values()} == {300}


LISTS = "0,5,0\n0,1,1\n1,2,1\n1,3,0\n"
RATED = {
    "feature_spec": {"user": None, "item": None, "label": None},
    "source_spec": {
        "train": [{"type": "csv", "features": ["user", "item", "label"], "files": ["train.csv"]}],
        "test": [{"type": "csv", "features": ["user", "item", "label"], "files": ["test.csv"]}],
    },
    "channel_spec": {"user": ["user"], "item": ["item"], "label": ["label"]},
    "metadata": {"test_samples_per_series": 2},
}


def test_ncf_gets_its_candidate_lists_as_they_are(tmp_path):
    raw = raw_folder(tmp_path / "raw", RATED, {"train.csv": "0,0,1\n1,4,1\n0,2,1\n", "test.csv": LISTS})
    spec = prepare(raw, "ncf")
    assert [tuple(row.values()) for row in read(spec, "test")] == [
        (0, 5, 0), (0, 1, 1), (1, 2, 1), (1, 3, 0)
    ]  # fmt: skip
    assert spec.metadata["test_samples_per_series"] == 2
    assert spec.source_spec["validation"] == spec.source_spec["test"]
    assert (spec.cardinality("user"), spec.cardinality("item")) == (2, 6)
    spec.require("ncf", channels=("user", "item", "label"), mappings=("train", "validation", "test"))


def test_vae_cf_gets_its_held_out_users_as_they_are(tmp_path):
    mappings = ("train", "validation_input", "validation_target", "test_input", "test_target")
    chunks = {
        name: [{"type": "csv", "features": ["item", "user"], "files": [f"{name}.csv"]}] for name in mappings
    }
    content = {**RATED, "source_spec": chunks}
    files = {f"{name}.csv": f"{number},{number}\n0,{number}\n" for number, name in enumerate(mappings)}
    spec = prepare(raw_folder(tmp_path / "raw", content, files), "vae_cf")
    assert tuple(spec.source_spec) == mappings
    assert read(spec, "test_target") == [{"user": 4, "item": 4}, {"user": 4, "item": 0}]
    spec.require("vae_cf", channels=("user", "item"), mappings=mappings)


def ratings(rng, low):
    """Each of 40 users rates 12 of 30 items with ``low`` or ``low`` + 1."""
    return "".join(
        f"{user},{item},{low + (rank % 4 > 0)},{rank}\n"
        for user in range(40)
        for rank, item in enumerate(rng.permutation(30)[:12])
    )


ONLY_TRAIN = {
    **RATED,
    "feature_spec": {**RATED["feature_spec"], "when": None},
    "source_spec": {
        "train": [{"type": "csv", "features": ["user", "item", "label", "when"], "files": ["train.csv"]}]
    },
    "channel_spec": {**RATED["channel_spec"], "timestamp": ["when"]},
    "metadata": {"dataset": "mine"},
}


@pytest.mark.parametrize("low", [0, 3])
def test_train_alone_goes_through_the_preparation_of_ratings(tmp_path, low):
    text = ratings(np.random.default_rng(0), low)
    raw = raw_folder(tmp_path / "raw", ONLY_TRAIN, {"train.csv": text})
    spec = prepare(raw, "vae_cf", heldout_users=8)
    # Ratings of 3 and 4 against VAE-CF's threshold 4, clicks of 0 and 1 against 1: nine of twelve are left.
    assert spec.metadata["counts"]["interactions"] == 40 * 9
    assert spec.metadata["dataset"] == "mine"
    assert set(spec.source_spec) > {"train", "validation_input", "test_target"}
    assert not (spec.folder / "given").exists()
    threshold = {} if low == 0 else {"rating_threshold": 4}
    ncf = prepare(raw, "ncf", test_negatives=9, min_user_ratings=5, **threshold)
    assert ncf.metadata["counts"]["interactions"] == 40 * 9
    latest = {
        line.split(",")[0]: line.split(",")[1] for line in text.splitlines()
    }  # the last row of each user
    users, items = (
        pq.read_table(ncf.folder / f"{name}_ids.parquet").to_pylist() for name in ("user", "item")
    )
    held_out = {
        str(users[row["user"]]["raw"]): str(items[row["item"]]["raw"])
        for row in read(ncf, "test")
        if row["label"]
    }
    assert held_out == latest


def without(content, section, name):
    return {**content, section: {key: value for key, value in content[section].items() if key != name}}


REFUSED = {
    "no label channel": (
        "wide_deep", without(RATED, "channel_spec", "label"), ["wide_deep", "'label'", "user: ['user']"],
    ),
    "no input": (
        "wide_deep", {**RATED, "channel_spec": {"label": ["label"]}}, ["wide_deep", "fills label"],
    ),
    "no item channel": ("ncf", without(RATED, "channel_spec", "item"), ["ncf", "'item'", "user: ['user']"]),
    "mappings of another model": ("vae_cf", RATED, ["vae_cf", "'validation_input'", "has train, test"]),
    "no length of the lists": ("ncf", {**RATED, "metadata": {}}, ["ncf", "test_samples_per_series"]),
    "no train": ("wide_deep", without(RATED, "source_spec", "train"), ["'train'", "has test"]),
    "a cardinality that is too small": (
        "ncf", {**RATED, "feature_spec": {**RATED["feature_spec"], "item": {"cardinality": 5}}},
        ["test.csv", "'item'", "0 .. 4"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "content", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(tmp_path, capsys, model, content, named):
    raw = raw_folder(tmp_path / "raw", content, {"train.csv": "0,0,1\n1,4,1\n", "test.csv": LISTS})
    assert prepare(raw, model) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    for part in ["feature_spec.yaml", *named] if "test.csv" not in named else named:
        assert part in complaint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_a_mapping_that_lacks_a_feature_names_both(tmp_path, capsys):
    raw = clicks(tmp_path / "raw")
    content = json.loads(json.dumps(CLICKS))
    content["source_spec"]["test"][1]["features"] = ["row", "when"]
    spec_families.save(raw, content)
    assert prepare(raw) == 2
    assert (
        "mapping 'test' lacks the feature 'display', which model wide_deep needs" in capsys.readouterr().err
    )


def test_options_are_checked(tmp_path, capsys):
    raw = clicks(tmp_path / "raw")
    assert prepare(raw, test_fraction=1) == 2
    assert "test_fraction must be between 0 and 1" in capsys.readouterr().err
    assert prepare(raw, test_fractoin=0.5) == 2
    assert "did you mean 'test_fraction'" in capsys.readouterr().err


def test_a_mapping_without_rows_is_refused(tmp_path, capsys):
    raw = clicks(tmp_path / "raw", rows=0)
    assert prepare(raw) == 2
    assert "no row is left for mapping 'train'" in capsys.readouterr().err
