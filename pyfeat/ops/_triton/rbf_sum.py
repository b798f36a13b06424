"""Tiles of `rbf_sum` in Triton; `_rbf_sum_device` walks over the slabs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyfeat.ops._rbf_sum_device import Slab, parameters
from pyfeat.ops._rbf_sum_kernels import PairKernel
from pyfeat.ops._triton import Kernel

TILE = 64
STEP = 16  # features at a time; divides MULTIPLE of _rbf_sum_device


@triton.jit
def _values(product, x_norm, y_norm, numbers, KIND: tl.constexpr, COUNT: tl.constexpr):
    # numbers: COUNT gammas, then coef0; COUNT is the degree of a polynomial
    if KIND == 2:
        gamma = tl.load(numbers)
        base = gamma * product + tl.load(numbers + 1)
        power = tl.full(product.shape, 1.0, tl.float32)
        for _ in range(COUNT - 1):
            power *= base
        return power * base, power * gamma * COUNT
    squared = x_norm[:, None] + y_norm[None, :] - 2 * product
    squared = tl.where(squared < 0, 0.0, squared)  # NaN stays
    k = tl.zeros(product.shape, tl.float32)
    slope = tl.zeros(product.shape, tl.float32)
    for b in range(COUNT):
        gamma = tl.load(numbers + b)
        term = tl.exp(-gamma * squared)
        k += term
        slope += 2 * gamma * term
    return k, slope


@triton.jit
def tile_sums(
    x,  # (count, d)
    y,  # (m, d)
    x_side,  # (2, count): squared lengths, weights
    y_side,  # (2, m)
    numbers,
    row_sums,  # (tiles across, 2, count)
    column_sums,  # (tiles down, 2, m)
    coefficients,  # (count, m)
    first,
    count,
    m,
    d,
    KIND: tl.constexpr,
    COUNT: tl.constexpr,
    WITHIN: tl.constexpr,  # 0: two samples; 1: one; 2: one, without its diagonal
    GRADIENT: tl.constexpr,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
):
    tile_down = tl.program_id(0)
    tile_across = tl.program_id(1)
    i = tile_down * SIZE + tl.arange(0, SIZE)
    j = tile_across * SIZE + tl.arange(0, SIZE)
    features = tl.arange(0, STEP)
    x_at = x + i[:, None].to(tl.int64) * d + features[None, :]
    y_at = y + j[:, None].to(tl.int64) * d + features[None, :]
    product = tl.zeros((SIZE, SIZE), tl.float32)
    for k in range(0, d, STEP):
        left = tl.load(x_at + k, mask=i[:, None] < count, other=0.0)
        right = tl.load(y_at + k, mask=j[:, None] < m, other=0.0)
        product = tl.dot(left, tl.trans(right), product, input_precision="ieee")
    x_norm = tl.load(x_side + i, mask=i < count, other=0.0)
    y_norm = tl.load(y_side + j, mask=j < m, other=0.0)
    x_weight = tl.load(x_side + count + i, mask=i < count, other=0.0)
    y_weight = tl.load(y_side + m + j, mask=j < m, other=0.0)
    if WITHIN > 0:
        own = first + i
        itself = own[:, None] == j[None, :]
        # |x - x|^2 is 0, whatever the product was rounded to
        if KIND == 0:
            product = tl.where(itself, x_norm[:, None], product)
        kernel, slope = _values(product, x_norm, y_norm, numbers, KIND, COUNT)
        # NaN stays NaN in the part that counts; the other part must not see it.
        share = tl.where(itself, 0.5 if WITHIN == 1 else 0.0, 1.0)
        counts = own[:, None] <= j[None, :]
        kernel = tl.where(counts, kernel * share, 0.0)
        slope = tl.where(counts, slope * share, 0.0)
    else:
        kernel, slope = _values(product, x_norm, y_norm, numbers, KIND, COUNT)
    inside = (i[:, None] < count) & (j[None, :] < m)
    kernel = tl.where(inside, kernel, 0.0)
    at_rows = row_sums + tile_across.to(tl.int64) * 2 * count + i
    at_columns = column_sums + tile_down.to(tl.int64) * 2 * m + j
    tl.store(at_rows, tl.sum(kernel * y_weight[None, :], axis=1), mask=i < count)
    tl.store(at_columns, tl.sum(kernel * x_weight[:, None], axis=0), mask=j < m)
    if GRADIENT:
        c = tl.where(inside, slope * (x_weight[:, None] * y_weight[None, :]), 0.0)
        tl.store(at_rows + count, tl.sum(c, axis=1), mask=i < count)
        tl.store(at_columns + m, tl.sum(c, axis=0), mask=j < m)
        to = coefficients + i[:, None].to(tl.int64) * m + j[None, :]
        tl.store(to, c, mask=inside)


def launch(kernel: PairKernel, slab: Slab) -> None:
    """Compute one slab."""
    kind, gammas, coef0, degree = parameters(kernel)
    part = slice(slab.first, slab.first + slab.height)
    x, y = slab.x, slab.y
    m, d = y.rows.shape
    device = x.rows.device
    x_side = torch.stack([x.norms[part], x.weights[part]])
    y_side = torch.stack([y.norms, y.weights])
    numbers = torch.tensor([*gammas, coef0], dtype=torch.float32, device=device)
    coefficients: Tensor = slab.row_sums if slab.coefficients is None else slab.coefficients
    grid = (triton.cdiv(slab.height, TILE), triton.cdiv(m, TILE))
    with torch.cuda.device_of(x.rows):
        tile_sums[grid](
            x.rows[part],
            y.rows,
            x_side,
            y_side,
            numbers,
            slab.row_sums,
            slab.column_sums,
            coefficients,
            slab.first,
            slab.height,
            m,
            d,
            KIND=kind,
            COUNT=degree if kind == 2 else len(gammas),
            WITHIN=(2 if slab.leave_out else 1) if slab.within else 0,
            GRADIENT=slab.coefficients is not None,
            SIZE=TILE,
            STEP=STEP,
            num_warps=8,
            num_stages=3,
        )


_SIGNATURE = {
    **dict.fromkeys(
        ("x", "y", "x_side", "y_side", "numbers", "row_sums", "column_sums", "coefficients"),
        "*fp32",
    ),
    **dict.fromkeys(("first", "count", "m", "d"), "i32"),
}
KERNELS = tuple(
    Kernel(
        tile_sums,
        _SIGNATURE,
        {
            "KIND": kind,
            "COUNT": count,
            "WITHIN": within,
            "GRADIENT": gradient,
            "SIZE": TILE,
            "STEP": STEP,
        },
        warps=8,
        stages=3,
    )
    for kind, count in ((0, 1), (0, 5), (2, 3))
    for within, gradient in ((0, True), (1, False), (2, True))
)
