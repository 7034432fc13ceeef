"""Shards: the same rows, in the order or in a uniformly random one, in row groups that workers can share."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.preprocess import shards
from components.preprocess.shards import write_shards


def tables(rows, at_once):
    """Rows 0, 1, ...; row ``i`` has the list of ``i % 3`` times ``i``."""
    for start in range(0, rows, at_once):
        ids = range(start, min(start + at_once, rows))
        yield pa.table(
            {
                "id": pa.array(ids, "int64"),
                "ids": pa.array([[i] * (i % 3) for i in ids], pa.list_(pa.int32())),
            }
        )


def read(folder, names):
    return pa.concat_tables([pq.read_table(folder / name) for name in names])


def row_groups(path):
    metadata = pq.ParquetFile(path).metadata
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_without_a_seed_the_order_stays(tmp_path, at_once):
    names, rows = write_shards(tables(1000, at_once), tmp_path, "test", None)
    assert (names, rows) == (("test/00000.parquet",), 1000)
    assert read(tmp_path, names).equals(pa.concat_tables(tables(1000, 1000)))
    assert row_groups(tmp_path / names[0]) == [16] * 62 + [8]
    assert [path.name for path in tmp_path.iterdir()] == ["test"]


@pytest.mark.parametrize("limit", [1 << 20, 100, 3])
def test_a_shuffle_keeps_every_row_whole_whatever_fits_in_memory(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(shards, "ROWS_IN_MEMORY", limit)
    names, rows = write_shards(tables(2000, 300), tmp_path, "train", 3)
    table = read(tmp_path, names)
    assert rows == 2000
    assert table["id"].to_pylist() != list(range(2000))
    assert table.sort_by("id").equals(pa.concat_tables(tables(2000, 2000)))
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_seed_gives_one_order_and_another_seed_another(tmp_path):
    orders = []
    for number, seed in enumerate([5, 5, 6]):
        names, _ = write_shards(tables(500, 100), tmp_path / str(number), "train", seed)
        orders.append(read(tmp_path / str(number), names)["id"].to_pylist())
    assert orders[0] == orders[1] != orders[2]


def test_every_order_is_equally_likely(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SCATTER_FILES", 2)
    monkeypatch.setattr(shards, "ROWS_IN_MEMORY", 2)
    found = Counter()
    for seed in range(1200):
        names, _ = write_shards(tables(3, 2), tmp_path / str(seed), "train", seed)
        found[tuple(read(tmp_path / str(seed), names)["id"].to_pylist())] += 1
    assert len(found) == 6
    # Chi-squared with 5 degrees of freedom: above 20.5 once in a thousand.
    assert sum((count - 200) ** 2 / 200 for count in found.values()) < 20.5


def test_large_data_are_cut_into_files_of_64_full_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 10)
    names, rows = write_shards(tables(1345, 100), tmp_path, "train", 0)
    assert names == ("train/00000.parquet", "train/00001.parquet", "train/00002.parquet")
    assert [row_groups(tmp_path / name) for name in names] == [[10] * 64, [10] * 64, [10] * 6 + [5]]
    assert sorted(read(tmp_path, names)["id"].to_pylist()) == list(range(rows))


def test_no_rows_make_no_file(tmp_path):
    assert write_shards(tables(0, 1), tmp_path, "train", 0) == ((), 0)
    assert write_shards([pa.table({"id": pa.array([], "int64")})], tmp_path, "test", None) == ((), 0)


def test_what_fails_leaves_no_scattered_files(tmp_path):
    def broken():
        yield from tables(10, 5)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_shards(broken(), tmp_path, "train", np.int64(1))
    assert list(tmp_path.glob("*.scatter")) == []
