"""Mean and scatter in blocks against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from pyfeat._moments import moments, symmetric_eigh
from tests.rows_on_disk import RowsOnDisk

EPS64, EPS32 = np.finfo(np.float64).eps, np.finfo(np.float32).eps


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("pyfeat._moments.MOMENT_BLOCK_ROWS", 7)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("diagonal", [False, True])
def test_scatter_is_that_of_numpy(rng, diagonal):
    X = rng.standard_normal((50, 3)) + 5.0
    expected = np.cov(X.T, ddof=0) * 50
    found = moments(X, diagonal=diagonal).scatter.numpy()
    expected = expected.diagonal() if diagonal else expected
    np.testing.assert_allclose(found, expected, atol=50 * 30 * EPS64)


@pytest.mark.usefixtures("small_blocks")
def test_weights_count_rows(rng):
    X = rng.standard_normal((50, 3))
    weights = rng.integers(0, 3, size=50)
    found = moments(X, torch.from_numpy(weights.astype(float)))
    expected = np.cov(X.T, ddof=0, fweights=weights) * weights.sum()
    np.testing.assert_allclose(found.scatter.numpy(), expected, atol=100 * 10 * EPS64)


@pytest.mark.usefixtures("small_blocks")
def test_false_leaves_rows_out(rng):
    X = rng.standard_normal((50, 3))
    keep = np.arange(50) >= 20
    found = moments(X, torch.from_numpy(keep))
    assert found.total == 30
    np.testing.assert_allclose(found.mean.numpy(), X[20:].mean(0), atol=50 * EPS64)


def test_a_large_mean_costs_no_digits(rng):
    X = (rng.standard_normal((5000, 2)) * 2**-4 + 2**10).astype(np.float32)
    expected = X.astype(float).var(axis=0) * 5000
    found = moments(X, diagonal=True).scatter.numpy()
    np.testing.assert_allclose(found, expected, rtol=70 * EPS32)


def test_a_view_gives_what_its_rows_give(rng, tmp_path):
    X = rng.standard_normal((300, 4))
    view = RowsOnDisk(tmp_path / "rows.npy", X)
    keep = torch.from_numpy(np.arange(300) % 3 == 0)
    np.testing.assert_allclose(
        moments(view, keep).scatter.numpy(), moments(X, keep).scatter.numpy(), atol=3e4 * EPS64
    )


def test_eigenvectors_give_the_matrix_back(rng):
    matrix = np.cov(rng.standard_normal((40, 100)))
    values, vectors = symmetric_eigh(torch.from_numpy(matrix))
    back = (vectors * values) @ vectors.T
    np.testing.assert_allclose(back.numpy(), matrix, atol=40 * 10 * EPS64)


def test_eigenvectors_of_few_columns_take_one_thread(monkeypatch):
    # Bug: several BLAS threads took seconds instead of 0.05 s when the machine was busy.
    threads = []

    def eigh(matrix):
        threads.extend(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")
        return solve(matrix)

    solve = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", eigh)
    with threadpool_limits(2, user_api="blas"):
        symmetric_eigh(torch.eye(3, dtype=torch.float64))
    assert threads
    assert set(threads) == {1}


def test_the_number_of_threads_is_put_back():
    with threadpool_limits(2, user_api="blas"):
        before = threadpool_info()
        symmetric_eigh(torch.eye(3, dtype=torch.float64))
        assert threadpool_info() == before
