"""The whole preprocess step through its command line: what it writes, and what it refuses."""

import hashlib
import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from components.preprocess.main import main
from components.preprocess.ratings import blocks as ratings
from components.preprocess.ratings import csv_files
from recsys.feature_spec import FeatureSpec
from recsys.raw_data import RawData, RawRatings

MOVIELENS = Path(__file__).parents[3] / "shared" / "data" / "ml-100k.zip"
COLUMNS = {"user": "user", "item": "item", "rating": "rating", "timestamp": "timestamp"}


def write_raw(folder: Path, content, columns=COLUMNS, **description) -> Path:
    """A raw folder as the download step leaves it, of text, bytes, a data frame or a list of these."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = content if isinstance(content, list) else [content]
    files = tuple(f"ratings{number}" for number in range(len(contents)))
    kind = "csv"
    for name, value in zip(files, contents, strict=True):
        if isinstance(value, pd.DataFrame):
            kind = "parquet"
            value.to_parquet(folder / name)
        else:
            (folder / name).write_bytes(value if isinstance(value, bytes) else value.encode())
    RawRatings(dataset="toy", files=files, format=kind, columns=columns, **description).write(folder)
    return folder


def run(raw: Path, target: Path, model="ncf", seed=0, **options) -> int:
    return main(
        ["--raw", str(raw), "--model", model, "--options", json.dumps(options), "--seed", str(seed)]
        + ["--dataset", str(target / "dataset"), "--statistics", str(target / "statistics.html")]
    )


def prepared(raw: Path, target: Path, model="ncf", seed=0, **options) -> tuple[FeatureSpec, dict]:
    """The checked dataset: its spec and mapping -> columns."""
    assert run(raw, target, model, seed, **options) == 0
    spec = FeatureSpec.read(target / "dataset")
    return spec, {
        mapping: spec.columns(mapping, chunks[0].features) for mapping, chunks in spec.source_spec.items()
    }


def pairs(columns) -> set[tuple[int, int]]:
    return set(zip(columns["user"].tolist(), columns["item"].tolist(), strict=True))


def id_map(target: Path, name: str) -> dict:
    table = pq.read_table(target / "dataset" / f"{name}_ids.parquet")
    assert table["id"].to_pylist() == list(range(len(table)))
    return dict(zip(table["raw"].to_pylist(), table["id"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def toy() -> pd.DataFrame:
    """60 users x 40 items, 5 to 25 ratings a user, some pairs rated twice, unordered."""
    rng = np.random.default_rng(7)
    users = np.repeat(np.arange(60), rng.integers(5, 26, 60))
    frame = pd.DataFrame({"user": 100 + users, "item": 3 * (rng.zipf(1.5, len(users)) % 40)})
    frame["rating"] = rng.integers(1, 11, len(frame)) / 2
    frame["timestamp"] = rng.permutation(len(frame)) + 1_000_000
    return frame.sample(frac=1, random_state=1)


@pytest.fixture(scope="module")
def toy_csv(toy, tmp_path_factory) -> Path:
    return write_raw(tmp_path_factory.mktemp("raw"), toy.to_csv(index=False))


def test_ncf_dataset_holds_what_leave_one_out_says(toy, toy_csv, tmp_path):
    spec, data = prepared(toy_csv, tmp_path, min_user_ratings=10, test_negatives=30)
    users, items = id_map(tmp_path, "user"), id_map(tmp_path, "item")

    kept = toy[toy.groupby("user")["user"].transform("size") >= 10]
    earliest = kept.sort_values("timestamp").drop_duplicates(["user", "item"])
    last = earliest.groupby("user").tail(1)
    counts = spec.metadata["counts"]
    assert counts["rows_read"] == len(toy)
    assert counts["rows_of_rare_users"] == len(toy) - len(kept)
    assert counts["duplicate_rows"] == len(kept) - len(earliest)
    assert counts["users"] == spec.cardinality("user") == len(users) == kept["user"].nunique()
    assert counts["items"] == spec.cardinality("item") == len(items) == kept["item"].nunique()
    frequency = kept["item"].value_counts()
    assert frequency[list(items)].is_monotonic_decreasing

    def encoded(frame):
        return set(zip(frame["user"].map(users), frame["item"].map(items), strict=True))

    test = {name: column.reshape(-1, 31) for name, column in data["test"].items()}
    assert spec.metadata["test_samples_per_series"] == 31
    assert set(zip(test["user"][:, 0].tolist(), test["item"][:, 0].tolist(), strict=True)) == encoded(last)
    assert pairs(data["train"]) == encoded(earliest.drop(last.index))
    assert len(data["train"]["user"]) == counts["train_positives"] == len(earliest) - len(last)
    assert (data["train"]["label"] == 1).all()
    assert (test["label"] == [1] + 30 * [0]).all()
    assert (test["user"] == test["user"][:, :1]).all()
    negatives = set(
        zip(test["user"][:, 1:].ravel().tolist(), test["item"][:, 1:].ravel().tolist(), strict=True)
    )
    assert not negatives & pairs(data["train"])
    assert spec.source_spec["validation"] == spec.source_spec["test"]


def test_ncf_can_validate_on_another_interaction(toy_csv, tmp_path):
    spec, data = prepared(
        toy_csv, tmp_path, min_user_ratings=10, test_negatives=5, validation="leave_one_out"
    )
    held_out = [pairs({k: v[::6] for k, v in data[mapping].items()}) for mapping in ("validation", "test")]
    assert not held_out[0] & held_out[1]
    assert not (held_out[0] | held_out[1]) & pairs(data["train"])
    assert len(held_out[0]) == spec.metadata["counts"]["validation_users"] > 0


def test_vae_cf_dataset_holds_what_held_out_users_say(toy, toy_csv, tmp_path):
    spec, data = prepared(toy_csv, tmp_path, "vae_cf", rating_threshold=2.5, heldout_users=0.2)
    users, items = id_map(tmp_path, "user"), id_map(tmp_path, "item")

    positive = toy[toy["rating"] >= 2.5]
    kept = positive[positive.groupby("user")["user"].transform("size") >= 5]
    groups = {
        name: {
            user for mapping in data if mapping.startswith(name) for user in data[mapping]["user"].tolist()
        }
        for name in ("train", "validation", "test")
    }
    held_out = int(0.2 * len(users))
    assert [len(groups[name]) for name in groups] == [len(users) - 2 * held_out, held_out, held_out]
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == kept["user"].nunique()

    of_training = kept["user"].map(users).isin(groups["train"])
    assert set(items) == set(kept[of_training]["item"])
    known = kept["item"].isin(set(items))
    counts = spec.metadata["counts"]
    assert counts["rows_below_rating_threshold"] == len(toy) - len(positive)
    assert counts["rows_of_unknown_items"] == (~known).sum()
    distinct = kept[known].drop_duplicates(["user", "item"])
    everything = set(zip(distinct["user"].map(users), distinct["item"].map(items), strict=True))
    assert set.union(*(pairs(columns) for columns in data.values())) == everything
    assert sum(len(columns["user"]) for columns in data.values()) == len(everything) == counts["interactions"]
    for name in ("validation", "test"):
        total = Counter(data[f"{name}_input"]["user"].tolist()) + Counter(
            data[f"{name}_target"]["user"].tolist()
        )
        assert Counter(data[f"{name}_target"]["user"].tolist()) == +Counter(
            {user: int(0.2 * n) if n >= 5 else 0 for user, n in total.items()}
        )
        assert (np.diff(data[f"{name}_input"]["user"]) >= 0).all()


def test_items_that_no_training_user_has_are_dropped_and_counted(tmp_path):
    # Every user rates items 0-5 and one item of their own: held-out users' own items are unknown.
    rows = [(user, item) for user in range(20) for item in (*range(6), 100 + user)]
    raw = write_raw(tmp_path / "raw", pd.DataFrame(rows, columns=["user", "item"]),
                    {**COLUMNS, "rating": None, "timestamp": None})  # fmt: skip
    spec, _ = prepared(raw, tmp_path, "vae_cf", heldout_users=3)
    assert spec.metadata["counts"]["rows_of_unknown_items"] == 6
    assert spec.cardinality("item") == 6 + 14


def test_a_threshold_that_empties_whole_blocks(monkeypatch, tmp_path):
    # NVTabular 23.8 undoes a filter that leaves nothing of a partition; here that is every second block.
    monkeypatch.setattr(ratings, "BLOCK_ROWS", 10)
    blocks = [
        pd.DataFrame(
            {"user": np.arange(10) % 2 + 7, "item": range(10), "rating": float(b % 2), "timestamp": b}
        )
        for b in range(6)
    ]
    spec, data = prepared(
        write_raw(tmp_path / "raw", blocks), tmp_path, min_user_ratings=1, rating_threshold=1
    )
    assert spec.metadata["counts"]["rows_below_rating_threshold"] == 30
    assert spec.metadata["counts"]["duplicate_rows"] == 20
    assert len(data["train"]["user"]) == 8


@pytest.mark.parametrize("model", ["ncf", "vae_cf"])
def test_dataset_ids_are_the_saved_workflow_s_codes_minus_three(model, toy, tmp_path):
    import nvtabular

    named = toy.assign(user="u" + toy["user"].astype(str))
    raw = write_raw(tmp_path / "raw", named.to_csv(index=False))
    options = {"heldout_users": 9} if model == "vae_cf" else {}
    options.update(rating_threshold=2.5, min_user_ratings=8, min_item_ratings=3)
    prepared(raw, tmp_path, model, **options)
    maps = {name: id_map(tmp_path, name) for name in ("user", "item")}
    moved = (tmp_path / "dataset").rename(tmp_path / "anywhere")
    workflow = nvtabular.Workflow.load(str(moved / "workflow"))

    codes = workflow.transform(named.reset_index(drop=True))
    positive = named[named["rating"] >= 2.5]
    assert len(codes) == len(positive)
    for name, ids in maps.items():
        expected = positive[name].map(ids).fillna(-1).astype(int) + 3
        assert (codes[name].to_numpy() == expected.to_numpy()).all()
        assert (expected == 2).any()  # out of the vocabulary


def test_equal_seeds_give_equal_bytes(toy_csv, tmp_path):
    def digests(target: str, **how) -> dict[str, str]:
        assert run(toy_csv, tmp_path / target, **how) == 0
        files = (tmp_path / target / "dataset").rglob("*")
        return {
            str(f.relative_to(tmp_path / target)): hashlib.sha256(f.read_bytes()).hexdigest()
            for f in files
            if f.suffix in (".parquet", ".yaml")
        }

    for model, options in (("ncf", {"min_user_ratings": 5}), ("vae_cf", {"heldout_users": 6})):
        one = digests(f"{model}1", model=model, seed=3, **options)
        assert len(one) >= 7
        assert digests(f"{model}2", model=model, seed=3, **options) == one
        other = digests(f"{model}3", model=model, seed=4, **options)
        assert other.keys() == one.keys()
        assert any(other[name] != one[name] for name in one if name.startswith("dataset/test"))


def test_statistics_page_and_executor_output(toy_csv, tmp_path):
    spec, _ = prepared(toy_csv, tmp_path, min_user_ratings=10)
    page = (tmp_path / "statistics.html").read_text()
    assert len(page.encode()) < 1_000_000
    assert "<script" not in page
    for key in ("rows_read", "rows_of_rare_users", "duplicate_rows", "train_positives"):
        assert f">{spec.metadata['counts'][key]:,}<" in page, key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "statistics.html"]
    assert not (tmp_path / "dataset" / "work").exists()


@pytest.mark.skipif(not MOVIELENS.exists(), reason=f"{MOVIELENS} is not here")
def test_movielens_100k_leave_one_out(tmp_path):
    content = zipfile.ZipFile(MOVIELENS).read("ml-100k/u.data")
    columns = {"user": 0, "item": 1, "rating": 2, "timestamp": 3}
    raw = write_raw(tmp_path / "raw", content, columns, separator="\t", header=False)
    spec, data = prepared(raw, tmp_path)
    assert (spec.cardinality("user"), spec.cardinality("item")) == (943, 1682)
    assert len(data["train"]["user"]) == 99_057
    assert len(data["test"]["user"]) == 943 * 101
    spec, data = prepared(raw, tmp_path, "vae_cf", heldout_users=96)
    assert spec.metadata["counts"]["rows_below_rating_threshold"] == 44_625
    assert [spec.metadata["counts"][f"{name}_users"] for name in ("validation", "test")] == [96, 96]


def test_separators_of_several_characters_survive_block_boundaries(monkeypatch, toy, tmp_path):
    monkeypatch.setattr(csv_files, "READ_BYTES", 101)  # a prime: boundaries fall on every place in a line
    content = toy.to_csv(index=False, header=False).replace(",", "::")
    columns = {"user": 0, "item": 1, "rating": 2, "timestamp": 3}
    raw = write_raw(tmp_path / "raw", content.rstrip("\n"), columns, separator="::", header=False)
    blocks = ratings.write_blocks(RawData.read(raw), raw, tmp_path / "blocks", None)
    stored = pd.concat(pd.read_parquet(file) for file in blocks.files)
    assert stored.astype(float).to_numpy().tolist() == toy.astype(float).to_numpy().tolist()


@pytest.mark.parametrize(
    ("content", "stored"),
    [
        # Types widen when a later row needs it.
        ("user,item,rating,timestamp\n1,5,3,10\nx,5,4,11.5\n", [("1", 5, 3.0, 10.0), ("x", 5, 4.0, 11.5)]),
        # ISO times, quotes, byte order mark, blank lines, Windows line ends.
        (
            '\ufeffuser,item,rating,timestamp\r\n"a,b",5,3,1970-01-01 00:00:01\r\n\r\nc,6,1,1970-01-02\r\n',
            [("a,b", 5, 3.0, 10**6), ("c", 6, 1.0, 86400 * 10**6)],
        ),
        # Columns in another order, and columns that nobody asked for, whatever they hold.
        ("title,timestamp,item,rating,user\ncaf\xe9,7,5,3,1\n".encode("latin-1"), [(1, 5, 3.0, 7)]),
        # Parquet: categories, whole floats, datetimes.
        (
            pd.DataFrame({"user": pd.Categorical(["a", "b"]), "item": [1.0, 2.0], "rating": [3, 4],
                          "timestamp": pd.to_datetime(["1970-01-01 00:00:01", "1970-01-01 00:00:02"])}),
            [("a", 1, 3.0, 10**6), ("b", 2, 4.0, 2 * 10**6)],
        ),
    ],
    ids=["widening", "text forms", "other columns", "parquet"],
)  # fmt: skip
def test_raw_values_are_read_as_meant(content, stored, tmp_path):
    raw = write_raw(tmp_path / "raw", content)
    blocks = ratings.write_blocks(RawData.read(raw), raw, tmp_path / "blocks", None)
    rows = [tuple(row.values()) for file in blocks.files for row in pq.read_table(file).to_pylist()]
    assert rows == stored


HEADER = "user,item,rating,timestamp\n"
ROW = pd.DataFrame({"user": [1], "item": [1], "rating": [1.0], "timestamp": [1]})
ROWS = "".join(
    f"{user},{item},{1 + (user + item) % 5},{user + item}\n" for user in range(8) for item in range(9)
)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("user,movie,rating,timestamp\n1,2,3,4\n", {}, "no column 'item' for the item; the file has: user,"),
        ("user,item,item,rating,timestamp\n1,2,2,3,4\n", {}, "several columns 'item'"),
        ("", {}, "the file is empty"),
        (HEADER, {}, "no ratings, only a header"),
        (HEADER.encode("utf-16"), {}, "not UTF-8"),
        (b"\xff\xe9" + HEADER.encode(), {}, "not UTF-8"),
        (HEADER.encode() + b"1,2,3,4\n1,caf\xe9,3,4\n", {}, "line 3: not UTF-8"),
        (HEADER + "1,2,3,4\n,2,3,4\n", {}, "line 3: the user is missing"),
        (HEADER + "1,NaN,3,4\n", {}, "line 2: the item is missing"),
        (HEADER + "1,2,nan,4\n", {}, "line 2: the rating is missing"),
        (HEADER + "1,2,inf,4\n", {}, "line 2: the rating is missing or infinite"),
        (HEADER + "1,2,3,\n", {}, "line 2: the timestamp is missing"),
        (HEADER + "1,2,3,4\n1,2,good,4\n", {}, "line 3: rating (column rating): invalid value 'good', n"),
        (HEADER + "1,2,3,4\n1,2,3,soon\n", {}, "line 3: timestamp (column timestamp): invalid value 'soon'"),
        (HEADER + "1,2,3,4\n1,2,3\n", {}, "line 3: Expected 4 columns, got 3"),
        (ROW.assign(user=np.nan), {}, "line 1: the user is missing"),
        (ROW.assign(user=1.5), {}, "Float value 1.5"),
        (ROW.assign(user=True), {}, "user column holds bool"),
        (HEADER + ROWS, {"rating_threshold": 6}, "all 72 ratings are below preparation rating_threshold 6"),
        (HEADER + ROWS, {}, "no user has 20 ratings; lower preparation min_user_ratings"),
        (HEADER + ROWS, {"min_user_ratings": 1, "min_item_ratings": 9}, "no item has 9 ratings"),
        (HEADER + ROWS, {"min_user_ratings": 1}, "of 8 users 0 have fewer than two interactions and 8"),
        (HEADER + "1,2,3,4\n2,2,3,4\n3,2,3,4\n", {"min_user_ratings": 1}, "no user can be tested"),
        (HEADER + "1,2,3,4\n1,3,3,4\n", {"min_user_ratings": 1}, "no user can be tested"),
        (HEADER + "1,2,3,4\n1,3,3,4\n2,4,3,4\n", {"min_user_ratings": 1, "validation": "leave_one_out"},
         "no user has the three interactions"),
        (HEADER + ROWS, {"negatives": 5}, "unknown key 'negatives' (did you mean 'test_negatives'?)"),
        (HEADER + ROWS, {"order": "first"}, "order must be one of last, random, not 'first'"),
        (HEADER + ROWS, {"test_negatives": 0}, "test_negatives must be at least 1"),
        (HEADER + ROWS, {"heldout_users": 5}, "heldout_users belongs to split 'heldout_users'"),
        (HEADER + ROWS, {"split": "heldout_users"}, "does not fit model ncf"),
    ],
)  # fmt: skip
def test_ncf_refuses_in_one_line(content, options, message, tmp_path, capsys):
    refused(write_raw(tmp_path / "raw", content), tmp_path, "ncf", options, message, capsys)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (HEADER + ROWS, {"rating_threshold": 1}, "heldout_users 10000 leaves no training user: 8 users"),
        (HEADER + ROWS, {"rating_threshold": 1, "heldout_users": 4}, "to a number from 1 to 3"),
        (HEADER + ROWS, {"rating_threshold": 1, "heldout_users": 0.1}, "leaves no held-out user"),
        (HEADER + ROWS, {"heldout_users": 2.5}, "heldout_users must be a whole number of users, or a"),
        (HEADER + ROWS, {"heldout_fraction": 1.0}, "heldout_fraction must be between 0 and 1"),
        (HEADER + ROWS, {"rating_threshold": 1, "heldout_users": 2, "heldout_fraction": 0.05}, "nothing can"),
        (HEADER + ROWS[:72], {"rating_threshold": 1, "min_user_ratings": 1}, "needs at least 3"),
        (HEADER + ROWS, {"heldout_users": 1}, "no user has 5 ratings of at least 4"),
    ],
)  # fmt: skip
def test_vae_cf_refuses_in_one_line(content, options, message, tmp_path, capsys):
    refused(write_raw(tmp_path / "raw", content), tmp_path, "vae_cf", options, message, capsys)


def refused(raw, tmp_path, model, options, message, capsys) -> None:
    assert run(raw, tmp_path / "out", model, **options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error
    assert not list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else True


def test_not_parquet_and_a_negative_seed_are_refused(toy_csv, tmp_path, capsys):
    raw = write_raw(
        tmp_path / "raw",
        pd.DataFrame({"user": [1], "item": [1]}),
        {**COLUMNS, "rating": None, "timestamp": None},
    )
    (raw / "ratings0").write_text("not parquet")
    refused(raw, tmp_path, "ncf", {}, "cannot be read as Parquet", capsys)
    assert run(toy_csv, tmp_path / "out", seed=-1) == 2
    assert "--seed -1" in capsys.readouterr().err


def test_users_without_a_negative_or_with_one_interaction_stay_in_train(tmp_path):
    # User 1 has all four items, user 2 one, users 3 and 4 two.
    text = HEADER + "1,1,1,1\n1,2,1,2\n1,3,1,3\n1,4,1,4\n2,1,1,1\n3,1,1,1\n3,2,1,2\n4,3,1,1\n4,1,1,2\n"
    spec, data = prepared(write_raw(tmp_path / "raw", text), tmp_path, min_user_ratings=1, test_negatives=7)
    users = id_map(tmp_path, "user")
    counts = spec.metadata["counts"]
    assert (counts["users_with_every_item"], counts["users_with_fewer_than_two_interactions"]) == (1, 1)
    assert set(data["test"]["user"].tolist()) == {users[3], users[4]}
    assert Counter(data["train"]["user"].tolist()) == {users[1]: 4, users[2]: 1, users[3]: 1, users[4]: 1}


def test_help_does_not_wait_for_nvtabular():
    code = (
        "import sys, components.preprocess.main as step; assert not {'nvtabular', 'dask'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
