"""The nearest rows of a base, exactly, straight over the rows as they are stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyfeat._config import num_threads
from pyfeat._rows import is_stream
from pyfeat.ops._check import (
    ITEMS,
    as_tensor,
    like,
    stream_of,
    why_not_cpp,
    why_not_cuda,
    why_not_triton,
)
from pyfeat.ops._dispatch import Backend, choose, never_refuses
from pyfeat.ops._topk_reference import nearest
from pyfeat.ops._topk_screen import screened
from pyfeat.ops._topk_stream import nearest_of_stream

METRICS = ("ip", "cosine", "l2")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Neighbours(NamedTuple):
    """The nearest rows of each query, best first.

    Parameters
    ----------
    scores : ndarray or Tensor of shape (n, k), float32
        Inner products, cosines, or squared distances.
    rows : ndarray or Tensor of shape (n, k), int64
        Row numbers of the base; -1 where there is no neighbour (its score is NaN).
    """

    scores: Any
    rows: Any


def topk(
    queries: Any,
    base: Any,
    k: int,
    *,
    metric: str = "ip",
    scales: Any = None,
    backend: str | None = None,
) -> Neighbours:
    """Find the k nearest rows of a base for each query, exactly.

    Rows are read as they are stored: no float32 copy of the base is made, nor all n * m scores.

    Parameters
    ----------
    queries : ndarray or Tensor of shape (n, d), float32, float16 or bfloat16
        Any strides; n and d may be 0.
    base : ndarray, Tensor or RowStream of shape (m, d), float32, float16, bfloat16 or int8
        The rows searched, on the device of the queries. Rows may lie apart, but the numbers of a
        row must be adjacent, or the base is copied. A stream (a store view) is read in blocks.
    k : int
        Neighbours of each query. Range [1, m].
    metric : {"ip", "cosine", "l2"}, default="ip"
        Largest inner product, largest cosine, or smallest squared Euclidean distance.
    scales : ndarray or Tensor of shape (m,), float32, optional
        For an int8 base: row i counts as ``scales[i] * base[i]``. By default 1.
    backend : {"cuda", "triton", "cpp", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    neighbours : Neighbours
        `scores` float32 and `rows` int64, (n, k), best first. Tensors on the device of the queries
        when these are a tensor, else arrays.

    Raises
    ------
    TypeError
        If an argument is neither array nor tensor, or of another dtype.
    ValueError
        If shapes do not match, k is not in [1, m], or the metric is unknown.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    Queries and rows count as their float32 values, an int8 row as the float32 products with its
    scale. Scores are q.b, q.b / (|q| |b|), 0 where either is zero, or the sum of (q - b)^2,
    in float64 and rounded to float32; neighbours are those with the best rounded scores, and equal
    scores go to the lower row number. So every backend and number of threads returns the same rows,
    except where two orders of a float64 sum round to different float32 numbers.

    A row that holds NaN or infinity is never a neighbour. Where a query has fewer than k neighbours
    for that reason, or holds NaN or infinity itself, the rest of its rows are -1 and their scores
    NaN. Scores beyond the range of float32 become infinite and are equal to each other.

    "cpp" screens with products in float32, or bfloat16 where the CPU multiplies these, and bounds
    the error of each by Cauchy-Schwarz, |x.y - x'.y'| <= |x'| |y - y'| + |x - x'| |y|, and that of
    the sum by gamma(d) |x| |y| [1]_. Only rows that the bounds do not rule out, a few k a query on
    usual data, are scored in float64. Where they rule out little (all rows equal), every row is.

    "cuda" and "triton" screen with products in float32 and score the k + 16 best rows in float64;
    a query for which the bounds do not prove that no other row belongs there goes to the reference.
    At most 256 MiB of products are alive at once.

    Memory of "cpp": about 6 d bytes a query for up to 2048 queries, and 72 k + 1536 bytes a query
    and thread, 64 MiB a thread at most (or one query). It releases the GIL.

    References
    ----------
    .. [1] Higham. Accuracy and Stability of Numerical Algorithms. SIAM, 2nd ed., 2002, eq. 3.5.

    Examples
    --------
    >>> base = np.array([[0.0, 1.0], [1.0, 0.0], [0.8, 0.6]], dtype=np.float32)
    >>> found = topk(base[:1], base, 2)
    >>> found.rows.tolist(), found.scores.round(2).tolist()
    ([[0, 2]], [[1.0, 0.6000000238418579]])
    """
    x = as_tensor(queries, "queries")
    factors = None if scales is None else as_tensor(scales, "scales")
    if is_stream(base):
        _check_k(k, base.shape[0])
        _check_scales(factors, base.shape[0], x.device)

        def search(x: Tensor, y: Tensor, k: int, factors: Tensor | None) -> tuple[Tensor, Tensor]:
            return _nearest(x, y, k, metric, factors, backend)

        scores, rows = nearest_of_stream(x, base, int(k), metric, factors, search)
    else:
        scores, rows = _nearest(x, as_tensor(base, "base"), k, metric, factors, backend)
    return Neighbours(like(queries, scores), like(queries, rows))


def _nearest(
    x: Tensor, y: Tensor, k: int, metric: str, scales: Tensor | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    _check(x, y, k, metric, scales)
    chosen = choose("topk", BACKENDS, backend, x, y, k, metric, scales)
    scores, rows = chosen.run(x, y, int(k), metric, scales)
    return scores, rows


def _check(x: Tensor, y: Tensor, k: int, metric: str, scales: Tensor | None) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"queries and base must have shapes (n, d) and (m, d), got {shapes}")
    if x.dtype not in FLOATS:
        raise TypeError(f"queries must have dtype float32, float16 or bfloat16, got {x.dtype}")
    if y.dtype not in ITEMS:
        raise TypeError(f"base must have dtype float32, float16, bfloat16 or int8, got {y.dtype}")
    if x.device != y.device:
        raise ValueError(f"base must be on {x.device} like queries, got {y.device}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {list(METRICS)}, got {metric!r}")
    _check_k(k, len(y))
    if scales is None:
        return
    if y.dtype != torch.int8:
        raise ValueError(f"scales must be given with an int8 base only, got a base of {y.dtype}")
    _check_scales(scales, len(y), y.device)


def _check_scales(scales: Tensor | None, m: int, device: torch.device) -> None:
    """Raise unless there is one float32 number for each of m rows, or none at all."""
    if scales is None:
        return
    if scales.dtype != torch.float32:
        raise TypeError(f"scales must have dtype float32, got {scales.dtype}")
    if tuple(scales.shape) != (m,) or scales.device != device:
        have = f"{tuple(scales.shape)} on {scales.device}"
        raise ValueError(f"scales must have shape ({m},) on {device}, got {have}")


def _check_k(k: int, m: int) -> None:
    """Raise unless k neighbours can be had of m rows."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool):
        raise TypeError(f"k must be an integer, got {k!r}")
    if not 1 <= k <= m:
        raise ValueError(f"k must be in [1, {m}], the rows of base, got {k}")


def _cpp(x: Tensor, y: Tensor, k: int, metric: str, scales: Tensor | None) -> tuple[Tensor, Tensor]:
    from pyfeat._core import topk as run

    x = x.float().contiguous()
    if y.stride(1) != 1:
        y = y.contiguous()
    factors = None if scales is None else scales.contiguous()
    n, d = x.shape
    scores = torch.empty((n, k), dtype=torch.float32)
    rows = torch.empty((n, k), dtype=torch.int64)
    run(
        queries=x.data_ptr(),
        n=n,
        base=y.data_ptr(),
        m=len(y),
        row_stride=y.stride(0),
        item=ITEMS[y.dtype],
        scales=0 if factors is None else factors.data_ptr(),
        d=d,
        k=k,
        metric=METRICS.index(metric),
        threads=num_threads(),
        out=(scores.data_ptr(), rows.data_ptr()),
    )
    return scores, rows


def _cpp_refuses(
    x: Tensor, y: Tensor, k: int = 1, metric: str = "ip", scales: Tensor | None = None
) -> str | None:
    return why_not_cpp(queries=x, base=y, scales=scales)


def _cuda_keys(x: Tensor, y: Tensor, mul: Tensor, add: Tensor) -> Tensor:
    from pyfeat._cuda import topk_keys

    keys = torch.empty((len(x), len(y)), dtype=torch.float32, device=x.device)
    with stream_of(x) as stream:
        topk_keys(
            queries=x.data_ptr(),
            base=y.data_ptr(),
            item=ITEMS[y.dtype],
            row_stride=y.stride(0),
            mul=mul.data_ptr(),
            add=add.data_ptr(),
            keys=keys.data_ptr(),
            n=len(x),
            m=len(y),
            d=x.shape[1],
            stream=stream,
        )
    return keys


def _cuda(
    x: Tensor, y: Tensor, k: int, metric: str, scales: Tensor | None
) -> tuple[Tensor, Tensor]:
    return screened(x, y, k, metric, scales, _cuda_keys)


def _cuda_refuses(
    x: Tensor, y: Tensor, k: int = 1, metric: str = "ip", scales: Tensor | None = None
) -> str | None:
    return why_not_cuda(queries=x, base=y, scales=scales)


def _triton(
    x: Tensor, y: Tensor, k: int, metric: str, scales: Tensor | None
) -> tuple[Tensor, Tensor]:
    from pyfeat.ops._triton.topk import keys_of

    return screened(x, y, k, metric, scales, keys_of)


def _triton_refuses(
    x: Tensor, y: Tensor, k: int = 1, metric: str = "ip", scales: Tensor | None = None
) -> str | None:
    return why_not_triton(queries=x, base=y, scales=scales)


BACKENDS = (
    Backend("cuda", _cuda, _cuda_refuses),
    Backend("triton", _triton, _triton_refuses),
    Backend("cpp", _cpp, _cpp_refuses),
    Backend("reference", nearest, never_refuses),
)
