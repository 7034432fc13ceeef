"""A table through the preprocess step, against a slow reference in plain Python; and what is refused."""

import csv
import json
import math
import random
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import nvtabular
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.preprocess.main import main
from components.preprocess.table import blocks
from recsys.feature_spec import FeatureSpec
from recsys.raw_data import RawTable

ML_100K = Path(__file__).parents[3] / "shared" / "data" / "ml-100k-ctr.csv"
HEADER = ["who", "what", "colour", "tags", "price", "row", "when", "stars"]
ROLES = {"label": "stars", "user": "who", "item": "what", "group": "who", "timestamp": "when"}
FEATURES = {"onehot": ["colour"], "multihot": ["tags"], "numerical": ["price", "row"]}
OPTIONS = {"label_threshold": 4, "numerical": "none"}
PADDING, NULL, UNKNOWN = 0, 1, 2


def table(rows=400, seed=0):
    """Rows with missing colours and prices, empty lists and repeated times; ``row`` numbers them."""
    rng = random.Random(seed)
    return [
        {
            "who": rng.randrange(1, 40),
            "what": f"i{min(rng.randrange(1, 30), rng.randrange(1, 60))}",
            "colour": rng.choice(["red", "green", "007", ""]),
            "tags": "|".join(rng.sample(["a", "b", "c", "d", "e"], rng.randrange(0, 4))),
            "price": rng.choice(["", round(rng.gauss(3, 2), 3)]),
            "row": number,
            "when": rng.randrange(1000, 1150),
            "stars": rng.randrange(1, 6),
        }
        for number in range(rows)
    ]


def save_csv(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, HEADER)
        writer.writeheader()
        writer.writerows(rows)


def raw_table(folder, rows, files=1, columns=ROLES, features=FEATURES):
    """A raw folder of csv files; ``rows`` may be their text."""
    folder.mkdir(parents=True)
    names = [f"{number}.csv" for number in range(files)]
    if isinstance(rows, str):
        (folder / names[0]).write_text(rows)
    else:
        for part, name in zip(np.array_split(rows, files), names, strict=True):
            save_csv(folder / name, part.tolist())
    RawTable(dataset="table", files=tuple(names), format="csv", columns=columns, features=features).write(
        folder
    )
    return folder


def prepare(raw, seed=1, model="wide_deep", **options):
    """Runs the step; returns the dataset folder."""
    target = raw.with_name(f"{raw.name}.dataset")
    flags = ["--raw", raw, "--model", model, "--seed", seed, "--options", json.dumps(options)]
    code = main([*map(str, flags), "--dataset", str(target), "--statistics", f"{target}.html"])
    return target if code == 0 else None


def read(dataset, mapping):
    """The rows of a mapping as dicts, in stored order."""
    (chunk,) = FeatureSpec.read(dataset).source_spec[mapping]
    return pa.concat_tables([pq.read_table(dataset / file) for file in chunk.files]).to_pylist()


def vocabulary(dataset, name):
    """Raw value -> code, from the saved workflow."""
    values = pq.read_table(dataset / "workflow" / "categories" / f"unique.{name}.parquet")[name].to_pylist()
    return {value: code for code, value in enumerate(values, start=3)}


def expected_split(rows, test_fraction=0.2, validation=0.0):
    """Row numbers of train, validation and test, oldest first."""
    order = sorted(range(len(rows)), key=lambda number: rows[number]["when"])  # stable
    train = len(rows) - round(len(rows) * test_fraction)
    held_out = round(train * validation)
    return order[: train - held_out], order[train - held_out : train], order[train:]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    rows = table()
    raw = raw_table(tmp_path_factory.mktemp("table") / "raw", rows, files=3)
    return rows, prepare(raw, **OPTIONS)


def test_every_value_equals_the_slow_reference(prepared):
    rows, dataset = prepared
    train, _, test = expected_split(rows)
    counts = {
        "who": Counter(rows[n]["who"] for n in train),
        "what": Counter(rows[n]["what"] for n in train),
        "colour": Counter(rows[n]["colour"] for n in train if rows[n]["colour"]),
        "tags": Counter(tag for n in train for tag in rows[n]["tags"].split("|") if tag),
    }
    codes = {name: vocabulary(dataset, name) for name in counts}
    for name, seen in counts.items():
        assert set(codes[name]) == set(seen)
        frequencies = [seen[value] for value in codes[name]]
        assert frequencies == sorted(frequencies, reverse=True)
    features = FeatureSpec.read(dataset).feature_spec
    assert {name: features[name]["cardinality"] for name in counts} == {
        name: len(seen) + 3 for name, seen in counts.items()
    }
    assert features["tags"]["max_hotness"] == max(len(row["tags"].split("|")) for row in rows)
    for mapping, expected in (("train", train), ("test", test)):
        found = {int(row["row"]): row for row in read(dataset, mapping)}
        assert sorted(found) == sorted(expected)
        for number, values in found.items():
            row = rows[number]
            assert values["stars"] == (row["stars"] >= 4)
            for name in ("who", "what"):
                assert values[name] == codes[name].get(row[name], UNKNOWN)
            assert values["colour"] == (
                codes["colour"].get(row["colour"], UNKNOWN) if row["colour"] else NULL
            )
            tags = [tag for tag in row["tags"].split("|") if tag]
            assert values["tags"] == [codes["tags"].get(tag, UNKNOWN) for tag in tags]
            assert values["price"] == pytest.approx(row["price"] or 0.0)
            assert values.get("who_group") == (None if mapping == "train" else row["who"])


def test_the_dataset_is_what_wide_and_deep_reads(prepared):
    _, dataset = prepared
    spec = FeatureSpec.read(dataset)
    assert spec.channel_spec == {
        "user": ("who",),
        "item": ("what",),
        "onehot_categorical": ("colour",),
        "multihot_categorical": ("tags",),
        "numerical": ("price", "row"),
        "label": ("stars",),
        "group": ("who_group",),
    }
    assert spec.source_spec["validation"] == spec.source_spec["test"]
    assert "who_group" not in spec.source_spec["train"][0].features
    types = {field.name: str(field.type) for field in pq.read_schema(dataset / "test/00000.parquet")}
    assert types == {
        **dict.fromkeys(["who", "what", "colour"], "int32"),
        **dict.fromkeys(["stars", "price", "row"], "float"),
        "tags": "list<element: int32>",
        "who_group": "int64",
    }
    for mapping in spec.source_spec:  # every value passes the checks of the reader
        spec.columns(mapping, spec.source_spec[mapping][0].features)


def test_training_rows_are_shuffled_by_the_seed_and_the_others_keep_their_order(prepared, tmp_path):
    rows, dataset = prepared
    _, _, test = expected_split(rows)
    assert [row["row"] for row in read(dataset, "test")] == sorted(test)
    order = [row["row"] for row in read(dataset, "train")]
    assert order != sorted(order)
    again = prepare(raw_table(tmp_path / "raw", rows), **OPTIONS)
    assert read(again, "train") == read(dataset, "train")
    other = prepare(tmp_path / "raw", seed=2, **OPTIONS)
    assert [row["row"] for row in read(other, "train")] != order


def test_blocks_of_any_size_give_the_same_dataset(prepared, tmp_path, monkeypatch):
    rows, dataset = prepared
    monkeypatch.setattr(blocks, "READ_BYTES", 256)  # a few rows, some of them without any tag
    assert prepare(raw_table(tmp_path / "raw", rows, files=2), **OPTIONS)
    other = tmp_path / "raw.dataset"
    for mapping in ("train", "test"):
        assert sorted(map(str, decoded(other, mapping))) == sorted(map(str, decoded(dataset, mapping)))


def decoded(dataset, mapping):
    """Rows with raw values for codes: which of two equally frequent values comes first is open."""
    raw = {
        name: {c: v for v, c in vocabulary(dataset, name).items()}
        for name in ("who", "what", "colour", "tags")
    }
    for row in read(dataset, mapping):
        row["tags"] = [raw["tags"].get(code) for code in row["tags"]]
        yield {name: raw[name].get(value, value) if name in raw and name != "tags" else value
               for name, value in row.items()}  # fmt: skip


def test_a_parquet_table_gives_the_same_dataset(prepared, tmp_path):
    rows, dataset = prepared
    raw = tmp_path / "raw"
    raw.mkdir()
    frame = pd.DataFrame(rows)
    frame["tags"] = [[tag for tag in row["tags"].split("|") if tag] or None for row in rows]
    frame["colour"] = pd.Categorical(frame["colour"].replace("", None))
    frame["price"] = frame["price"].replace("", None).astype(float)
    frame["when"] = pd.to_datetime(frame["when"], unit="s")
    frame.to_parquet(raw / "0.parquet")
    RawTable(dataset="table", files=("0.parquet",), format="parquet", columns=ROLES, features=FEATURES).write(
        raw
    )
    other = prepare(raw, **OPTIONS)
    for mapping in ("train", "test"):
        assert sorted(map(str, decoded(other, mapping))) == sorted(map(str, decoded(dataset, mapping)))


def test_numbers_are_normalized_by_the_training_rows_and_a_missing_one_is_the_mean(tmp_path):
    rows = table()
    dataset = prepare(raw_table(tmp_path / "raw", rows), label_threshold=4)
    train, _, test = expected_split(rows)
    known = [rows[n]["price"] for n in train if rows[n]["price"] != ""]
    mean, deviation = statistics.mean(known), statistics.stdev(known)
    place = {n: (n - statistics.mean(train)) / statistics.stdev(train) for n in range(len(rows))}
    for mapping, numbers in (("train", train), ("test", test)):
        found = sorted(read(dataset, mapping), key=lambda row: row["row"])
        for values, number in zip(found, sorted(numbers), strict=True):
            price = rows[number]["price"]
            assert values["row"] == pytest.approx(place[number], abs=1e-5)
            assert values["price"] == pytest.approx(
                0 if price == "" else (price - mean) / deviation, abs=1e-5
            )


def test_the_saved_workflow_repeats_the_transformation(prepared):
    rows, dataset = prepared
    workflow = nvtabular.Workflow.load(str(dataset / "workflow"))
    test = sorted(read(dataset, "test"), key=lambda row: row["row"])
    frame = pd.DataFrame([rows[int(values["row"])] for values in test])
    frame["colour"] = frame["colour"].replace("", None)
    frame["price"] = frame["price"].replace("", math.nan).astype(float)
    frame["tags"] = [[tag for tag in tags.split("|") if tag] for tags in frame["tags"]]
    served = workflow.transform(frame.drop(columns=["when", "stars"]))
    for name in ("who", "what", "colour", "row"):
        assert served[name].tolist() == [values[name] for values in test]
    assert [list(tags) for tags in served["tags"]] == [values["tags"] for values in test]


def test_rare_values_are_out_of_the_vocabulary(tmp_path):
    rows = table()
    dataset = prepare(raw_table(tmp_path / "raw", rows), min_frequency=15, **OPTIONS)
    seen = Counter(rows[n]["what"] for n in expected_split(rows)[0])
    frequent = {value for value, count in seen.items() if count >= 15}
    assert set(vocabulary(dataset, "what")) == frequent
    assert 0 < len(frequent) < len(seen)
    for values in read(dataset, "train"):
        assert (values["what"] == UNKNOWN) == (rows[int(values["row"])]["what"] not in frequent)


@pytest.mark.parametrize("fraction", [0.1, 0.35])
def test_validation_is_the_newest_part_of_the_training_rows(tmp_path, fraction):
    rows = table()
    raw = raw_table(tmp_path / "raw", rows)
    dataset = prepare(raw, validation=fraction, test_fraction=0.3, **OPTIONS)
    for mapping, numbers in zip(
        ("train", "validation", "test"), expected_split(rows, 0.3, fraction), strict=True
    ):
        assert sorted(row["row"] for row in read(dataset, mapping)) == sorted(numbers)


def test_a_random_split_depends_on_the_seed_only(tmp_path):
    rows = table()
    without_time = {**ROLES, "timestamp": None}
    parts = []
    for number, seed in enumerate([3, 3, 4]):
        raw = raw_table(tmp_path / f"raw{number}", rows, columns=without_time)
        parts.append([row["row"] for row in read(prepare(raw, seed=seed, **OPTIONS), "test")])
    assert parts[0] == parts[1] != parts[2]
    assert len(parts[0]) == 80
    assert parts[0] != list(range(320, 400))


def test_text_groups_become_numbers(tmp_path):
    rows = table()
    columns = {**ROLES, "group": "what", "user": None}
    dataset = prepare(raw_table(tmp_path / "raw", rows, columns=columns), **OPTIONS)
    pairs = {(row["what_group"], rows[int(row["row"])]["what"]) for row in read(dataset, "test")}
    assert len({code for code, _ in pairs}) == len({what for _, what in pairs}) == len(pairs)
    assert "user" not in FeatureSpec.read(dataset).channel_spec


def test_a_group_that_is_no_feature_keeps_its_name(tmp_path):
    columns = {**ROLES, "group": "when", "timestamp": "when"}
    dataset = prepare(raw_table(tmp_path / "raw", table(), columns=columns), **OPTIONS)
    spec = FeatureSpec.read(dataset)
    assert spec.channel_spec["group"] == ("when",)
    assert spec.columns("test", ["when"])["when"].min() >= 1000


KINDS = {
    "numbers": {"onehot": [], "multihot": [], "numerical": ["price"]},
    "lists": {"onehot": [], "multihot": ["tags"], "numerical": []},
    "categories": {"onehot": ["colour"], "multihot": [], "numerical": []},
}


@pytest.mark.parametrize("features", KINDS.values(), ids=KINDS.keys())
def test_one_kind_of_feature_is_enough(tmp_path, features):
    columns = dict.fromkeys(ROLES) | {"label": "stars"}
    dataset = prepare(raw_table(tmp_path / "raw", table(), columns=columns, features=features), **OPTIONS)
    (name,) = (name for names in features.values() for name in names)
    assert set(read(dataset, "train")[0]) == {"stars", name}
    assert set(FeatureSpec.read(dataset).channel_spec) == {
        "label",
        {"price": "numerical", "tags": "multihot_categorical", "colour": "onehot_categorical"}[name],
    }


@pytest.mark.parametrize("name", ["colour", "tags", "price"])
def test_a_column_without_any_value_is_refused_not_guessed(tmp_path, capsys, name):
    rows = [{**row, name: ""} for row in table(50)]
    assert prepare(raw_table(tmp_path / "raw", rows), label_threshold=4) is None
    assert f"column {name!r} has no value in the training rows" in capsys.readouterr().err


def test_a_value_that_only_the_test_has_is_out_of_the_vocabulary(tmp_path):
    rows = [{**row, "colour": "blue" if row["when"] > 1140 else row["colour"]} for row in table()]
    dataset = prepare(raw_table(tmp_path / "raw", rows), **OPTIONS)
    assert "blue" not in vocabulary(dataset, "colour")
    blue = [row["colour"] for row in read(dataset, "test") if rows[int(row["row"])]["colour"] == "blue"]
    assert blue == [UNKNOWN] * sum(row["when"] > 1140 for row in rows)


def test_every_missing_cell_is_counted_and_the_page_shows_it(prepared):
    rows, dataset = prepared
    counts = FeatureSpec.read(dataset).metadata["counts"]
    assert (counts["rows_read"], counts["train_rows"], counts["test_rows"]) == (400, 320, 80)
    assert {name: counts[f"missing_{name}"] for name in ("colour", "tags", "price")} == {
        name: sum(row[name] == "" for row in rows) for name in ("colour", "tags", "price")
    }
    _, _, test = expected_split(rows)
    assert counts["test_positives"] == sum(rows[n]["stars"] >= 4 for n in test)
    page = dataset.with_name(f"{dataset.name}.html").read_text()
    assert "out of vocabulary" in page
    assert "who_group" in page


HEAD = ",".join(HEADER) + "\n"
GOOD = "1,a,red,x|y,1.5,0,10,5\n2,b,,x,,1,11,1\n"
ROW = "1,a,red,x,1,0,10,5\n"


def changed(name, value):
    """A row with another cell."""
    cells = dict(zip(HEADER, ROW.strip().split(","), strict=True)) | {name: value}
    return ",".join(cells.values()) + "\n"


REFUSED = {
    "a label that is no number": (GOOD + changed("stars", "many"), OPTIONS, ["line 4", "stars", "'many'"]),
    "a missing label": (GOOD + changed("stars", ""), OPTIONS, ["line 4", "stars", "label"]),
    "labels that are not binary": (GOOD, {}, ["line 2", "stars", "'5'", "label_threshold"]),
    "a number that is text": (changed("price", "dear") + GOOD, OPTIONS, ["line 2", "price", "'dear'"]),
    "an infinite number": (GOOD + changed("price", "inf"), OPTIONS, ["line 4", "price", "finite"]),
    "a time that is none": (GOOD + changed("when", "noon"), OPTIONS, ["line 4", "'noon'", "ISO 8601"]),
    "a missing time": (changed("when", "") + GOOD, OPTIONS, ["line 2", "when", "timestamp"]),
    "a missing group": (GOOD + changed("who", ""), OPTIONS, ["line 4", "who", "group"]),
    "a line with too few cells": (GOOD + "1,a\n", OPTIONS, ["0.csv", "Expected 8 columns, got 2"]),
    "text that is not UTF-8": (GOOD + changed("colour", "\udcff"), OPTIONS, ["0.csv", "UTF8"]),
    "no row": ("", OPTIONS, ["0.csv", "no rows"]),
    "one row": (ROW, OPTIONS, ["1 rows cannot be split"]),
    "an unknown option": (GOOD, {"label_treshold": 4}, ["did you mean 'label_threshold'"]),
    "an unknown split": (GOOD, {"split": "leave_one_out"}, ["split", "time, random or null"]),
    "a test of all rows": (GOOD, {"test_fraction": 1}, ["test_fraction", "between 0 and 1"]),
    "validation in words": (GOOD, {"validation": "train"}, ["validation", "'train'"]),
    "no validation row": (GOOD, {**OPTIONS, "validation": 0.01}, ["2 rows cannot be split", "0.01"]),
}


@pytest.mark.parametrize(("text", "options", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(tmp_path, capsys, text, options, named):
    raw = tmp_path / "raw"
    raw_table(raw, HEAD)
    (raw / "0.csv").write_bytes((HEAD + text).encode(errors="surrogateescape"))
    assert prepare(raw, **options) is None
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    for part in named:
        assert part in complaint
    assert not raw.with_name("raw.dataset").exists()


HEADS = {
    "a missing column": (HEAD.replace("price", "cost"), ["no column 'price'", "cost"]),
    "a column twice": (HEAD.replace("row", "price"), ["several columns 'price'"]),
}


@pytest.mark.parametrize(("head", "named"), HEADS.values(), ids=HEADS.keys())
def test_a_header_is_refused_with(tmp_path, capsys, head, named):
    assert prepare(raw_table(tmp_path / "raw", head + GOOD), **OPTIONS) is None
    complaint = capsys.readouterr().err
    assert all(part in complaint for part in ["0.csv", *named])


def test_a_split_by_time_needs_a_timestamp(tmp_path, capsys):
    raw = raw_table(tmp_path / "raw", table(20), columns={**ROLES, "timestamp": None})
    assert prepare(raw, split="time", **OPTIONS) is None
    assert "split 'time' needs a timestamp" in capsys.readouterr().err


def test_a_table_is_not_prepared_for_ncf(tmp_path, capsys):
    assert prepare(raw_table(tmp_path / "raw", table(20)), model="ncf") is None
    assert "prepared for wide_deep" in capsys.readouterr().err


def test_movielens_100k(tmp_path):
    if not ML_100K.exists():
        pytest.skip(f"MISSING DATA: {ML_100K} is not there, so the documented example is not tested")
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / ML_100K.name).symlink_to(ML_100K)
    roles = {
        "label": "rating",
        "user": "user_id",
        "item": "item_id",
        "group": "user_id",
        "timestamp": "timestamp",
    }
    features = {
        "onehot": ["gender", "occupation", "release_year"],
        "multihot": ["genres"],
        "numerical": ["age"],
    }
    RawTable(dataset="table", files=(ML_100K.name,), format="csv", columns=roles, features=features).write(
        raw
    )
    dataset = prepare(raw, label_threshold=4)
    frame = pd.read_csv(ML_100K).sort_values("timestamp", kind="stable")
    train, test = frame[:80_000], frame[80_000:]
    spec = FeatureSpec.read(dataset)
    for name in ("user_id", "item_id", "gender", "occupation", "release_year"):
        assert spec.feature_spec[name]["cardinality"] == train[name].nunique() + 3
    columns = spec.columns("test", ["user_id", "user_id_group", "rating", "genres", "age"])
    in_order = test.sort_index()
    assert columns["user_id_group"].tolist() == in_order["user_id"].tolist()
    assert ((columns["user_id"] == UNKNOWN) == ~in_order["user_id"].isin(train["user_id"])).all()
    assert (columns["rating"] == (in_order["rating"] >= 4)).all()
    assert ((columns["genres"] >= 0).sum(1) == in_order["genres"].str.count(r"\|") + 1).all()
    expected = (in_order["age"] - train["age"].mean()) / train["age"].std()
    assert np.allclose(columns["age"], expected, atol=1e-5)
