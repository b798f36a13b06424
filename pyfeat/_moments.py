"""Mean and scatter of rows in one pass, in blocks, and eigenvectors of what comes out."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyfeat._tensors import Rows, device_of, tensor_blocks, working_dtype

# Large enough that the d x d product of a block outweighs adding it to the sum.
MOMENT_BLOCK_ROWS = 4096
# Below this, a second thread wins little on an idle machine and loses seconds on a busy one.
THREADED_EIGH_COLUMNS = 1000


class Moments(NamedTuple):
    """Weighted first and second moments of rows, in float64.

    Attributes
    ----------
    total : float
        Sum of the weights.
    mean : Tensor of shape (d,)
    scatter : Tensor of shape (d, d) or (d,)
        sum_i w_i (x_i - mean)(x_i - mean)^T, or its diagonal.
    """

    total: float
    mean: Tensor
    scatter: Tensor


def moments(
    X: Rows, weights: Tensor | None = None, *, diagonal: bool = False, name: str = "X"
) -> Moments:
    """Return total weight, mean and scatter of the rows of X.

    Parameters
    ----------
    X : ndarray, Tensor or RowStream of shape (n, d)
    weights : Tensor of shape (n,), bool or floating point, optional
        Rows of weight 0 (or False) are left out; by default every row has weight 1.
    diagonal : bool, default=False
        Sum only the squares: memory O(d) instead of O(d^2).
    name : str, default="X"
        What an error calls the rows.

    Returns
    -------
    moments : Moments

    Raises
    ------
    ValueError
        If a row of a stream holds NaN or infinity, or the squares of rows overflow.

    Notes
    -----
    Each block is centred on its own mean before the product (two passes, corrected), and blocks
    are merged by the pairwise update of [1]_: a mean that is large beside the spread costs no
    digits. Products in the working dtype of X, sums over blocks in float64.

    References
    ----------
    .. [1] Chan, Golub, LeVeque. Algorithms for computing the sample variance. The American
       Statistician 37(3), 1983.
    """
    d = X.shape[1]
    device = device_of(X)
    total = 0.0
    mean = torch.zeros(d, dtype=torch.float64, device=device)
    scatter = torch.zeros(d if diagonal else (d, d), dtype=torch.float64, device=device)
    for positions, block in tensor_blocks(X, MOMENT_BLOCK_ROWS):
        rows, w = _chosen(block, None if weights is None else weights[positions])
        added = float(w.sum(dtype=torch.float64))
        if added == 0.0:
            continue
        near = (w @ rows) / added
        centred = rows - near
        # `near` is off by the rounding of a long sum; what is left of the mean is short.
        rest = (w @ centred).double() / added
        if weights is not None and weights.dtype != torch.bool:
            centred *= w.sqrt()[:, None]
        block_mean = near.double() + rest
        scatter += centred.square().sum(0) if diagonal else _gram(centred)
        scatter -= added * (rest * rest if diagonal else torch.outer(rest, rest))
        gap = block_mean - mean
        factor = total * added / (total + added)
        scatter += factor * (gap * gap if diagonal else torch.outer(gap, gap))
        mean += gap * (added / (total + added))
        total += added
    if not bool(torch.isfinite(scatter).all()):
        kind = str(working_dtype(X)).removeprefix("torch.")
        raise ValueError(
            f"{name} must hold numbers whose squares add up in {kind}, got a sum that overflows"
        )
    return Moments(total, mean, scatter)


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
    limit = 1 if len(matrix) < THREADED_EIGH_COLUMNS else None
    with _thread_pools().limit(limits=limit, user_api="blas"):
        found = np.linalg.eigh(matrix.numpy())
    return torch.from_numpy(found.eigenvalues), torch.from_numpy(found.eigenvectors)


@functools.cache
def _thread_pools() -> Any:
    # Kept: finding the libraries takes as long as the eigenvectors of 200 columns.
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


def _chosen(block: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the rows with weight, and their weights."""
    if weights is None:
        return block, block.new_ones(len(block))
    chosen = weights != 0
    rows = block if bool(chosen.all()) else block[chosen]
    return rows, weights[chosen].to(block.dtype)


def _gram(rows: Tensor) -> Tensor:
    """Return rows^T rows."""
    if not rows.is_cpu:
        return rows.T @ rows
    # numpy sees that the product is symmetric and computes half of it; torch does not.
    array = rows.numpy()
    with np.errstate(over="ignore", invalid="ignore"):  # `moments` says so in its own words
        return torch.from_numpy(array.T @ array)
