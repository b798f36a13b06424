"""Rows as e4m3 codes: one program a row, which stays in registers from load to store."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyfeat.ops._triton import Kernel

TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


@triton.jit
def _e4m3(v):
    # Nearest, ties to even, by hand: the same code on GPUs without the type and in the interpreter.
    bits = tl.abs(v).to(tl.int32, bitcast=True)
    # From 2^-6 on: three bits of the fraction are kept, and the exponent's bias is 7, not 127.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
    # Below: multiples of 2^-9. Adding 2^23 rounds to an integer, nearest, ties to even.
    steps = tl.abs(v) * 512.0 + 8388608.0
    subnormal = steps.to(tl.int32, bitcast=True) & 0xF
    code = tl.where(bits >= 0x3C800000, normal, subnormal)
    code = tl.where(code > 0x7E, 0x7E, code)  # 448, the largest
    sign = (v.to(tl.int32, bitcast=True) >> 24) & 0x80
    return (code | sign).to(tl.uint8)


@triton.jit
def store_codes(y, codes_at, scale_at, inside):
    """Write the codes of a row, zeros outside, and its scale."""
    size = tl.abs(y)
    finite = tl.max(tl.where(size < float("inf"), 0, 1), 0) == 0  # NaN is not below, either
    most = tl.max(tl.where(size < float("inf"), size, 0.0), 0)
    counts = finite & (most >= 448.0 * 1.1754943508222875e-38)
    safe = tl.where(counts, most, 448.0)
    scale = tl.where(finite, tl.where(counts, tl.div_rn(safe, 448.0), 0.0), float("nan"))
    tl.store(scale_at, scale)
    scaled = tl.where(counts, y * tl.div_rn(448.0, safe), 0.0)
    tl.store(codes_at, _e4m3(scaled), mask=inside)


@triton.jit
def quantize(
    x,  # (n, d), rows at multiples of `stride`
    codes,  # (n, d)
    scales,  # (n,)
    d,
    stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < d
    y = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    store_codes(y, codes + row * d + at, scales + row, inside)


def run(x: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Fill `codes` (n, d), uint8, and `scales` (n,), float32.

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Its rows' numbers are adjacent.
    codes : Tensor of shape (n, d), uint8, contiguous
        The bits of e4m3 numbers.
    scales : Tensor of shape (n,), float32, contiguous
    """
    n, d = x.shape
    if n == 0:
        return
    block = triton.next_power_of_2(max(d, 16))
    with torch.cuda.device_of(x):
        quantize[(n,)](x, codes, scales, d, x.stride(0), BLOCK=block, num_warps=warps_of(block))


def warps_of(block: int) -> int:
    """Return how many warps share a row: at most 16 numbers a thread."""
    return min(max(block // 512, 1), 16)


KERNELS = tuple(
    Kernel(
        quantize,
        {"x": TYPES[dtype], "codes": "*u8", "scales": "*fp32", "d": "i32", "stride": "i32"},
        {"BLOCK": block},
        warps_of(block),
    )
    for dtype in TYPES
    for block in (16, 1024, 8192)
)
