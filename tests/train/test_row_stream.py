"""Streamed rows: every row once an epoch, in an order that resumes, shards and ignores the file layout."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.feature_spec import Chunk, FeatureSpec
from recsys.row_stream import RowGroups, RowStream, consecutive, prefetch
from recsys.step import UserError

MATRICES = {"id": ["row"], "list": ["tags"], "label": ["y"]}


def dataset(folder, rows, row_group):
    """Row numbers, lists that hold the number again, and a label; three files of different length."""
    tags = [[number % 50] * (number % 4) for number in range(rows)]
    table = pa.table(
        {
            "row": np.arange(rows),
            "tags": pa.array(tags, pa.list_(pa.int32())),
            "y": np.ones(rows, np.float32),
        }
    )
    cuts = [0, rows // 5, rows // 2, rows]
    files = tuple(f"{number}.parquet" for number in range(3))
    for file, start, stop in zip(files, cuts, cuts[1:], strict=False):
        pq.write_table(table[start:stop], folder / file, row_group_size=row_group)
    features = {
        "row": {"dtype": "int64"},
        "tags": {"dtype": "int32", "cardinality": 50, "max_hotness": 3},
        "y": {"dtype": "float32"},
    }
    spec = FeatureSpec(
        folder, features, {"train": (Chunk("parquet", tuple(features), files),)}, {"label": ("y",)}
    )
    spec.write()
    return spec


def rows_of(batch):
    return batch.columns["id"][batch.weight > 0, 0]


@pytest.mark.parametrize(
    ("rows", "batch", "row_group"), [(1000, 96, 64), (1000, 1000, 7), (37, 16, 5), (5, 64, 9)]
)
def test_an_epoch_holds_every_row_once_in_a_new_order(tmp_path, rows, batch, row_group):
    stream = RowStream(RowGroups(dataset(tmp_path, rows, row_group), "train", MATRICES), batch)
    epochs = []
    for epoch in range(2):
        batches = list(stream.batches(3, epoch))
        assert len(batches) == stream.steps
        assert all(len(b.columns["id"]) == batch and len(b.weight) == batch for b in batches)
        assert [b.examples for b in batches] == [int(b.weight.sum()) for b in batches]
        epochs.append(np.concatenate([rows_of(b) for b in batches]))
        assert sorted(epochs[-1]) == list(range(rows))
        for b in batches:
            lists = b.columns["list"]
            assert ((lists >= 0).sum(axis=1) == b.columns["id"][:, 0] % 4).all()
            assert (lists[lists[:, 0] >= 0, 0] == b.columns["id"][lists[:, 0] >= 0, 0] % 50).all()
    assert rows < 10 or (epochs[0] != epochs[1]).any()
    again = np.concatenate([rows_of(b) for b in stream.batches(3, 1)])
    np.testing.assert_array_equal(again, epochs[1])


@pytest.mark.parametrize("first", [1, 4, 9, 10])
def test_an_epoch_resumes_at_any_batch(tmp_path, first):
    stream = RowStream(RowGroups(dataset(tmp_path, 1000, 64), "train", MATRICES), 96)
    whole, rest = list(stream.batches(1, 0)), list(stream.batches(1, 0, first))
    assert len(rest) == len(whole) - first
    for a, b in zip(whole[first:], rest, strict=True):
        np.testing.assert_array_equal(rows_of(a), rows_of(b))


@pytest.mark.parametrize("ranks", [2, 4, 16])
@pytest.mark.parametrize("rows", [1000, 1009, 20])
def test_ranks_share_the_same_global_batches_in_equal_steps(tmp_path, ranks, rows):
    groups = RowGroups(dataset(tmp_path, rows, 64), "train", MATRICES)
    whole = list(RowStream(groups, 96).batches(5, 2))
    shares = [list(RowStream(groups, 96, rank, ranks).batches(5, 2)) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(whole)}
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert {part.examples for part in parts} == {batch.examples}
        for name in ("weight", "sample"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(batch, name))
        np.testing.assert_array_equal(np.concatenate([rows_of(part) for part in parts]), rows_of(batch))


def test_a_rank_reads_its_own_rows_only(tmp_path):
    groups = RowGroups(dataset(tmp_path, 6400, 100), "train", MATRICES)
    read = []
    groups.read = lambda number: read.append(number) or RowGroups.read(groups, number)
    list(RowStream(groups, 160, 1, 4).batches(0, 0))
    assert 0.25 * len(groups) <= len(set(read)) <= 0.25 * len(groups) + 2


def test_a_batch_mixes_rows_of_the_whole_mapping(tmp_path):
    stream = RowStream(RowGroups(dataset(tmp_path, 16_000, 500), "train", MATRICES), 160)
    batch = rows_of(next(stream.batches(0, 0)))
    assert np.histogram(batch, 16, (0, 16_000))[0].tolist() == [10] * 16


@pytest.mark.parametrize("rows", [1, 64, 333, 5000])
def test_consecutive_pieces_are_the_rows_in_stored_order(tmp_path, rows):
    groups = RowGroups(dataset(tmp_path, 1000, 64), "train", MATRICES)
    pieces = [piece["id"][:, 0] for piece in consecutive(groups, rows)]
    assert {len(piece) for piece in pieces[:-1]} <= {rows}
    np.testing.assert_array_equal(np.concatenate(pieces), np.arange(1000))


def test_more_ranks_than_lanes_are_refused(tmp_path):
    groups = RowGroups(dataset(tmp_path, 100, 10), "train", MATRICES)
    with pytest.raises(UserError, match="batch_size 36 cannot be shared by 8 workers"):
        RowStream(groups, 36, 0, 8)


def test_a_wrong_value_is_named_when_it_is_read(tmp_path):
    spec = dataset(tmp_path, 100, 10)
    wrong = pa.table(
        {"row": [1], "tags": pa.array([[77]], pa.list_(pa.int32())), "y": np.ones(1, np.float32)}
    )
    pq.write_table(wrong, tmp_path / "2.parquet")
    groups = RowGroups(spec, "train", MATRICES)
    with pytest.raises(UserError, match=r"2.parquet, mapping 'train': feature 'tags' has ids from 77 to 77"):
        list(groups.blocks())


def test_prefetching_keeps_order_hands_errors_on_and_ends_with_its_consumer():
    assert list(prefetch(iter(range(100)), 3)) == list(range(100))

    def failing():
        yield 1
        raise UserError("broken")

    batches = prefetch(failing())
    assert next(batches) == 1
    with pytest.raises(UserError, match="broken"):
        next(batches)

    drawn = []
    endless = prefetch((drawn.append(n) or n for n in range(10**9)), 2)
    next(endless)
    endless.close()
    seen = len(drawn)
    assert seen < 10
