"""A view is an array that is not in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat.store import View

from .conftest import some_keys, some_rows

N = 50


@pytest.fixture
def view(tmp_path: Path, space: Space) -> View:
    """Rows 0..49 over two segments and a tail, seen in another order than they were written."""
    store = FeatureStore(tmp_path, space, segment_bytes=4 * 3 * 20)
    for start in range(0, N, 10):
        chunk = slice(start, start + 10)
        store.put(some_keys(N)[chunk], some_rows(N)[chunk])
    return store.view(some_keys(N)[order()])


def order() -> np.ndarray:
    return np.random.default_rng(3).permutation(N)


def test_shape_and_dtype_are_those_of_the_array(view: View) -> None:
    assert (view.shape, view.ndim, len(view), view.dtype) == ((N, 3), 2, N, np.float32)


@pytest.mark.parametrize(
    "index",
    [0, -1, slice(3, 9), slice(None, None, -7), [4, 4, 1], np.arange(N) % 3 == 0, (slice(2), 1)],
    ids=str,
)
def test_indexing_is_that_of_the_array(view: View, index: object) -> None:
    np.testing.assert_array_equal(view[index], some_rows(N)[order()][index])


def test_asarray_is_the_array(view: View) -> None:
    np.testing.assert_array_equal(np.asarray(view), some_rows(N)[order()])


def test_blocks_hand_out_every_row_once(view: View) -> None:
    got = np.full((N, 3), np.nan, np.float32)
    for positions, rows in view.blocks(7):
        assert np.isnan(got[positions]).all()
        got[positions] = rows
    np.testing.assert_array_equal(got, some_rows(N)[order()])


def test_blocks_follow_the_order_on_disk_inside_a_file(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path, space) as store:
        store.put(some_keys(N), some_rows(N))
    view = store.view(some_keys(N)[order()])
    rows = np.concatenate([rows for _, rows in view.blocks(7)])
    np.testing.assert_array_equal(rows, some_rows(N))


def test_take_is_a_view_of_some_rows(view: View) -> None:
    part = view.take([5, 1, 5])
    np.testing.assert_array_equal(np.asarray(part), some_rows(N)[order()][[5, 1, 5]])
    got = np.empty((3, 3), np.float32)
    for positions, rows in part.blocks(2):
        got[positions] = rows
    np.testing.assert_array_equal(got, np.asarray(part))


def test_position_outside_is_an_index_error(view: View) -> None:
    with pytest.raises(IndexError):
        view[N]


@pytest.mark.parametrize(
    "index",
    [True, None, (), np.array(2), np.ones((2, 2), int), [0.5], ([0, 1], [0, 1]), "a"],
    ids=repr,
)
def test_index_that_would_mean_something_else_is_refused(view: View, index: object) -> None:
    with pytest.raises(IndexError, match="must be an integer"):
        view[index]


def test_no_positions_give_no_rows(view: View) -> None:
    assert view[[]].shape == (0, 3)
    assert view.take([]).shape == (0, 3)


def test_blocks_of_no_rows_are_refused(view: View) -> None:
    with pytest.raises(ValueError, match="max_rows must be at least 1, got 0"):
        next(view.blocks(0))
