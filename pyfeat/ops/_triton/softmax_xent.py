"""Scores to residuals for tiles of rows: one kernel between two matrix products of torch."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyfeat.ops._softmax_xent_reference import Rows, Sums
from pyfeat.ops._triton import Kernel

ROWS = 16
COLUMNS = 64
PARTS = 3  # spread, sum of residuals, sum of turned residuals


@triton.jit
def row_sums(
    scores,
    turns,
    start,
    inside,
    label,
    classes,
    TURN: tl.constexpr,
    VIRTUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return of each row: the maximum z, sum exp(z - max), the label's z, sum exp(z - max) t."""
    column = tl.arange(0, COLUMNS)
    # One pass for the maximum, and for the sums as if it were known: they shrink when it grows.
    peak = tl.zeros([ROWS], tl.float32) + (0.0 if VIRTUAL else float("-inf"))
    total = tl.zeros([ROWS], tl.float32) + VIRTUAL
    own = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS], tl.float32)
    for first in range(0, classes, COLUMNS):
        c = first + column
        at = start[:, None] + c[None, :]
        there = inside[:, None] & (c < classes)[None, :]
        z = tl.load(scores + at, mask=there, other=0.0)
        z = tl.where((c < classes)[None, :], z, float("-inf"))
        higher = tl.maximum(peak, tl.max(z, axis=1))
        shrunk = tl.exp(peak - higher)
        e = tl.exp(z - higher[:, None])
        total = total * shrunk + tl.sum(e, axis=1)
        own += tl.sum(tl.where(c[None, :] == label[:, None], z, 0.0), axis=1)
        if TURN:
            t = tl.load(turns + at, mask=there, other=0.0)
            mean = mean * shrunk + tl.sum(e * t, axis=1)
        peak = higher
    return peak, total, own, mean


@triton.jit
def residuals(
    scores,  # (n, P, classes); becomes w (p - onehot(y))
    turns,  # the same shape; becomes w p (t - sum_c p_c t_c). Not read unless TURN
    labels,  # (n,), int64
    weights,  # (P, n)
    losses,  # (P, n): out, w loss
    parts,  # (tiles of rows, PARTS, P, classes): out, sums over the rows of a tile
    n,
    classes,
    TURN: tl.constexpr,
    VIRTUAL: tl.constexpr,  # 1: a class 0 with score 0 comes before those there are
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tile, problem, problems = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    start = (row * problems + problem) * classes
    label = tl.load(labels + row, mask=inside, other=0) - VIRTUAL
    weight = tl.load(weights + problem.to(tl.int64) * n + row, mask=inside, other=0.0)
    column = tl.arange(0, COLUMNS)

    peak, total, own, mean = row_sums(
        scores, turns, start, inside, label, classes, TURN, VIRTUAL, ROWS, COLUMNS
    )
    loss = tl.log(total) + (peak - own)
    tl.store(losses + problem.to(tl.int64) * n + row, weight * loss, mask=inside)
    mean = mean / total

    out = (tile.to(tl.int64) * 3 * problems + problem) * classes
    step = problems * classes
    for first in range(0, classes, COLUMNS):
        c = first + column
        at = start[:, None] + c[None, :]
        there = inside[:, None] & (c < classes)[None, :]
        z = tl.load(scores + at, mask=there, other=0.0)
        p = tl.exp(z - peak[:, None]) / total[:, None]
        wp = weight[:, None] * p
        r = tl.where(c[None, :] == label[:, None], wp - weight[:, None], wp)
        tl.store(scores + at, r, mask=there)
        tl.store(parts + out + c, tl.sum(wp * (1.0 - p), axis=0), mask=c < classes)
        tl.store(parts + out + step + c, tl.sum(r, axis=0), mask=c < classes)
        if TURN:
            t = tl.load(turns + at, mask=there, other=0.0)
            s = wp * (t - mean[:, None])
            tl.store(turns + at, s, mask=there)
            tl.store(parts + out + 2 * step + c, tl.sum(s, axis=0), mask=c < classes)


def run(
    rows: Rows,
    labels: Tensor,
    theta: Tensor,
    weights: Tensor | None,
    direction: Tensor | None,
    bf16: bool,
) -> Sums:
    """Return the sums over rows, block by block; see `softmax_xent`."""
    n = len(rows.items)
    problems, outputs, width = theta.shape
    low = theta.float()
    turn = None if direction is None else direction.float()
    each = torch.full((1, n), 1.0 / max(n, 1), dtype=torch.float32, device=theta.device)
    w = (each if weights is None else weights.float()).expand(problems, n)
    count = 1 if turn is None else 2
    onto = torch.zeros((count, problems * outputs, width), dtype=torch.float64, device=theta.device)
    loss = onto.new_zeros(problems)
    spread = onto.new_zeros((problems, outputs))
    step = rows.size_of_block(2 * problems * outputs)
    for first in range(0, n if problems else 0, step):
        x = rows.block(first, first + step, torch.float32)
        x = x.bfloat16() if bf16 else x
        z = [_scores(x, part) for part in (low, turn) if part is not None]
        y = labels[first : first + step].to(torch.int64).contiguous()
        losses, parts = _launch(z, y, w[:, first : first + step].contiguous(), (problems, outputs))
        loss += losses.sum(dim=1, dtype=torch.float64)
        sums = parts.sum(dim=0, dtype=torch.float64)
        spread += sums[0]
        for k in range(count):
            onto[k, :, :-1] += _product(z[k].T, x)
            onto[k, :, -1] += sums[1 + k].reshape(-1)
    gradient = onto.reshape(count, problems, outputs, width)
    return Sums(loss, gradient[0], spread, None if turn is None else gradient[1])


def _launch(z: list[Tensor], y: Tensor, w: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    n, (problems, outputs) = len(y), shape
    tiles = triton.cdiv(n, ROWS)
    losses = torch.empty_like(w)
    parts = torch.empty((tiles, PARTS, problems, outputs), dtype=torch.float32, device=y.device)
    with torch.cuda.device_of(y):
        residuals[(tiles, problems)](
            z[0],
            z[-1],
            y,
            w,
            losses,
            parts,
            n,
            outputs,
            TURN=len(z) > 1,
            VIRTUAL=int(outputs == 1),
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=4,
        )
    return losses, parts


def _scores(x: Tensor, theta: Tensor) -> Tensor:
    """Return x W^T + b, (b, P * outputs), float32."""
    flat = theta.reshape(-1, theta.shape[2])
    return _product(x, flat[:, :-1].T.to(x.dtype)).add_(flat[:, -1])


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in float32, both rounded to the dtype of b."""
    a = a.to(b.dtype)
    if b.dtype == torch.float32:
        return a @ b
    if a.is_cuda and _mm_takes_out_dtype():
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


@lru_cache(maxsize=1)
def _mm_takes_out_dtype() -> bool:
    return "dtype" in torch.ops.aten.mm.overloads()  # torch 2.8 and later


_POINTERS = {
    "scores": "*fp32",
    "turns": "*fp32",
    "labels": "*i64",
    "weights": "*fp32",
    "losses": "*fp32",
    "parts": "*fp32",
    "n": "i32",
    "classes": "i32",
}
KERNELS = tuple(
    Kernel(
        residuals,
        _POINTERS,
        {"TURN": turn, "VIRTUAL": virtual, "ROWS": ROWS, "COLUMNS": COLUMNS},
    )
    for turn, virtual in ((False, 0), (True, 0), (False, 1), (True, 1))
)
