"""The backend "cpp" of `moments`, and the order in which rows are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfeat._config import num_threads
from pyfeat.ops._check import ITEMS
from pyfeat.ops._moments_reference import Moments, stored_blocks

# Of a stream, and of rows that must be copied to be contiguous: so much at a time, and so many
# rows at least. Every block of every group costs one pass over its d x d sums.
BLOCK_BYTES = 64 << 20
BLOCK_ROWS = 4096
LEAST_WEIGHT, MOST_WEIGHT = 1e-30, 1e30


def sorted_rows(
    weights: Tensor | None, groups: Tensor | None, n_groups: int | None, n: int
) -> tuple[Tensor | None, Tensor]:
    """Return the rows that count, group after group, and where each group begins and ends.

    Parameters
    ----------
    weights : Tensor of shape (n,), optional
        Rows of weight 0 do not count.
    groups : Tensor of shape (n,), int64, optional
        Rows below 0 do not count.
    n_groups : int, optional
    n : int

    Returns
    -------
    order : Tensor of shape (m,), int64, or None
        None for every row as it lies.
    bounds : Tensor of shape (n_groups + 1,), int64
        Group g has order[bounds[g] : bounds[g + 1]].
    """
    counts = None if weights is None else weights != 0
    if groups is None or n_groups is None:
        if counts is None or bool(counts.all()):
            return None, torch.tensor([0, n])
        order = counts.nonzero()[:, 0]
        return order, torch.tensor([0, len(order)])
    labels = groups.clamp(min=-1)
    if counts is not None:
        labels = torch.where(counts, labels, -1)
    order = torch.argsort(labels, stable=True)
    # Rows that do not count come first, as group -1.
    return order, torch.bincount(labels + 1, minlength=n_groups + 1).cumsum(0)


def cpp(
    X: Any,
    weights: Tensor | None,
    groups: Tensor | None,
    n_groups: int | None,
    diagonal: bool,
    scales: Tensor | None,
) -> Moments:
    """Return the moments as tensors; see csrc/bindings/moments.cpp."""
    from pyfeat._core import moments_mirror

    d, many = X.shape[1], n_groups or 1
    total = torch.zeros(many, dtype=torch.float64)
    mean = torch.zeros((many, d), dtype=torch.float64)
    scatter = torch.zeros((many, d) if diagonal else (many, d, d), dtype=torch.float64)
    found = Moments(total, mean, scatter)
    whole = isinstance(X, Tensor) and X.is_contiguous()
    row_bytes = max(1, d * X.dtype.itemsize)
    size = X.shape[0] if whole else max(BLOCK_ROWS, BLOCK_BYTES // row_bytes)
    for positions, block in stored_blocks(X, max(1, size)):
        w, s, labels = (
            None if part is None else part[positions] for part in (weights, scales, groups)
        )
        w = w if w is None or w.dtype == torch.bool else w.detach().float()
        order, bounds = sorted_rows(w, labels, n_groups, len(block))
        _add(found, block.detach().contiguous(), w, s, order, bounds)
    if not diagonal:
        moments_mirror(scatter.data_ptr(), many, d, num_threads())
    return found if n_groups is not None else Moments(total[0], mean[0], scatter[0])


def _add(
    found: Moments,
    rows: Tensor,
    weights: Tensor | None,
    scales: Tensor | None,
    order: Tensor | None,
    bounds: Tensor,
) -> None:
    from pyfeat._core import moments as add

    # Held until the call returns: it sees addresses only.
    w = None if weights is None or weights.dtype == torch.bool else weights.contiguous()
    s = None if scales is None else scales.detach().float().contiguous()
    bounds = bounds.contiguous()
    many = len(bounds) - 1
    add(
        rows=tuple(0 if part is None else part.data_ptr() for part in (rows, order, w, s)),
        item=ITEMS[rows.dtype],
        d=rows.shape[1],
        bounds=bounds.data_ptr(),
        groups=many,
        diagonal=found.scatter.ndim == found.mean.ndim,
        threads=num_threads(),
        state=tuple(part.data_ptr() for part in found),
    )


def refuses(
    why_not: Callable[..., str | None],
    X: Any,
    weights: Any = None,
    groups: Any = None,
    n_groups: int | None = None,
    diagonal: bool = False,
    scales: Any = None,
) -> str | None:
    """Return why a backend cannot take these arguments, or None.

    `why_not` is asked about those that are tensors, not arrays, streams or None.
    """
    named = {"X": X, "weights": weights, "groups": groups, "scales": scales}
    tensors = {name: part for name, part in named.items() if isinstance(part, Tensor)}
    return _why_not_float32(X, weights) or why_not(**tensors)


def _why_not_float32(X: Any, weights: Any) -> str | None:
    """Return why the rows of X cannot be weighed and multiplied in float32, or None."""
    kind = str(X.dtype).removeprefix("torch.")
    kinds = [str(dtype).removeprefix("torch.") for dtype in ITEMS]
    if kind not in kinds:
        return f"X must be one of {kinds}, got {kind}: this backend multiplies in float32"
    if isinstance(weights, Tensor) and weights.numel() and weights.dtype != torch.bool:
        low, high = LEAST_WEIGHT, MOST_WEIGHT
        if bool((((weights > 0) & (weights < low)) | (weights > high)).any()):
            return f"weights must be 0 or in [{low:g}, {high:g}] for sums in float32"
    return None
