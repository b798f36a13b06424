"""Rows to another type, normalised before where wanted: one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyfeat.ops._triton import Kernel

BLOCK = 1024
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int8: "*i8"}


@triton.jit
def _rounded(v):
    # Nearest integer, ties to even. No sum: fused with the product before it, it would see a
    # product that was never rounded.
    doubled = v * 2
    halves = tl.floor(doubled).to(tl.int32)
    down = halves >> 1
    tie = halves.to(tl.float32) == doubled
    return down + tl.where((halves & 1) == 1, tl.where(tie, down & 1, 1), 0)


@triton.jit
def _bfloat16(v):
    # Nearest, ties to even, by hand: the interpreter cuts off.
    bits = v.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return tl.where(v <= float("inf"), rounded.to(tl.float32, bitcast=True), v).to(tl.bfloat16)


@triton.jit
def store_rows(
    x,  # (n, d), rows at multiples of `stride`
    scales,  # (n,) of x, where SCALED
    out,  # (n, d)
    codes,  # (n,) scales of out, where INT8
    d,
    stride,
    SCALED: tl.constexpr,
    L2: tl.constexpr,
    INT8: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    inverse = tl.full((), 1.0, tl.float64)
    factor = 1.0
    if L2 or INT8:
        squares = tl.zeros((BLOCK,), tl.float64)
        largest = tl.zeros((BLOCK,), tl.float32)
        bad = tl.zeros((BLOCK,), tl.int32)
        for first in range(0, d, BLOCK):
            at = first + lanes
            v = tl.load(x + row * stride + at, mask=at < d, other=0.0).to(tl.float32)
            size = tl.abs(v)
            bad = bad | tl.where(size < float("inf"), 0, 1)  # 1 for NaN, too
            largest = tl.where(size > largest, size, largest)
            wide = v.to(tl.float64)
            squares += wide * wide
        most = tl.max(largest, 0)
        finite = tl.max(bad, 0) == 0
        if L2:
            total = tl.sum(squares, 0)
            inverse = 1.0 / tl.sqrt(tl.where(total == 0, 1.0, total))
            most = (most.to(tl.float64) * inverse).to(tl.float32)
        if INT8:
            counts = finite & (most >= 127.0 * 1.1754943508222875e-38)
            safe = tl.where(counts, most, 127.0)
            scale = tl.where(counts, tl.div_rn(safe, 127.0), 0.0)
            tl.store(codes + row, tl.where(finite, scale, float("nan")))
            factor = tl.where(counts, tl.div_rn(127.0, safe), 0.0)
    for first in range(0, d, BLOCK):
        at = first + lanes
        v = tl.load(x + row * stride + at, mask=at < d, other=0.0).to(tl.float32)
        if SCALED:
            v = v * tl.load(scales + row)
        if L2:
            v = (v.to(tl.float64) * inverse).to(tl.float32)
        if INT8:
            v = tl.where(factor == 0.0, 0, _rounded(v * factor))
        if out.dtype.element_ty == tl.bfloat16:
            v = _bfloat16(v)
        tl.store(out + row * d + at, v.to(out.dtype.element_ty), mask=at < d)


def run(x: Tensor, scales: Tensor | None, l2: bool, out: Tensor, codes: Tensor | None) -> None:
    """Fill `out` (n, d), and `codes` (n,) for int8, from rows whose numbers are adjacent.

    Parameters
    ----------
    x : Tensor of shape (n, d)
    scales : Tensor of shape (n,), float32, or None
        Row i of `x` counts scales[i] times.
    l2 : bool
    out : Tensor of shape (n, d), contiguous
    codes : Tensor of shape (n,), float32, or None
        Where the scales of `out` go.
    """
    n, d = out.shape
    if n == 0:
        return
    with torch.cuda.device_of(x):
        store_rows[(n,)](
            x,
            x if scales is None else scales,
            out,
            out if codes is None else codes,
            d,
            x.stride(0),
            SCALED=scales is not None,
            L2=l2,
            INT8=codes is not None,
            BLOCK=min(BLOCK, triton.next_power_of_2(max(d, 16))),
        )


def _kernel(source: torch.dtype, target: torch.dtype, l2: bool, block: int = BLOCK) -> Kernel:
    signature = {
        "x": TYPES[source],
        "scales": "*fp32",
        "out": TYPES[target],
        "codes": "*fp32",
        "d": "i32",
        "stride": "i32",
    }
    constants = {
        "SCALED": source == torch.int8,
        "L2": l2,
        "INT8": target == torch.int8,
        "BLOCK": block,
    }
    return Kernel(store_rows, signature, constants)


KERNELS = (
    *(_kernel(torch.float32, t, l2) for t in TYPES for l2 in (False, True)),
    _kernel(torch.float32, torch.int8, True, 16),
    _kernel(torch.float16, torch.int8, False),
    _kernel(torch.bfloat16, torch.int8, False),
    *(_kernel(torch.int8, t, False) for t in TYPES if t != torch.int8),
)
