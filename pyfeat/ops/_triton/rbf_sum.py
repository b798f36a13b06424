"""Tiles of `rbf_sum` in Triton; `_rbf_sum_device` walks over the slabs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyfeat.ops._rbf_sum_device import MULTIPLE, Device, Signs, Slab, parameters
from pyfeat.ops._rbf_sum_kernels import PairKernel
from pyfeat.ops._triton import Kernel

TILE = 64
SHORT = 256  # rows of a short sum
STEP = 16  # features at a time; divides MULTIPLE


@triton.jit
def _values(product, x_norm, y_norm, numbers, KIND: tl.constexpr, COUNT: tl.constexpr):
    # numbers: COUNT gammas, then coef0; COUNT is the degree of a polynomial
    if KIND == 1:  # the product is a distance
        gamma = tl.load(numbers)
        k = tl.exp(-gamma * product)
        return k, gamma * k
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
def _counted(kernel, slope, i, j, x_norm, WITHIN: tl.constexpr):
    # NaN stays NaN in the part that counts; the other part must not see it. A row left out with
    # itself counts only where it is NaN: what is infinite there is no pair's.
    itself = i[:, None] == j[None, :]
    counts = i[:, None] <= j[None, :]
    if WITHIN == 2:
        counts = counts & ~(itself & (x_norm >= 0)[:, None])
    share = tl.where(itself, 0.5, 1.0)
    return tl.where(counts, kernel * share, 0.0), tl.where(counts, slope * share, 0.0)


@triton.jit
def _products(x, y, i, j, count, m, d, SIZE: tl.constexpr, STEP: tl.constexpr):
    features = tl.arange(0, STEP)
    x_at = x + i[:, None].to(tl.int64) * d + features[None, :]
    y_at = y + j[:, None].to(tl.int64) * d + features[None, :]
    product = tl.zeros((SIZE, SIZE), tl.float32)
    for k in range(0, d, STEP):
        left = tl.load(x_at + k, mask=i[:, None] < count, other=0.0)
        right = tl.load(y_at + k, mask=j[:, None] < m, other=0.0)
        product = tl.dot(left, tl.trans(right), product, input_precision="ieee")
    return product


@triton.jit
def _distances(x, y, i, j, count, m, d, SIZE: tl.constexpr):
    # A feature of a tile's rows lies in one piece, and needs no mask: each thread reads, 16 bytes
    # at a time, what its own pairs need, with nothing passed between threads.
    x_line = tl.cdiv(count, SIZE) * SIZE
    y_line = tl.cdiv(m, SIZE) * SIZE
    distance = tl.zeros((SIZE, SIZE), tl.float32)
    for _ in range(0, d):
        distance += tl.abs(tl.load(x + i[:, None]) - tl.load(y + j[None, :]))
        x += x_line
        y += y_line
    return distance


@triton.jit
def tile_sums(
    x,  # (count, d); KIND 1: (d, count up to whole tiles)
    y,  # (m, d), or likewise
    x_side,  # (2, count): squared lengths, weights
    y_side,  # (2, m)
    numbers,
    row_sums,  # (tiles across, 2, count), zeros
    column_sums,  # (tiles down, 2, m), zeros
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
    inside = (i[:, None] < count) & (j[None, :] < m)
    to = coefficients + i[:, None].to(tl.int64) * m + j[None, :]
    if WITHIN > 0:
        below = first + tile_down * SIZE >= (tile_across + 1) * SIZE  # the diagonal, wholly
        if below:
            if GRADIENT:
                tl.store(to, tl.zeros((SIZE, SIZE), tl.float32), mask=inside)
            return
    if KIND == 1:
        product = _distances(x, y, i, j, count, m, d, SIZE)
    else:
        product = _products(x, y, i, j, count, m, d, SIZE, STEP)
    x_norm = tl.load(x_side + i, mask=i < count, other=0.0)
    y_norm = tl.load(y_side + j, mask=j < m, other=0.0)
    x_weight = tl.load(x_side + count + i, mask=i < count, other=0.0)
    y_weight = tl.load(y_side + m + j, mask=j < m, other=0.0)
    if WITHIN > 0:
        own = first + i
        # |x - x|^2 is 0, whatever the product was rounded to
        if KIND == 0:
            product = tl.where(own[:, None] == j[None, :], x_norm[:, None], product)
        kernel, slope = _values(product, x_norm, y_norm, numbers, KIND, COUNT)
        kernel, slope = _counted(kernel, slope, own, j, x_norm, WITHIN)
    else:
        kernel, slope = _values(product, x_norm, y_norm, numbers, KIND, COUNT)
    kernel = tl.where(inside, kernel, 0.0)
    slope = tl.where(inside, slope, 0.0)
    at_rows = row_sums + tile_across.to(tl.int64) * 2 * count + i
    at_columns = column_sums + tile_down.to(tl.int64) * 2 * m + j
    tl.store(at_rows, tl.sum(kernel * y_weight[None, :], axis=1), mask=i < count)
    tl.store(at_columns, tl.sum(kernel * x_weight[:, None], axis=0), mask=j < m)
    if GRADIENT:
        c = slope * (x_weight[:, None] * y_weight[None, :])
        tl.store(at_rows + count, tl.sum(c, axis=1), mask=i < count)
        tl.store(at_columns + m, tl.sum(c, axis=0), mask=j < m)
        tl.store(to, c, mask=inside)


@triton.jit
def sign_sums(
    own,  # (count, d)
    other,  # (others, d)
    coefficients,
    out,  # (count, d)
    first,
    count,
    others,
    d,
    down,
    across,
    ROLE: tl.constexpr,  # of `own`, see Signs
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,  # divides d
    SHORT: tl.constexpr,
):
    begin_row = tl.program_id(0) * SIZE
    i = begin_row + tl.arange(0, SIZE)
    k = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    at = i[:, None].to(tl.int64) * d + k[None, :]
    x = tl.load(own + at, mask=i[:, None] < count, other=0.0)
    line = coefficients + i.to(tl.int64) * down
    begin = 0
    end = others
    if ROLE == 1:
        begin = tl.minimum(first + begin_row, others)
    if ROLE == 2:
        end = tl.maximum(tl.minimum(begin_row + SIZE - first, others), 0)
    total = tl.zeros((SIZE, WIDE), tl.float32)
    # Long sums are sums of short ones: rounding would grow with the number of rows.
    for start in range(begin, end, SHORT):
        short = tl.zeros((SIZE, WIDE), tl.float32)
        for j in range(start, tl.minimum(start + SHORT, end)):
            step = tl.cast(j, tl.int64)
            c = tl.load(line + step * across, mask=i < count, other=0.0)[:, None]
            y = tl.load(other + step * d + k)[None, :]
            short += c * (tl.where(x > y, 1.0, 0.0) - tl.where(x < y, 1.0, 0.0))  # NaN stays
        total += short
    tl.store(out + at, -total, mask=i[:, None] < count)


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
    rows = x.rows[part], y.rows
    if kind == 1:
        rows = _by_feature(rows[0]), _by_feature(rows[1])
    coefficients: Tensor = slab.row_sums if slab.coefficients is None else slab.coefficients
    grid = (triton.cdiv(slab.height, TILE), triton.cdiv(m, TILE))
    with torch.cuda.device_of(x.rows):
        tile_sums[grid](
            *rows,
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


def _by_feature(rows: Tensor) -> Tensor:
    """Return rows (n, d) as (d, n), n filled up with zeros to whole tiles."""
    return torch.nn.functional.pad(rows.T, (0, -len(rows) % TILE)).contiguous()


def launch_signs(signs: Signs) -> None:
    """Compute the gradient of one side of a slab."""
    count, d = signs.own.shape
    with torch.cuda.device_of(signs.own):
        sign_sums[(triton.cdiv(count, TILE), d // MULTIPLE)](
            signs.own,
            signs.other,
            signs.coefficients,
            signs.out,
            signs.first,
            count,
            len(signs.other),
            d,
            *signs.strides,
            ROLE=signs.role,
            SIZE=TILE,
            WIDE=MULTIPLE,
            SHORT=SHORT,
            num_warps=8,
        )


DEVICE = Device(launch, launch_signs, TILE)

_SIGNATURE = {
    **dict.fromkeys(
        ("x", "y", "x_side", "y_side", "numbers", "row_sums", "column_sums", "coefficients"),
        "*fp32",
    ),
    **dict.fromkeys(("first", "count", "m", "d"), "i32"),
}
_SIGNS = {
    **dict.fromkeys(("own", "other", "coefficients", "out"), "*fp32"),
    **dict.fromkeys(("first", "count", "others", "d", "down", "across"), "i32"),
}
KERNELS = (
    *(
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
        for kind, count in ((0, 1), (0, 5), (1, 1), (2, 3))
        for within, gradient in ((0, True), (1, False), (2, True))
    ),
    *(
        Kernel(
            sign_sums,
            _SIGNS,
            {"ROLE": role, "SIZE": TILE, "WIDE": MULTIPLE, "SHORT": SHORT},
            warps=8,
        )
        for role in (0, 1, 2)
    ),
)
