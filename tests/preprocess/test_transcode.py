"""csv with a feature spec -> Parquet: equal values for every family of specs, and what is refused."""

import csv
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import spec_families
import yaml

from recsys import generate_csv, transcode
from recsys.feature_spec import FeatureSpec

FAMILIES = spec_families.families()


def generate(folder, content, rows=1000, seed=0, signal=0.0):
    """Generated csv files and their spec; returns their folder."""
    path = spec_families.save(folder / "spec", content)
    flags = ["--spec", path, "--output", folder / "csv", "--rows", rows, "--seed", seed, "--signal", signal]
    assert generate_csv.main([*map(str, flags)]) == 0
    return folder / "csv"


def run(source, target, chunk_size=100, minimum_partitions=8, labels="binary"):
    """Exit code of the transcoder."""
    flags = ["--input", source, "--output", target, "--chunk_size", chunk_size, "--labels", labels]
    return transcode.main([*map(str, flags), "--minimum_partitions", str(minimum_partitions)])


def written(folder, chunks):
    """Values of a mapping's csv files, read with Python's csv module: feature -> list."""
    values = {}
    for chunk in chunks:
        lines = [line for file in chunk.files for line in csv.reader(open(folder / file))]  # noqa: SIM115
        columns = zip(*lines, strict=True)
        values |= {
            name: [json.loads(cell) for cell in column]
            for name, column in zip(chunk.features, columns, strict=True)
        }
    return values


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_generated_transcoded_and_read_back_equal(tmp_path, name):
    source = generate(tmp_path, FAMILIES[name])
    assert run(source, tmp_path / "out") == 0
    before, after = FeatureSpec.read(source), FeatureSpec.read(tmp_path / "out")
    assert after.channel_spec == before.channel_spec
    assert after.metadata == before.metadata
    assert after.source_spec["validation"] == after.source_spec["test"]
    for mapping, chunks in before.source_spec.items():
        (chunk,) = after.source_spec[mapping]
        assert len(chunk.files) == 10
        expected = written(source, chunks)
        for feature, values in after.columns(mapping, chunk.features).items():
            if values.ndim == 2:
                assert [[id for id in row if id >= 0] for row in values.tolist()] == expected[feature]
                assert values.shape[1] == before.feature_spec[feature]["max_hotness"]
            else:
                assert values.tolist() == np.array(expected[feature], values.dtype).tolist()
            entry = after.feature_spec[feature]
            assert entry["dtype"] == str(values.dtype)
            assert entry.get("cardinality") == before.feature_spec[feature].get("cardinality")


def test_generated_values_are_legal_and_depend_on_the_seed(tmp_path):
    folders = [
        generate(tmp_path / str(n), FAMILIES["other_hotness"], seed=seed) for n, seed in enumerate([1, 1, 2])
    ]
    for file in ("train_0.csv", "labels.csv", "test.csv"):
        first, same, other = ((folder / file).read_bytes() for folder in folders)
        assert first == same != other
    values = written(folders[0], FeatureSpec.read(folders[0]).source_spec["test"])
    assert set(values["clicked"]) == {0, 1}
    assert {len(ids) for ids in values["entities"]} == set(range(11))
    assert set(range(4)) == set(values["platform"])
    assert 0 <= min(values["ad_ctr"]) < max(values["ad_ctr"]) < 1
    sizes = np.bincount(values["display_id"])
    assert values["display_id"] == sorted(values["display_id"])
    assert 2 <= sizes[:-1].min() <= sizes.max() <= 12


def test_a_signal_plants_the_same_pattern_in_every_mapping_and_none_by_default(tmp_path):
    def of_each_id(folder, mapping):
        values = written(folder, FeatureSpec.read(folder).source_spec[mapping])
        ids, labels = np.array(values["platform"]), np.array(values["clicked"])
        return np.array([labels[ids == id].mean() for id in range(4)])

    content = FAMILIES["base"]
    signal, noise = (
        generate(tmp_path / "a", content, 8000, signal=6.0),
        generate(tmp_path / "b", content, 8000),
    )
    train, test = of_each_id(signal, "train"), of_each_id(signal, "test")
    assert np.ptp(train) > 0.08
    assert np.abs(train - test).max() < 0.04
    assert np.ptp(of_each_id(noise, "train")) < 0.06


INTERACTIONS = {
    "feature_spec": {"user": None, "item": {"cardinality": "auto"}, "label": None},
    "source_spec": {
        "train": [{"type": "csv", "features": ["user", "item", "label"], "files": ["train.csv"]}],
        "test": [{"type": "csv", "features": ["label", "user", "item"], "files": ["test.csv"]}],
    },
    "channel_spec": {"user": ["user"], "item": ["item"], "label": ["label"]},
}


def interactions(folder, train="0,1,1\n1,2,0\n", test="1,1,7\n0,3,0\n", **changes):
    spec_families.save(folder, {**INTERACTIONS, **changes})
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text(test)
    return folder


def test_cardinalities_that_are_auto_or_absent_are_found_over_all_mappings(tmp_path):
    assert run(interactions(tmp_path / "in"), tmp_path / "out", minimum_partitions=1) == 0
    spec = FeatureSpec.read(tmp_path / "out")
    assert (spec.cardinality("user"), spec.cardinality("item")) == (4, 8)
    assert spec.columns("test", ["item", "user"])["item"].tolist() == [7, 0]


def test_a_declared_cardinality_smaller_than_found_is_refused(tmp_path, capsys):
    features = {**INTERACTIONS["feature_spec"], "item": {"cardinality": 7}}
    source = interactions(tmp_path / "in", feature_spec=features)
    assert run(source, tmp_path / "out", minimum_partitions=1) == 2
    complaint = capsys.readouterr().err
    for part in ("test.csv: rows 1 to 2", "'item'", "0 to 7", "allows 0 .. 6", "mapping 'test'"):
        assert part in complaint


def test_ratings_pass_where_labels_may_be_any_number(tmp_path, capsys):
    source = interactions(tmp_path / "in", train="0,1,3.5\n")
    assert run(source, tmp_path / "a", minimum_partitions=1) == 2
    assert "'label' has the label 3.5; allowed: 0 and 1" in capsys.readouterr().err
    assert run(source, tmp_path / "b", minimum_partitions=1, labels="any") == 0
    assert FeatureSpec.read(tmp_path / "b").columns("train", ["label"])["label"].tolist() == [3.5]


def test_parquet_in_other_types_and_long_rows_come_out_in_the_models_types(tmp_path):
    folder = tmp_path / "in"
    source = {
        "train": [
            {"type": "parquet", "features": ["id", "tags", "x", "y"], "files": ["a.parquet", "b.parquet"]}
        ]
    }
    features = {"id": {"cardinality": 9}, "tags": {"cardinality": 5, "max_hotness": 2}, "x": None, "y": None}
    channels = {
        "onehot_categorical": ["id"],
        "multihot_categorical": ["tags"],
        "numerical": ["x"],
        "label": ["y"],
    }
    spec_families.save(folder, {"feature_spec": features, "source_spec": source, "channel_spec": channels})
    for name, start in (("a", 0), ("b", 4)):
        columns = {
            "id": pa.array(range(start, start + 4), "int64"),
            "tags": pa.array([[1, 4], [], [0], [2]], pa.large_list(pa.int64())),
            "x": pa.array([0.1, 2, 3, 4], "float64"),
            "y": pa.array([0, 1, 1, 0], "int8"),
        }
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=3)
    assert run(folder, tmp_path / "out", chunk_size=5, minimum_partitions=2) == 0
    schema = pq.read_schema(tmp_path / "out/train/00000.parquet")
    assert [str(kind) for kind in schema.types] == ["int32", "list<element: int32>", "float", "float"]
    values = FeatureSpec.read(tmp_path / "out").columns("train", ["id", "tags"])
    assert values["id"].tolist() == list(range(8))
    assert values["tags"].tolist() == [[1, 4], [-1, -1], [0, -1], [2, -1]] * 2


ROWS = {"ids": "0,3\n1,0\n2,1\n", "rest": '"[0, 3]",0.5,1\n[],1,0\n[2],-2,1\n'}
RULES = {
    "feature_spec": {
        "user": {"cardinality": 3},
        "item": {"cardinality": 4},
        "tags": {"cardinality": 4, "max_hotness": 2},
        "price": None,
        "label": {"dtype": "int8"},
    },
    "source_spec": {
        "train": [
            {"type": "csv", "features": ["user", "item"], "files": ["ids.csv"]},
            {"type": "csv", "features": ["tags", "price", "label"], "files": ["rest.csv"]},
        ]
    },
    "channel_spec": {
        "user": ["user"],
        "item": ["item"],
        "multihot_categorical": ["tags"],
        "numerical": ["price"],
        "label": ["label"],
    },
}
FAULTS = {
    "an id as large as the cardinality": ("ids", "0,3", "0,4", ["rows 1 to 3", "'item'", "0 .. 3"]),
    "a negative id": ("ids", "0,3", "0,-1", ["'item'", "-1", "0 .. 3"]),
    "an id that is no integer": ("ids", "0,3", "0,1.5", ["ids.csv", "'item'", "Row #1", "'1.5'"]),
    "an id that is text": ("ids", "2,1", "two,1", ["'user'", "Row #3", "'two'"]),
    "a missing id": ("ids", "2,1", ",1", ["'user'", "1 missing value"]),
    "a header line": ("ids", "0,3", "user,item", ["'user'", "no header"]),
    "a cell too many": ("ids", "1,0", "1,0,0", ["ids.csv", "Expected 2 columns, got 3"]),
    "a list with an unknown id": ("rest", "[0, 3]", "[0, 4]", ["'tags'", "0 to 4", "0 .. 3"]),
    "a list that is too long": ("rest", "[0, 3]", "[0, 3, 1]", ["'tags'", "list of 3 values", "allows 2"]),
    "a list without brackets": ("rest", "[2]", "2", ["'tags'", "'2'", "[244, 155, 120]"]),
    "a list that is not closed": ("rest", "[2]", "[2", ["'tags'", "'[2'"]),
    "a list of text": ("rest", "[2]", "[x]", ["'tags'", "'[x]'"]),
    "a missing list": ("rest", "[2]", "", ["'tags'", "''", "or []"]),
    "an infinite number": ("rest", "-2", "inf", ["'price'", "NaN or infinite"]),
    "a number beyond float32": ("rest", "-2", "1e39", ["'price'", "beyond the range of float32"]),
    "a missing number": ("rest", "-2", "", ["'price'", "1 missing value"]),
    "a label that is 2": ("rest", "1,0", "1,2", ["'label'", "label 2", "0 and 1"]),
    "a label that does not fit its dtype": ("rest", "1,0", "1,0.5", ["'label'", "int8", "'0.5'"]),
    "a chunk that is longer": ("rest", ",-2,1\n", ",-2,1\n[],0,0\n", ["ids.csv: 3 rows; rest.csv: 4"]),
    "a chunk that is shorter": ("rest", "[2],-2,1\n", "", ["differ in length", "3 rows; rest.csv: 2"]),
    "an empty file": ("ids", ROWS["ids"], "", ["ids.csv", "Empty CSV"]),
}  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "named"), FAULTS.values(), ids=FAULTS.keys())
def test_refuses_and_publishes_nothing(tmp_path, capsys, file, old, new, named):
    folder = tmp_path / "in"
    spec_families.save(folder, RULES)
    for name, text in ROWS.items():
        assert name != file or text.count(old) >= 1
        (folder / f"{name}.csv").write_text(text.replace(old, new, 1) if name == file else text)
    assert run(folder, tmp_path / "out", minimum_partitions=1) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("python -m recsys.transcode: ")
    assert complaint.count("\n") == 1
    for part in named:
        assert part in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_rows_beyond_a_block_are_found_and_lengths_compared_to_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(transcode, "READ_BYTES", 64)
    folder = tmp_path / "in"
    spec_families.save(folder, RULES)
    (folder / "ids.csv").write_text("0,3\n" * 500)
    (folder / "rest.csv").write_text("[0],0.5,1\n" * 500)
    assert run(folder, tmp_path / "out") == 2
    assert "fills 5 files of 100 rows, --minimum_partitions asks for 8" in capsys.readouterr().err
    assert run(folder, tmp_path / "out", minimum_partitions=5) == 0
    (folder / "rest.csv").write_text("[0],0.5,1\n" * 700)
    assert run(folder, tmp_path / "longer", minimum_partitions=5) == 2
    assert "ids.csv: 500 rows; rest.csv: 700 rows" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_an_output_that_exists_is_left_alone(tmp_path, capsys):
    folder = interactions(tmp_path / "in")
    before = sorted(path.name for path in folder.iterdir())
    assert run(folder, folder) == 2
    assert "exists already" in capsys.readouterr().err
    path = folder / "feature_spec.yaml"
    assert generate_csv.main(["--spec", str(path), "--output", str(folder), "--rows", "3"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("flag", ["--chunk_size", "--minimum_partitions"])
def test_sizes_must_be_positive(tmp_path, capsys, flag):
    folder = interactions(tmp_path / "in")
    assert transcode.main(["--input", str(folder), "--output", str(tmp_path / "out"), flag, "0"]) == 2
    assert f"{flag} 0: must be 1 or more" in capsys.readouterr().err


def test_only_csv_within_the_folder_is_generated(tmp_path, capsys):
    for place, value, named in (("type", "parquet", "only csv"), ("files", ["../x.csv"], "outside")):
        content = json.loads(json.dumps(INTERACTIONS))
        content["source_spec"]["train"][0][place] = value
        path = spec_families.save(tmp_path / place, content)
        assert generate_csv.main(["--spec", str(path), "--output", str(tmp_path / "out"), "--rows", "3"]) == 2
        assert named in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_both_programs_run_from_the_command_line(tmp_path):
    path = spec_families.save(tmp_path, FAMILIES["base"])
    for program, flags in (
        ("generate_csv", ["--spec", path, "--output", tmp_path / "csv", "--rows", "50"]),
        (
            "transcode",
            ["--input", tmp_path / "csv", "--output", tmp_path / "out", "--minimum_partitions", "1"],
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-m", f"recsys.{program}", *map(str, flags)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("feature_spec.yaml written\n")
    wrong = subprocess.run(
        [sys.executable, "-m", "recsys.transcode", "--input", tmp_path / "none", "--output", tmp_path / "x"],
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert yaml.safe_load((tmp_path / "out" / "feature_spec.yaml").read_text())["metadata"] == {
        "dataset": "generated"
    }
