"""Mean and scatter of rows on a GPU: two passes, groups by an order of rows."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyfeat.ops._moments_cpp import sorted_rows
from pyfeat.ops._moments_reference import Moments
from pyfeat.ops._triton import Kernel

TILE = 64  # columns of a tile
ROWS = 16  # rows of one product
DEPTH = 1024  # rows that are summed in float32
MEAN_COLUMNS = 64
# Programs a group is cut into, where memory allows: each has a float64 matrix of its own.
MOST_PARTS = 8
WARPS = 8


@triton.jit
def moments_sums(
    x,  # *(n, d), as stored
    order,  # *(m,) i64: the rows that count, group after group
    weights,  # *(n,) f32
    scales,  # *(n,) f32
    bounds,  # *(parts + 1,) i64: part p has order[bounds[p]:bounds[p + 1]]
    shift,  # *(parts, d) f32
    out,  # *(parts, 2, d) f64: sums of w (x - shift), and of w (x - shift)^2
    d,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum one strip of columns over one part of the rows."""
    strips = tl.cdiv(d, COLUMNS)
    part = (tl.program_id(0) // strips).to(tl.int64)
    column = tl.program_id(0) % strips * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < d
    near = tl.load(shift + part * d + column, mask=inside, other=0.0)
    begin, end = tl.load(bounds + part), tl.load(bounds + part + 1)
    sums = tl.zeros((COLUMNS,), tl.float64)
    squares = tl.zeros((COLUMNS,), tl.float64)
    for at in range(begin, end, ROWS):
        position = at + tl.arange(0, ROWS)
        row = tl.load(order + position, mask=position < end, other=0)
        w = tl.load(weights + row, mask=position < end, other=0.0)
        scale = tl.load(scales + row, mask=position < end, other=0.0)
        mask = (position < end)[:, None] & inside[None, :]
        v = tl.load(x + row[:, None] * d + column[None, :], mask=mask, other=0.0).to(tl.float32)
        v = tl.where(mask, v * scale[:, None] - near[None, :], 0.0)
        sums += tl.sum(v * w[:, None], axis=0).to(tl.float64)
        squares += tl.sum(v * v * w[:, None], axis=0).to(tl.float64)
    tl.store(out + part * 2 * d + column, sums, mask=inside)
    tl.store(out + (part * 2 + 1) * d + column, squares, mask=inside)


@triton.jit
def moments_tile(
    x,
    order,
    weights,
    scales,
    bounds,
    shift,
    tiles,  # *(count, 2) i32: rows and columns of tiles on or above the diagonal
    out,  # *(parts, d, d) f64: added to
    count,
    d,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Add one tile of the product of one part of the centred rows."""
    part = (tl.program_id(0) // count).to(tl.int64)
    tile = tiles + tl.program_id(0) % count * 2
    i = tl.load(tile) * TILE + tl.arange(0, TILE)
    j = tl.load(tile + 1) * TILE + tl.arange(0, TILE)
    near_i = tl.load(shift + part * d + i, mask=i < d, other=0.0)
    near_j = tl.load(shift + part * d + j, mask=j < d, other=0.0)
    begin, end = tl.load(bounds + part), tl.load(bounds + part + 1)
    to = out + (part * d + i[:, None]) * d + j[None, :]
    mask = (i < d)[:, None] & (j < d)[None, :]
    for start in range(begin, end, DEPTH):
        stop = tl.minimum(start + DEPTH, end)
        sums = tl.zeros((TILE, TILE), tl.float32)
        for at in range(start, stop, ROWS):
            position = at + tl.arange(0, ROWS)
            row = tl.load(order + position, mask=position < stop, other=0)
            root = tl.sqrt(tl.load(weights + row, mask=position < stop, other=0.0))
            scale = tl.load(scales + row, mask=position < stop, other=0.0)
            mask_i = (position < stop)[None, :] & (i < d)[:, None]
            mask_j = (position < stop)[:, None] & (j < d)[None, :]
            a = tl.load(x + row[None, :] * d + i[:, None], mask=mask_i, other=0.0).to(tl.float32)
            b = tl.load(x + row[:, None] * d + j[None, :], mask=mask_j, other=0.0).to(tl.float32)
            a = tl.where(mask_i, (a * scale[None, :] - near_i[:, None]) * root[None, :], 0.0)
            b = tl.where(mask_j, (b * scale[:, None] - near_j[None, :]) * root[:, None], 0.0)
            sums = tl.dot(a, b, sums, input_precision="ieee")
        # In memory, not in registers: these are for the products.
        tl.store(to, tl.load(to, mask=mask, other=0.0) + sums.to(tl.float64), mask=mask)


def run(
    X: Tensor,
    weights: Tensor | None,
    groups: Tensor | None,
    n_groups: int | None,
    diagonal: bool,
    scales: Tensor | None,
) -> Moments:
    """Return the moments as tensors."""
    rows = X.detach().contiguous()
    (n, d), many = rows.shape, n_groups or 1
    ones = torch.ones(max(n, 1), dtype=torch.float32, device=X.device)
    w = ones if weights is None else weights.detach().float().contiguous()
    s = ones if scales is None else scales.detach().float().contiguous()
    order, bounds = sorted_rows(None if weights is None else w, groups, n_groups, n)
    order = torch.arange(n, device=X.device) if order is None else order
    bounds = bounds.to(X.device)
    begin, end = bounds[:-1], bounds[1:]
    cuts = _cuts(begin, end, n // many)
    parts = (len(cuts) - 1) // many
    given = (rows, order, w, s, cuts)

    total = torch.zeros(many, dtype=torch.float64, device=X.device)
    label = torch.repeat_interleave(torch.arange(many, device=X.device), end - begin)
    total.index_put_((label,), w[order[bounds[0] : bounds[-1]]].double(), accumulate=True)
    weight = torch.where(total > 0, total, 1.0)[:, None]
    near = torch.zeros((many, d), dtype=torch.float32, device=X.device)
    near = (_sums(given, near, parts)[:, 0] / weight).float()
    found = _sums(given, near, parts)
    rest = found[:, 0] / weight  # what the rounding of `near` left
    if diagonal:
        scatter = found[:, 1] - total[:, None] * rest * rest
    else:
        scatter = _products(given, near, parts)
        scatter -= total[:, None, None] * (rest[:, :, None] * rest[:, None, :])
        scatter = scatter.triu() + scatter.triu(1).mT
    result = Moments(total, near.double() + rest, scatter)
    return result if n_groups is not None else Moments(*(part[0] for part in result))


def _cuts(begin: Tensor, end: Tensor, rows: int) -> Tensor:
    """Return bounds that cut every group into the same number of parts."""
    parts = max(1, min(MOST_PARTS, rows // DEPTH))
    share = torch.arange(parts, device=begin.device)
    cuts = begin[:, None] + (end - begin)[:, None] * share // parts  # (groups, parts)
    return torch.cat([cuts.reshape(-1), end[-1:]])


def _sums(given: tuple[Tensor, ...], near: Tensor, parts: int) -> Tensor:
    """Return (groups, 2, d): sums of w (x - near) and of w (x - near)^2."""
    many, d = near.shape
    out = torch.zeros((many * parts, 2, d), dtype=torch.float64, device=near.device)
    shift = near.repeat_interleave(parts, dim=0)
    if d:
        # In one direction, for only that one takes more than 65535 programs.
        grid = (triton.cdiv(d, MEAN_COLUMNS) * many * parts,)
        with torch.cuda.device_of(out):
            moments_sums[grid](*given, shift, out, d, ROWS, MEAN_COLUMNS, num_warps=WARPS)
    return out.reshape(many, parts, 2, d).sum(1)


def _products(given: tuple[Tensor, ...], near: Tensor, parts: int) -> Tensor:
    """Return (groups, d, d), right on and above the diagonal."""
    many, d = near.shape
    out = torch.zeros((many * parts, d, d), dtype=torch.float64, device=near.device)
    shift = near.repeat_interleave(parts, dim=0)
    across = triton.cdiv(d, TILE)
    tiles = torch.triu_indices(across, across, device=near.device).T.to(torch.int32).contiguous()
    if d:
        count = len(tiles)
        sizes = (TILE, ROWS, DEPTH)
        with torch.cuda.device_of(out):
            moments_tile[(count * many * parts,)](
                *given, shift, tiles, out, count, d, *sizes, num_warps=WARPS, num_stages=2
            )
    return out.reshape(many, parts, d, d).sum(1)


def _signature(item: str, **more: str) -> dict[str, Any]:
    return {
        "x": f"*{item}",
        "order": "*i64",
        "weights": "*fp32",
        "scales": "*fp32",
        "bounds": "*i64",
        "shift": "*fp32",
        **more,
        "out": "*fp64",
        "d": "i32",
    }


KERNELS = tuple(
    kernel
    for item in ("fp32", "fp16", "bf16", "i8")
    for kernel in (
        Kernel(moments_sums, _signature(item), {"ROWS": ROWS, "COLUMNS": MEAN_COLUMNS}, WARPS),
        Kernel(
            moments_tile,
            _signature(item, tiles="*i32", count="i32"),
            {"TILE": TILE, "ROWS": ROWS, "DEPTH": DEPTH},
            WARPS,
        ),
    )
)
