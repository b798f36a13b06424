"""`rbf_sum` on a GPU: the walk over slabs of rows that "cuda" and "triton" share.

A kernel handles one slab of rows against all columns, a tile a program, and writes three things:
for each tile its sums of rows and of columns, which are added up here in a fixed order and in
float64, and, for the gradient, the slab's coefficients, which two matrix products use up, or, for
the Laplacian, two sums of signs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyfeat.ops._check import stream_of
from pyfeat.ops._rbf_sum_kernels import Gaussian, Laplacian, Linear, PairKernel, Polynomial
from pyfeat.ops._rbf_sum_linear import linear
from pyfeat.ops._rbf_sum_reference import Sums, centre_of, centred

_CUDA_TILE = 128  # kTile of csrc/cuda/rbf_sum.cu
MULTIPLE = 32  # rows are filled up with zeros to a multiple of so many features
_SLAB_NUMBERS = 2**26  # coefficients alive at a time, and as many sums of tiles


class Side(NamedTuple):
    """Rows (n, d), squared lengths (n,) and weights (n,): float32, contiguous."""

    rows: Tensor
    norms: Tensor
    weights: Tensor


class Slab(NamedTuple):
    """What one launch computes: rows `first` to `first + height` of x against all of y.

    `within`: y is x. Then pairs i > j are left out, and i = j counts half, or not at all where
    `leave_out`: each pair is in the sums of its row and of its column.

    row_sums : (tiles across, 2, height), sums of wy_j k_ij and of coefficients
    column_sums : (tiles down, 2, m), sums of wx_i k_ij and of coefficients
    coefficients : (height, m), or None where not wanted
    """

    x: Side
    y: Side
    first: int
    height: int
    within: bool
    leave_out: bool
    row_sums: Tensor
    column_sums: Tensor
    coefficients: Tensor | None


class Signs(NamedTuple):
    """What one launch for the Laplacian's gradient computes, of the rows of one side of a slab.

    out_ik = - sum over j of c_ij sign(own_ik - other_jk), c_ij = coefficients[i s + j t] with
    strides s, t. `role`: 0 where all coefficients count; else those are 0 where, role 1,
    j < first + i, or, role 2, first + j > i, and need not be read.
    """

    own: Tensor
    other: Tensor
    coefficients: Tensor
    out: Tensor
    strides: tuple[int, int]
    role: int
    first: int


class Device(NamedTuple):
    """How a backend launches its two kernels, and rows and columns of a program of the first."""

    sums: Callable[[PairKernel, Slab], None]
    signs: Callable[[Signs], None]
    tile: int


def on_device(
    device: Device,
    X: Tensor,
    Y: Tensor | None,
    kernel: PairKernel,
    x_weights: Tensor,
    y_weights: Tensor | None,
    gradient: str | None,
    diagonal: bool,
) -> Sums:
    """Compute `rbf_sum`, each slab by a launch of the device."""
    tile = device.tile
    if isinstance(kernel, Linear):
        return linear(X, Y, x_weights, y_weights, gradient, diagonal)
    centre = centre_of(X, Y).float() if isinstance(kernel, Gaussian) else None
    x = _side(X, x_weights, centre)
    y = x if Y is None or y_weights is None else _side(Y, y_weights, centre)
    n, m = len(x.rows), len(y.rows)
    sums = [torch.zeros((2, k), dtype=torch.float64, device=X.device) for k in (n, m)]
    pulled = [torch.zeros_like(side.rows) for side in (x, y)] if gradient == "rows" else []
    tall = max(tile, _SLAB_NUMBERS // max(1, m) // tile * tile)
    for first in range(0, n if m else 0, tall):
        count = min(tall, n - first)
        row_sums = x.rows.new_zeros((-(-m // tile), 2, count))
        column_sums = x.rows.new_zeros((-(-count // tile), 2, m))
        coefficients = x.rows.new_empty((count, m)) if gradient == "rows" else None
        slab = Slab(
            x, y, first, count, Y is None, not diagonal, row_sums, column_sums, coefficients
        )
        device.sums(kernel, slab)
        part = slice(first, first + slab.height)
        sums[0][:, part] += slab.row_sums.sum(dim=0, dtype=torch.float64)
        sums[1] += slab.column_sums.sum(dim=0, dtype=torch.float64)
        if coefficients is not None:
            of_x, of_y = _pulled(device, kernel, slab, coefficients)
            pulled[0][part] += of_x
            pulled[1] += of_y
    found = _result(kernel, x, y, sums, pulled, gradient, Y is None)
    d = X.shape[1]
    cut = (None if g is None else g[:, :d] for g in found[3:])
    return Sums(*found[:3], *cut)


def _pulled(
    device: Device, kernel: PairKernel, slab: Slab, coefficients: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what the coefficients make of the other side's rows, for each side of the slab."""
    x, y = slab.x.rows[slab.first : slab.first + slab.height], slab.y.rows
    if not isinstance(kernel, Laplacian):
        return coefficients @ y, coefficients.T @ x
    of_x, of_y = torch.zeros_like(x), torch.zeros_like(y)
    if x.shape[1]:
        m = len(y)
        of_rows, of_columns = (1, 2) if slab.within else (0, 0)
        device.signs(Signs(x, y, coefficients, of_x, (m, 1), of_rows, slab.first))
        device.signs(Signs(y, x, coefficients, of_y, (1, m), of_columns, slab.first))
    return of_x, of_y


def _side(rows: Tensor, weights: Tensor, centre: Tensor | None) -> Side:
    shifted = rows if centre is None else rows - centre
    _, norms = centred(shifted, None)
    shifted = shifted.masked_fill(norms.isnan()[:, None], torch.nan)
    shifted = torch.nn.functional.pad(shifted, (0, -shifted.shape[1] % MULTIPLE))
    return Side(shifted.contiguous(), norms.float(), weights.contiguous())


def _result(
    kernel: PairKernel,
    x: Side,
    y: Side,
    sums: list[Tensor],
    pulled: list[Tensor],
    gradient: str | None,
    within: bool,
) -> Sums:
    gradients = pulled
    if isinstance(kernel, Gaussian):
        gradients = [
            p - found[1, :, None].float() * side.rows
            for side, found, p in zip((x, y), sums, pulled, strict=False)
        ]
    if not within:
        value = x.weights.double() @ sums[0][0]
        if gradient is None:
            return Sums(value)
        return Sums(value, sums[0][0], sums[1][0], *gradients)
    own = sums[0][0] + sums[1][0]
    value = x.weights.double() @ own
    if gradient is None:
        return Sums(value)
    return Sums(value, own, None, 2 * (gradients[0] + gradients[1]) if gradients else None)


def parameters(kernel: PairKernel) -> tuple[int, list[float], float, int]:
    """Return the kernel as numbers: kind (enum PairKernel of csrc), gammas, coef0, degree."""
    if isinstance(kernel, Gaussian):
        return 0, list(kernel.gammas), 0.0, 1
    if isinstance(kernel, Laplacian):
        return 1, [kernel.gamma], 0.0, 1
    if isinstance(kernel, Polynomial):
        return 2, [kernel.gamma], kernel.coef0, kernel.degree
    raise TypeError(f"kernel must be one of pairs, got {kernel}")


def _launch_cuda(kernel: PairKernel, slab: Slab) -> None:
    from pyfeat._cuda import rbf_sum as run

    kind, gammas, coef0, degree = parameters(kernel)
    part = slice(slab.first, slab.first + slab.height)
    x, y = slab.x, slab.y
    m, d = y.rows.shape
    device = x.rows.device
    numbers = torch.tensor([*gammas, coef0], dtype=torch.float32, device=device)
    sides = (x.rows[part], y.rows, x.norms[part], y.norms, x.weights[part], y.weights)
    outputs = (slab.row_sums, slab.column_sums, slab.coefficients)
    with stream_of(x.rows) as stream:
        run(
            [t.data_ptr() for t in sides],
            [0 if t is None else t.data_ptr() for t in outputs],
            numbers=numbers.data_ptr(),
            form=(kind, degree if kind == 2 else len(gammas)),
            shape=(slab.first, slab.height, m, d),
            within=(2 if slab.leave_out else 1) if slab.within else 0,
            stream=stream,
        )


def _launch_cuda_signs(signs: Signs) -> None:
    from pyfeat._cuda import rbf_signs as run

    tensors = (signs.own, signs.other, signs.coefficients, signs.out)
    with stream_of(signs.own) as stream:
        run(
            [t.data_ptr() for t in tensors],
            shape=(*signs.own.shape, len(signs.other)),
            strides=signs.strides,
            within=(signs.role, signs.first),
            stream=stream,
        )


CUDA = Device(_launch_cuda, _launch_cuda_signs, _CUDA_TILE)
