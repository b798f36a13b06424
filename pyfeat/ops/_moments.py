"""Total weight, mean and scatter of rows in one pass, of all rows or of every group."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyfeat._rows import is_stream
from pyfeat.ops._check import as_tensor, why_not_cpp, why_not_triton
from pyfeat.ops._dispatch import Backend, choose, never_refuses
from pyfeat.ops._moments_cpp import cpp, refuses
from pyfeat.ops._moments_reference import Moments, reference, refuse_non_finite


def moments(
    X: Any,
    weights: Any = None,
    *,
    groups: Any = None,
    n_groups: int | None = None,
    diagonal: bool = False,
    scales: Any = None,
    name: str = "X",
    backend: str | None = None,
) -> Moments:
    """Return total weight, mean and scatter of the rows of X, of all of them or of every group.

    Parameters
    ----------
    X : ndarray, Tensor or RowStream of shape (n, d)
        float64, float32, float16, bfloat16 or int8. Not changed. A stream is read once, in
        storage order.
    weights : ndarray or Tensor of shape (n,), bool or real, optional
        At least 0, finite. Rows of weight 0 (or False) are left out; by default every row has
        weight 1.
    groups : ndarray or Tensor of shape (n,), integer, optional
        Group of each row, in [0, n_groups): a class, or domain * n_classes + class. Rows of a
        negative group are left out.
    n_groups : int, optional
        By default the largest group and one. Moments are merged only if it is the same.
    diagonal : bool, default=False
        Sum only the squares: memory O(d) a group instead of O(d^2).
    scales : ndarray or Tensor of shape (n,), real, optional
        What a row must be multiplied with, e.g. that of int8 rows.
    name : str, default="X"
        What an error calls the rows.
    backend : {"triton", "cpp", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    moments : Moments
        float64; tensors on the device of X if it is one, else arrays. `merge` adds those of
        other rows, `covariance` and `gram` are what their names say.

    Raises
    ------
    TypeError
        If X, weights, groups or scales hold other numbers.
    ValueError
        If shapes do not fit, weights or groups are out of range, a row that counts holds NaN or
        infinity, any row of a stream does, or the squares of rows overflow.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    mean = sum_i w_i x_i / sum_i w_i, scatter = sum_i w_i (x_i - mean)(x_i - mean)^T.

    Rows are centred before the product, chunk by chunk, and chunks are merged by the pairwise
    update of [1]_: a mean that is large beside the spread costs no digits. "reference" computes in
    float64. The others centre and multiply in float32, in chunks of at most some thousand rows,
    and add the chunks up in float64: the error of scatter[i, j] is below 4e-5 *
    sqrt(scatter[i, i] scatter[j, j]) and as a rule a hundredth of that. They want squares that add
    up in float32, and weights from 1e-30 to 1e30. float64 rows go to "reference".

    Rows of float16, bfloat16 and int8 are read as they are stored. With groups, the rows of a
    block are read in the order of their groups. "cpp": half the products, those on and above the
    diagonal; the same bits for every number of threads. "triton": reads rows twice, those of a
    tensor only.

    Memory: 8 n_groups d^2 bytes of result ("triton": up to eight times as much), and "cpp" about
    20 MB beside it or 4 kB a column; of a stream one block, 64 MiB or 4096 rows.

    References
    ----------
    .. [1] Chan, Golub, LeVeque. Algorithms for computing the sample variance. The American
       Statistician 37(3), 1983.

    Examples
    --------
    >>> X = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])
    >>> moments(X).mean
    array([3., 2.])
    >>> found = moments(X, groups=np.array([0, 0, 1]))
    >>> found.total, found.covariance()[0]
    (array([2., 1.]), array([[1., 0.],
           [0., 0.]]))
    """
    as_arrays = not isinstance(X, Tensor)
    rows = X if is_stream(X) else as_tensor(X, name)
    _check_rows(rows, name)
    n, device = rows.shape[0], rows.device if isinstance(rows, Tensor) else torch.device("cpu")
    weights = _numbers(weights, "weights", n, device)
    scales = _numbers(scales, "scales", n, device)
    groups, n_groups = _labels(groups, n_groups, n, device)
    args = (rows, weights, groups, n_groups, diagonal, scales)
    found: Moments = choose("moments", BACKENDS, backend, *args).run(*args)
    _check_result(found, rows, weights, groups, name)
    total = float(found.total) if n_groups is None else found.total
    if as_arrays:
        return Moments(*(p if isinstance(p, float) else p.numpy() for p in (total, *found[1:])))
    return Moments(total, *found[1:])


def _check_rows(X: Any, name: str) -> None:
    if len(X.shape) != 2:
        raise ValueError(f"{name} must have shape (n, d), got {tuple(X.shape)}")
    kind = str(X.dtype).removeprefix("torch.")
    if kind not in ("float64", "float32", "float16", "bfloat16", "int8"):
        raise TypeError(f"{name} must hold floating point numbers or int8, got {kind}")


def _numbers(values: Any, name: str, n: int, device: torch.device) -> Tensor | None:
    """Return weights or scales as a tensor that was checked."""
    if values is None:
        return None
    tensor = as_tensor(values, name).to(device)
    if tuple(tensor.shape) != (n,):
        raise ValueError(f"{name} must have shape ({n},), got {tuple(tensor.shape)}")
    if tensor.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {tensor.dtype}")
    if tensor.dtype == torch.bool:
        return tensor
    if not tensor.is_floating_point():
        tensor = tensor.double()  # torch has no comparisons of the longer unsigned integers
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if name == "weights" and bool((tensor < 0).any()):
        raise ValueError(f"weights must be at least 0, got {float(tensor.min())}")
    return tensor


def _labels(
    groups: Any, n_groups: int | None, n: int, device: torch.device
) -> tuple[Tensor | None, int | None]:
    """Return groups as int64 that were checked, and how many there are."""
    if groups is None:
        if n_groups is not None:
            raise ValueError(f"n_groups must be left out without groups, got {n_groups}")
        return None, None
    labels = as_tensor(groups, "groups").to(device)
    if tuple(labels.shape) != (n,):
        raise ValueError(f"groups must have shape ({n},), got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"groups must hold integers, got {labels.dtype}")
    if labels.dtype == torch.uint64:
        raise TypeError("groups must hold integers that int64 holds, got torch.uint64")
    labels = labels.long()
    if n_groups is not None and not isinstance(n_groups, int | np.integer):
        raise TypeError(f"n_groups must be an integer, got {n_groups!r}")
    largest = int(labels.max()) if n else -1
    if n_groups is None:
        n_groups = largest + 1
    if n_groups < 1:
        raise ValueError(f"n_groups must be at least 1, got {n_groups}")
    if largest >= n_groups:
        raise ValueError(f"groups must be below n_groups={n_groups}, got {largest}")
    return labels, int(n_groups)


def _check_result(
    found: Moments, X: Any, weights: Tensor | None, groups: Tensor | None, name: str
) -> None:
    """Raise when a number of the result is not finite: each shows in the diagonal or the mean."""
    scatter = found.scatter
    if scatter.ndim > found.mean.ndim:
        scatter = scatter.diagonal(dim1=-2, dim2=-1)
    if bool(torch.isfinite(scatter).all()) and bool(torch.isfinite(found.mean).all()):
        return
    if isinstance(X, Tensor):
        counts = None if weights is None else weights != 0
        if groups is not None:
            counts = groups >= 0 if counts is None else counts & (groups >= 0)
        refuse_non_finite(X if counts is None else X[counts])
    kind = "float64" if X.dtype in (torch.float64, np.dtype(np.float64)) else "float32"
    raise ValueError(
        f"{name} must hold numbers whose squares add up in {kind}, got a sum that overflows"
    )


def _triton(*args: Any) -> Moments:
    from pyfeat.ops._triton.moments import run

    found: Moments = run(*args)
    return found


def _triton_refuses(X: Any, *rest: Any) -> str | None:
    if is_stream(X):
        return "X must be an array or a tensor, got a stream"
    return refuses(why_not_triton, X, *rest)


BACKENDS = (
    Backend("triton", _triton, _triton_refuses),
    Backend("cpp", cpp, partial(refuses, why_not_cpp)),
    Backend("reference", reference, never_refuses),
)
