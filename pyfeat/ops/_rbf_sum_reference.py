"""What `rbf_sum` means: every pair of rows, in float64, a block of rows at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyfeat.ops._rbf_sum_kernels import Gaussian, Laplacian, Linear, PairKernel, Polynomial

LONGEST = 1e37  # squared length from which a row counts as not finite; float32 ends at 3.4e38
_SAMPLE = 64  # rows of a side that the centre is taken from
_BLOCK_NUMBERS = 2**21  # kernel values alive at a time


class Sums(NamedTuple):
    """What a backend returns, None for what was not wanted: see `RbfSum`."""

    value: Tensor
    x_sums: Tensor | None = None
    y_sums: Tensor | None = None
    x_gradient: Tensor | None = None
    y_gradient: Tensor | None = None


def centre_of(X: Tensor, Y: Tensor | None) -> Tensor:
    """Return a point (d,) amid the rows: the median of some, in float64, 0 where none is finite.

    Distances do not change when it is subtracted from all rows, but products round to it. A median,
    for one row far out must not drag it away from the others.
    """
    some = [rows[:: max(1, len(rows) // _SAMPLE)] for rows in (X, Y) if rows is not None]
    sample = torch.cat(some).detach().double()
    if not len(sample):
        return sample.new_zeros(X.shape[1])
    finite = torch.where(sample.isfinite(), sample, torch.nan)
    return finite.nanmedian(dim=0).values.nan_to_num(nan=0.0)


def centred(X: Tensor, centre: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return X - centre and its squared lengths (n,) in float64; too long a row is all NaN."""
    rows = X.double() if centre is None else X.double() - centre
    norms = rows.square().sum(dim=1)
    bad = ~(norms.detach() <= LONGEST)
    return rows.masked_fill(bad[:, None], torch.nan), norms.masked_fill(bad, torch.nan)


def kernel_block(
    kernel: PairKernel, x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return k (b, m) and its slope, for rows and squared lengths as `centred` gives them.

    The slope is -2 dk/d|x-y|^2, -dk/d|x-y|_1 or dk/d<x,y>.
    """
    if isinstance(kernel, Laplacian):
        k = torch.exp(-kernel.gamma * torch.cdist(x[0], y[0], p=1))
        return k, kernel.gamma * k
    product = x[0] @ y[0].T
    if isinstance(kernel, Linear):
        return product, torch.ones_like(product)
    if isinstance(kernel, Polynomial):
        base = kernel.gamma * product + kernel.coef0
        return base**kernel.degree, kernel.degree * kernel.gamma * base ** (kernel.degree - 1)
    squared = (x[1][:, None] + y[1] - 2 * product).clamp(min=0)
    terms = [torch.exp(-gamma * squared) for gamma in kernel.gammas]
    slopes = [2 * gamma * term for gamma, term in zip(kernel.gammas, terms, strict=True)]
    return torch.stack(terms).sum(dim=0), torch.stack(slopes).sum(dim=0)


def _pulled(kernel: PairKernel, c: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient (b, d) of the rows x, for the coefficients c (b, m)."""
    if isinstance(kernel, Gaussian):
        return c @ y - c.sum(dim=1, keepdim=True) * x
    if isinstance(kernel, Laplacian):
        signs = (torch.sign(x[:, k, None] - y[:, k]) for k in range(x.shape[1]))
        return -torch.stack([(c * s).sum(dim=1) for s in signs], dim=1) if x.numel() else x
    return c @ y


def reference(
    X: Tensor,
    Y: Tensor | None,
    kernel: PairKernel,
    x_weights: Tensor,
    y_weights: Tensor | None,
    gradient: str | None,
    diagonal: bool,
) -> Sums:
    """Sum over all pairs: plain torch, on any device, differentiable."""
    centre = centre_of(X, Y) if isinstance(kernel, Gaussian) else None
    left = centred(X, centre)
    right = left if Y is None else centred(Y, centre)
    wx = x_weights.double()
    wy = wx if Y is None or y_weights is None else y_weights.double()
    n, m = len(wx), len(wy)
    x_sums, x_pulls = [], []
    y_sums, y_pulls = torch.zeros_like(wy), torch.zeros_like(right[0])
    block = max(1, _BLOCK_NUMBERS // max(1, m))
    for first in range(0, n, block):
        part = slice(first, min(n, first + block))
        rows = left[0][part], left[1][part]
        k, slope = kernel_block(kernel, rows, right)
        if Y is None:
            itself = (
                torch.arange(m, device=X.device) == torch.arange(n, device=X.device)[part, None]
            )
            k, slope = _on_diagonal(kernel, diagonal, itself, k, slope)
        x_sums.append(k @ wy)
        y_sums = y_sums + wx[part] @ k
        if gradient == "rows":
            c = slope * wx[part, None] * wy
            x_pulls.append(_pulled(kernel, c, rows[0], right[0]))
            if Y is not None:
                y_pulls = y_pulls + _pulled(kernel, c.T, right[0], rows[0])
    sums = torch.cat(x_sums) if x_sums else torch.zeros_like(wx)
    value = wx @ sums
    if gradient is None:
        return Sums(value)
    x_gradient = torch.cat([torch.zeros_like(left[0][:0]), *x_pulls])
    if Y is None:
        return Sums(value, sums, None, 2 * x_gradient if gradient == "rows" else None)
    if gradient == "weights":
        return Sums(value, sums, y_sums)
    return Sums(value, sums, y_sums, x_gradient, y_pulls)


def _on_diagonal(
    kernel: PairKernel, counts: bool, itself: Tensor, k: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Return k and slope with a row's pair with itself exact, or times 0 where it does not count.

    Times: so that NaN stays NaN.
    """
    if not counts:
        return k * ~itself, slope * ~itself
    if isinstance(kernel, Gaussian):  # exp(0), whatever the distance was rounded to
        k = torch.where(itself & ~k.isnan(), float(len(kernel.gammas)), k)
    return k, slope
