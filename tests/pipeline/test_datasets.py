"""Datasets without a server: bring-your-own files, planted structure, and the raw-data contract."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from components.download.main import dataset_names, main
from recsys.datasets import synthetic
from recsys.raw_data import RawData, RawRatings
from recsys.step import UserError

ML_100K = Path(__file__).parents[3] / "shared" / "data" / "ml-100k.csv"
BY_POSITION = {"header": False, "user": 0, "item": 1, "rating": None, "timestamp": None}
HEADED = "user,item,rating,timestamp\nann,b-1,4.5,10\nbob,b-2,3,11\n"


def run(
    tmp_path: Path, source: object, dataset: str = "interactions", seed: int = 0, **options: object
) -> int:
    raw, about = tmp_path / "out" / "raw", tmp_path / "out" / "about.md"
    argv = [
        "--dataset",
        dataset,
        "--source",
        str(source),
        "--options",
        json.dumps(options),
        "--seed",
        str(seed),
    ]
    return main([*argv, "--raw", str(raw), "--about", str(about)])


def written(tmp_path: Path) -> RawRatings:
    return RawData.read(tmp_path / "out" / "raw")


def file(tmp_path: Path, content: str | bytes, name: str = "data.csv") -> Path:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_every_dataset_is_found_by_its_name():
    sizes = ("100k", "1m", "10m", "20m", "25m", "32m")
    movielens = [f"movielens-{size}" for size in sizes]
    outbrain = ["outbrain", "outbrain_synthetic"]
    assert dataset_names() == ["feature_spec", "interactions", *movielens, *outbrain, "synthetic", "table"]


# ---- interactions


def test_csv_with_string_ids_travels_unchanged_and_is_no_symbolic_link(tmp_path):
    real = file(tmp_path, HEADED, "real.csv")
    (tmp_path / "data.csv").symlink_to(real)
    assert run(tmp_path, tmp_path / "data.csv") == 0
    raw = written(tmp_path)
    (path,) = raw.paths(tmp_path / "out" / "raw")
    assert path.read_text() == HEADED
    assert not path.is_symlink()
    assert (raw.format, raw.separator, raw.header) == ("csv", ",", True)
    assert raw.columns == {"user": "user", "item": "item", "rating": "rating", "timestamp": "timestamp"}


def test_tab_separated_file_without_header_by_position(tmp_path):
    path = file(tmp_path, "x\t7\tann\n", "data.tsv")
    # KFP hands every number over as a double.
    assert run(tmp_path, f"file://{path}", header=False, user=2.0, item=1, rating=None, timestamp=None) == 0
    raw = written(tmp_path)
    assert (raw.separator, raw.header) == ("\t", False)
    assert raw.columns == {"user": 2, "item": 1, "rating": None, "timestamp": None}


def test_quoted_header_byte_order_mark_and_long_separator(tmp_path):
    assert (
        run(
            tmp_path,
            file(tmp_path, '\ufeff"user","item, id"\n1,2\n'),
            item="item, id",
            rating=None,
            timestamp=None,
        )
        == 0
    )
    path = file(tmp_path, "user::item::rating::timestamp\n1::2::3::4\n")
    assert run(tmp_path, path, separator="::") == 0
    assert written(tmp_path).separator == "::"


def test_folder_of_files_in_the_order_of_their_names(tmp_path):
    for name in ("part-1.csv", "part-0.csv", "_SUCCESS", ".part-0.csv.crc"):
        file(tmp_path, HEADED if name.endswith("csv") else "", f"data/{name}")
    assert run(tmp_path, tmp_path / "data") == 0
    assert written(tmp_path).files == ("part-0.csv", "part-1.csv")


def test_copy_where_a_hard_link_is_impossible(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("other disk")

    monkeypatch.setattr(os, "link", refuse)
    assert run(tmp_path, file(tmp_path, HEADED)) == 0
    assert written(tmp_path).paths(tmp_path / "out" / "raw")[0].read_text() == HEADED


def test_parquet_columns_are_left_to_preprocess(tmp_path):
    assert run(tmp_path, file(tmp_path, b"PAR1" + bytes(20) + b"PAR1", "data.parquet"), user="who") == 0
    raw = written(tmp_path)
    assert (raw.format, raw.columns["user"]) == ("parquet", "who")


@pytest.mark.skipif(not ML_100K.exists(), reason=f"no {ML_100K.name} in the shared data folder")
def test_real_movielens_csv(tmp_path):
    assert run(tmp_path, ML_100K, user="userId", item="movieId") == 0
    assert written(tmp_path).columns["user"] == "userId"


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("userId,movieId,rating,timestamp\n1,2,3,4\n", {}, 'set --options {"user": "userId"}'),
        ("user,item,Rating\n1,2,3\n", {}, '{"rating": "Rating"}, or null where the data has none'),
        ("user,item\n1,2\n", {"item": "itme"}, "no column 'itme' for item; the columns, separated by"),
        ("user\titem\n1\t2\n", {}, "separated by ',', are user item"),
        ("1,2\n", {"header": False}, "user must be a position, as in {"),
        ("1,2\n", BY_POSITION | {"item": 5}, "item is position 5, the first line has 2 fields"),
        (HEADED, {"user": 0}, "user must be a column name (header is true)"),
        (HEADED, {"user": "item"}, "user and item are both column 'item'"),
        (HEADED, {"user": None}, "user must be text or a whole number, not None"),
        (HEADED, {"separatr": ","}, "unknown key 'separatr' (did you mean 'separator'?)"),
        (HEADED, {"separator": ""}, "separator '' cannot"),
        (HEADED, {"format": "json"}, 'format must be "csv", "parquet" or null'),
        (HEADED, {"format": "parquet"}, "not a Parquet file"),
        ("", {}, "the file is empty"),
        ("\n\n", {}, "the file is empty"),
        ("user,item,rating,timestamp\n\n", {}, "a header and no rows"),
        ("usér,item\n1,2\n".encode("latin-1"), {}, "not UTF-8 (byte 2 is 0xe9)"),
        (b"PK\x03\x04\x00\x00", {}, "not text"),
    ],
)  # fmt: skip
def test_wrong_csv_is_one_line(tmp_path, capsys, content, options, says):
    assert run(tmp_path, file(tmp_path, content), **options) == 2
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1
    assert list(tmp_path.glob("out/*")) == []


@pytest.mark.parametrize(
    ("files", "source", "says"),
    [
        ({}, "none.csv", "no such file or folder"),
        ({"data.csv.gz": "x"}, "data.csv.gz", "unpack them first"),
        ({"data/notes.md": "x"}, "data", "holds no file named *.csv"),
        ({"data/a.csv": HEADED, "data/a.parquet": "x"}, "data", 'set "format"'),
        ({"data/a.csv": HEADED, "data/b.csv": "user,item\n1,2\n"}, "data", "b.csv: no column 'rating'"),
        ({"data/a.csv": HEADED, "data/b.csv": "x," + HEADED}, "data", "differ from those of"),
        ({"a.parquet": "PAR1 and then nothing"}, "a.parquet", "cut off"),
        ({"a.parquet": ""}, "a.parquet", "the file is empty"),
    ],
)
def test_wrong_files_are_one_line(tmp_path, capsys, files, source, says):
    for name, content in files.items():
        file(tmp_path, content, name)
    assert run(tmp_path, tmp_path / source) == 2
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1
    assert list(tmp_path.glob("out/*")) == []


# ---- synthetic


def load(tmp_path: Path) -> np.ndarray:
    """The rows (user, item, rating, timestamp) that the step wrote."""
    raw = written(tmp_path)
    return np.loadtxt(raw.paths(tmp_path / "out" / "raw")[0], np.int64, delimiter=raw.separator, skiprows=1)


def test_synthetic_rows_are_what_the_options_say_and_the_seed_decides(tmp_path):
    options = {"users": 200, "items": 300, "interactions_per_user": 30, "clusters": 7}
    assert run(tmp_path, "", "synthetic", seed=5, **options) == 0
    rows, first = load(tmp_path), written(tmp_path).source["sha256"]
    user, item, rating, timestamp = rows.T
    assert set(user) == set(range(1, 201))
    assert (item.min(), item.max()) == (1, 300)
    assert set(rating) == {1, 2, 3, 4, 5}
    assert len(np.unique(rows[:, :2], axis=0)) == len(rows)
    counts = np.bincount(user)[1:]
    assert (counts.min(), counts.max()) == (15, 45)
    same = user[1:] == user[:-1]
    assert (np.diff(timestamp)[same] > 0).all()
    assert same.sum() == len(rows) - 200
    assert run(tmp_path, "", "synthetic", seed=5, **options) == 0
    assert written(tmp_path).source["sha256"] == first
    assert run(tmp_path, "", "synthetic", seed=6, **options) == 0
    assert written(tmp_path).source["sha256"] != first


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_synthetic_edge_of_what_fits(tmp_path, noise):
    options = {"users": 3, "items": 12, "interactions_per_user": 8, "clusters": 2, "noise": noise}
    assert run(tmp_path, "", "synthetic", **options) == 0
    rows = load(tmp_path)
    assert len(np.unique(rows[:, :2], axis=0)) == len(rows)
    assert np.bincount(rows[:, 0])[1:].min() >= 4


def test_synthetic_with_one_cluster_one_user_one_item(tmp_path):
    options = {"users": 1, "items": 1, "interactions_per_user": 1, "clusters": 1}
    assert run(tmp_path, "", "synthetic", **options) == 0
    assert (
        (tmp_path / "out" / "raw" / "ratings.csv").read_text().startswith("user,item,rating,timestamp\n1,1,")
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"users": 0}, "users must be 1 or more"),
        ({"noise": 1.5}, "noise must be in [0, 1]"),
        ({"popularity": -1.0}, "popularity must be 0 or more"),
        ({"items": 10}, "clusters 20 is more than items 10"),
        ({"items": 59}, "needs 60 items"),
        ({"users": "many"}, "users must be a whole number"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_wrong_synthetic_sizes_are_one_line(tmp_path, capsys, options, says):
    assert run(tmp_path, "", "synthetic", **options) == 2
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1


@pytest.fixture(scope="module")
def planted():
    """Default synthetic data: 0-based user, item, rating sorted by user and time, and the true clusters."""
    options = synthetic.Options()
    user, item, rating, timestamp = (
        np.concatenate(part) for part in zip(*synthetic.generate(options, 1), strict=True)
    )
    order = np.lexsort((timestamp, user))
    user_cluster, item_cluster, _ = synthetic.plan(options, np.random.default_rng(1))
    same = user_cluster[:, None] == item_cluster[None]
    return user[order] - 1, item[order] - 1, rating[order], same


def similarity(interactions: np.ndarray) -> np.ndarray:
    """Cosine similarity of items, float32 (items, items), zero diagonal: what a simple model finds out."""
    together = interactions.T @ interactions
    norm = np.sqrt(np.maximum(together.diagonal(), 1))
    together /= norm * norm[:, None]
    np.fill_diagonal(together, 0)
    return together


def test_planted_structure_by_leave_one_out(planted):
    """HR@10 among 100 negatives, as NCF is judged: oracle and item neighbours far above popularity."""
    user, item, _, same = planted
    last = np.append(user[1:] != user[:-1], True)
    train = np.zeros(same.shape, np.float32)
    train[user[~last], item[~last]] = 1
    rng = np.random.default_rng(0)
    negatives = rng.integers(0, same.shape[1], (len(same), 100))
    for _ in range(20):
        seen = np.take_along_axis(train, negatives, 1) > 0
        negatives[seen] = rng.integers(0, same.shape[1], seen.sum())
    negatives[negatives == item[last][:, None]] = -1

    def hit_rate(scores: np.ndarray) -> float:
        positive = np.take_along_axis(scores, item[last][:, None], 1)
        others = np.where(negatives >= 0, np.take_along_axis(scores, negatives, 1), -np.inf)
        return float(((others >= positive).sum(1) < 10).mean())

    popularity = np.broadcast_to(train.sum(0), train.shape)
    assert 0.08 < hit_rate(popularity) < 0.16
    assert 0.6 < hit_rate(same * 1e6 + popularity) < 0.8
    assert hit_rate(train @ similarity(train)) > 0.6


def test_planted_structure_by_fold_in(planted):
    """NDCG@100 of 500 held-out users with 80 % of their likes given, as VAE-CF is judged."""
    user, item, rating, same = planted
    likes = np.zeros(same.shape, np.float32)
    likes[user[rating >= 4], item[rating >= 4]] = 1
    train, held = likes[:2500], likes[2500:]
    target = (np.random.default_rng(0).random(held.shape) < 0.2) & (held > 0)
    given = held * ~target

    def ndcg(scores: np.ndarray) -> float:
        top = np.argsort(-np.where(given > 0, -np.inf, scores), axis=1)[:, :100]
        discount = 1 / np.log2(np.arange(100) + 2)
        ideal = np.append(0, discount.cumsum())[target.sum(1)]
        gained = (np.take_along_axis(target, top, 1) * discount).sum(1)
        return float((gained[ideal > 0] / ideal[ideal > 0]).mean())

    popularity = np.broadcast_to(train.sum(0), held.shape)
    assert ndcg(popularity) < 0.08
    assert ndcg(same[2500:] * 1e6 + popularity) > 0.4
    assert ndcg(given @ similarity(train)) > 0.4


# ---- raw.yaml


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": {"user": "u", "item": "i"}}, "columns must name exactly user, item, rating, timestamp"),
        ({"columns": {"user": "u", "item": "u", "rating": None, "timestamp": None}}, "name the same column"),
        (
            {"columns": {"user": None, "item": "i", "rating": None, "timestamp": None}},
            "column of user is None",
        ),
        ({"columns": {"user": 0, "item": "i", "rating": None, "timestamp": None}}, "must be a column name"),
        ({"files": []}, "files is empty"),
        ({"files": ["none.csv"]}, "'none.csv' does not exist"),
        ({"files": ["../data.csv"]}, "lies outside the folder"),
        ({"format": "json"}, "format 'json' is not one of csv, parquet"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"header": "yes"}, "header 'yes' is not true or false"),
    ],
)
def test_broken_raw_yaml_names_the_rule(tmp_path, change, says):
    assert run(tmp_path, file(tmp_path, HEADED)) == 0
    path = tmp_path / "out" / "raw" / "raw.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with pytest.raises(UserError, match="raw.yaml: ") as caught:
        written(tmp_path)
    assert says in str(caught.value)


def test_missing_raw_yaml_is_named(tmp_path):
    with pytest.raises(UserError, match="raw.yaml: no such file"):
        RawData.read(tmp_path)
