"""Mean and scatter in blocks against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyfeat._moments import moments
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
