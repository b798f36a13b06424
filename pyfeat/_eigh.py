"""Eigenvectors of symmetric matrices."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Below this, a second thread wins little on an idle machine and loses seconds on a busy one.
THREADED_EIGH_COLUMNS = 1000
# The limit is the process's: two callers at once would put back each other's.
_limiting = threading.Lock()


def symmetric_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, ascending, and eigenvectors in columns.

    Parameters
    ----------
    matrix : Tensor of shape (d, d), float64
        Symmetric; the lower half is read.

    Returns
    -------
    values : Tensor of shape (d,)
    vectors : Tensor of shape (d, d)
        On the device of `matrix`, like `values`.

    Raises
    ------
    LinAlgError
        If the iteration does not converge, as with NaN.

    Notes
    -----
    Small matrices on the CPU are done by one BLAS thread. LAPACK goes through thousands of short
    parallel sections, and at the end of each its threads spin for one that may not be running.
    """
    if not matrix.is_cpu:
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    if len(matrix) < THREADED_EIGH_COLUMNS:
        with _limiting, _thread_pools().limit(limits=1, user_api="blas"):
            found = np.linalg.eigh(matrix.numpy())
    else:
        found = np.linalg.eigh(matrix.numpy())
    return torch.from_numpy(found.eigenvalues), torch.from_numpy(found.eigenvectors)


@functools.cache
def _thread_pools() -> Any:
    # Kept: finding the libraries takes as long as the eigenvectors of 200 columns.
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()
