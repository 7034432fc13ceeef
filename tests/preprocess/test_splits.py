"""Splits on values worked by hand, and NumPy against CuPy."""

import numpy as np
import pytest

from recsys import splits


def ids(*values):
    return np.array(values, np.int32)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_earliest_interactions_order_by_user_and_time_and_keep_the_first_of_a_pair():
    user = ids(1, 0, 1, 0, 1)
    item = ids(5, 7, 5, 6, 4)
    time = np.array([30, 20, 10, 10, 20])
    # User 0: item 6 (10), item 7 (20). User 1: item 5 (10), item 4 (20); item 5 at 30 is a repetition.
    assert splits.earliest_interactions(user, item, 8, time).tolist() == [3, 1, 2, 4]
    assert splits.earliest_interactions(user, item, 8, time.astype(float)).tolist() == [3, 1, 2, 4]
    # Without time the file's order counts: user 1 has item 5 (row 0), then item 4 (row 4).
    assert splits.earliest_interactions(user, item, 8).tolist() == [1, 3, 0, 4]


def test_equal_times_keep_file_order():
    user = np.zeros(1000, np.int32)
    item = np.arange(1000, dtype=np.int32)[::-1].copy()
    for time in (np.zeros(1000, np.int64), np.zeros(1000), np.full(1000, 2**62)):
        assert splits.earliest_interactions(user, item, 1000, time).tolist() == list(range(1000))


def test_huge_time_spans_sort_like_small_ones():
    user, item = ids(0, 1, 0, 1), ids(0, 0, 1, 1)
    time = np.array([2**62, 5, -(2**62), 4])
    assert splits.earliest_interactions(user, item, 2, time).tolist() == [2, 0, 3, 1]


def test_who_can_be_tested():
    # User 0 has every item, user 1 one, user 2 two of three, user 3 none.
    several, every = splits.can_be_tested(ids(0, 0, 0, 1, 2, 2), n_users=4, n_items=3)
    assert several.tolist() == [True, False, True, False]
    assert every.tolist() == [True, False, False, False]


def test_leave_one_out_last():
    user = ids(0, 0, 0, 1, 1, 2)  # rows 2 and 4 are the last ones, 1 the one before
    testable = np.array([True, True, False])
    test, validation = splits.leave_one_out(user, testable, "last", True, rng())
    assert test.tolist() == [2, 4]
    assert validation.tolist() == [1]  # user 1 needs its other interaction for training
    assert splits.leave_one_out(user, testable, "last", False, rng())[1].tolist() == []


def test_leave_one_out_random_holds_out_every_row_equally_often():
    user = np.repeat(np.arange(3000, dtype=np.int32), 3)
    test, validation = splits.leave_one_out(user, np.ones(3000, bool), "random", True, rng())
    assert not np.intersect1d(test, validation).size
    for rows in (test, validation):
        assert (user[rows] == np.arange(3000)).all()
        assert np.bincount(rows % 3).min() > 900  # 1,000 expected, standard deviation 26


def test_negatives_are_uniform_over_what_the_user_has_not_in_train():
    # User 0 has 0, 2, 3 of six items; user 2 has 5; user 1 has nothing.
    user, item = ids(0, 0, 0, 2), ids(3, 0, 2, 5)
    drawn = splits.sample_negatives(user, item, ids(0, 1, 2), n_items=6, n_negatives=6000, rng=rng())
    assert drawn.shape == (3, 6000)
    assert drawn.dtype == np.int32
    for row, left in zip(drawn, ([1, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]), strict=True):
        counts = np.bincount(row, minlength=6)
        assert np.flatnonzero(counts).tolist() == left
        assert (abs(counts[left] - 6000 / len(left)) < 200).all()  # more than five standard deviations


def test_negatives_end_for_a_user_with_all_items_but_one():
    items = np.delete(np.arange(100_000, dtype=np.int32), 77_777)
    drawn = splits.sample_negatives(np.zeros(99_999, np.int32), items, ids(0), 100_000, 50, rng())
    assert (drawn == 77_777).all()


def test_negatives_are_the_same_however_many_users_are_done_at_once(monkeypatch):
    user = np.repeat(np.arange(50, dtype=np.int32), 4)
    item = np.tile(ids(1, 3, 5, 7), 50)
    arguments = (user, item, np.arange(0, 50, 2, dtype=np.int32), 20, 10)
    whole = splits.sample_negatives(*arguments, rng())
    monkeypatch.setattr(splits, "USERS_AT_ONCE", 3)
    assert (splits.sample_negatives(*arguments, rng()) == whole).all()


def test_held_out_users_are_the_last_of_the_permutation():
    group = splits.held_out_users(10, 2, 3, rng(4))
    permuted = rng(4).permutation(10)
    assert set(permuted[7:]) == set(np.flatnonzero(group == splits.TEST))
    assert set(permuted[5:7]) == set(np.flatnonzero(group == splits.VALIDATION))
    assert (group == splits.TRAIN).sum() == 5


def test_hold_out_items_takes_the_reference_share():
    sizes = [4, 5, 9, 10, 14, 15]
    user = np.repeat(np.arange(6, dtype=np.int32), sizes)
    target = splits.hold_out_items(user, 0.2, rng())
    # int(0.2 n) from five items on; four items are too few.
    assert np.bincount(user, target).tolist() == [0, 1, 1, 2, 2, 3]
    many = np.repeat(np.arange(5000, dtype=np.int32), 5)
    places = np.flatnonzero(splits.hold_out_items(many, 0.2, rng())) % 5
    assert np.bincount(places).min() > 850  # 1,000 expected, standard deviation 28


@pytest.mark.gpu
def test_cupy_splits_like_numpy():
    cupy = pytest.importorskip("cupy", reason="no CuPy here")
    if not cupy.cuda.is_available():
        pytest.skip("no GPU here")
    random = rng(3)
    user = random.integers(0, 300, 20_000).astype(np.int32)
    item = (random.zipf(1.3, 20_000) % 500).astype(np.int32)
    time = random.integers(0, 1000, 20_000)

    def everything(array):
        u, i = array(user), array(item)
        for timestamp in (array(time), array(time / 7), None):
            order = splits.earliest_interactions(u, i, 500, timestamp)
            yield order
        u, i = u[order], i[order]
        several, every = splits.can_be_tested(u, 300, 500)
        yield from (several, every)
        for how in ("last", "random"):
            test, validation = splits.leave_one_out(u, several & ~every, how, True, rng(1))
            yield from (test, validation)
        yield splits.sample_negatives(u, i, u[test], 500, 20, rng(2))
        yield splits.hold_out_items(u, 0.2, rng(5))

    for expected, found in zip(everything(np.asarray), everything(cupy.asarray), strict=True):
        assert isinstance(found, cupy.ndarray)
        assert (found.get() == expected).all()
        assert found.dtype == expected.dtype
