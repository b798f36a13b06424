"""Linear kernel sums need no pairs: <sum of wx_i x_i, sum of wy_j y_j> and its parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyfeat.ops._rbf_sum_reference import Sums, centred

_BLOCK = 4096  # rows in float64 at a time


def linear(
    X: Tensor,
    Y: Tensor | None,
    x_weights: Tensor,
    y_weights: Tensor | None,
    gradient: str | None,
    diagonal: bool,
) -> Sums:
    """Compute what `reference` computes for the linear kernel, in (n + m) d products."""
    wx = x_weights.double()
    if Y is None or y_weights is None:
        return _within(X, wx, gradient, diagonal)
    wy = y_weights.double()
    x_total, y_total = _total(X, wx), _total(Y, wy)
    value = x_total @ y_total
    if gradient is None:
        return Sums(value)
    x_sums = _each(X, lambda rows, _: rows @ y_total)
    y_sums = _each(Y, lambda rows, _: rows @ x_total)
    if gradient == "weights":
        return Sums(value, x_sums, y_sums)
    return Sums(value, x_sums, y_sums, wx[:, None] * y_total, wy[:, None] * x_total)


def _within(X: Tensor, w: Tensor, gradient: str | None, diagonal: bool) -> Sums:
    total = _total(X, w)
    out = 0.0 if diagonal else 1.0

    def sums_of(rows: Tensor, part: slice) -> Tensor:
        return rows @ total - out * w[part] * rows.square().sum(dim=1)

    sums = _each(X, sums_of)
    value = w @ sums
    if gradient is None:
        return Sums(value)
    if gradient == "weights":
        return Sums(value, sums)

    def gradient_of(rows: Tensor, part: slice) -> Tensor:
        own = w[part, None]
        return 2 * own * (total - out * own * rows)

    return Sums(value, sums, None, _each(X, gradient_of))


def _parts(n: int) -> list[slice]:
    return [slice(first, min(n, first + _BLOCK)) for first in range(0, max(1, n), _BLOCK)]


def _total(X: Tensor, w: Tensor) -> Tensor:
    """Return the sum of w_i x_i, (d,)."""
    parts = [w[part] @ centred(X[part], None)[0] for part in _parts(len(X))]
    return torch.stack(parts).sum(dim=0)


def _each(X: Tensor, of: Callable[[Tensor, slice], Tensor]) -> Tensor:
    return torch.cat([of(centred(X[part], None)[0], part) for part in _parts(len(X))])
