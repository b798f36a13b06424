"""Eigenvectors of symmetric matrices, and the threads that find them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from pyfeat._eigh import symmetric_eigh

EPS64 = np.finfo(np.float64).eps


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


def test_callers_at_once_put_back_the_number_of_threads():
    # Bug: each put back what it had found, one of them the limit of another.
    matrix = torch.eye(60, dtype=torch.float64)
    with threadpool_limits(2, user_api="blas"):
        before = threadpool_info()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: symmetric_eigh(matrix), range(200)))
        assert threadpool_info() == before
