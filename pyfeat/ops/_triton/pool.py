"""Feature maps to float32 rows: one program folds a block of channels of one item."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyfeat.ops._triton import Kernel

AVG, MAX, CUBES, POWERS = 0, 1, 2, 3  # values of METHOD
FLOOR = tl.constexpr(1e-6)


@triton.jit
def _tile(x, c, first, channels, positions, stride, other, ADJACENT: tl.constexpr, BLOCK_L):
    at = first + tl.arange(0, BLOCK_L)
    inside = (c < channels)[:, None] & (at < positions)[None, :]
    if ADJACENT:
        offsets = c[:, None] + at[None, :].to(tl.int64) * stride
    else:
        offsets = c[:, None].to(tl.int64) * stride + at[None, :]
    return tl.load(x + offsets, mask=inside, other=other).to(tl.float32), inside


@triton.jit
def _unknown(v):
    return (v <= float("inf")) == 0


@triton.jit
def _greater(a, b):
    # NaN wins.
    return tl.where((b > a) | _unknown(b), b, a)


@triton.jit
def _largest(values):
    unknown = tl.max(_unknown(values).to(tl.int32), 1) == 1
    most = tl.max(tl.where(_unknown(values), float("-inf"), values), 1)
    return tl.where(unknown, float("nan"), most)


@triton.jit
def _careful_mean(
    x, c, channels, positions, stride, ADJACENT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L
):
    # In float64 no sum leaves the range.
    sums = tl.zeros((BLOCK_C, BLOCK_L), tl.float64)
    for first in range(0, positions, BLOCK_L):
        v, _ = _tile(x, c, first, channels, positions, stride, 0.0, ADJACENT, BLOCK_L)
        sums += v.to(tl.float64)
    return (tl.sum(sums, 1) / tl.cast(positions, tl.float64)).to(tl.float32)


@triton.jit
def _careful_power(
    x, c, channels, positions, stride, p, ADJACENT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L
):
    # m (mean((x / m)^p))^(1/p), m the largest: no power overflows.
    largest = tl.full((BLOCK_C, BLOCK_L), 0.0, tl.float32)
    for first in range(0, positions, BLOCK_L):
        v, _ = _tile(x, c, first, channels, positions, stride, 0.0, ADJACENT, BLOCK_L)
        largest = _greater(largest, tl.where(v < FLOOR, FLOOR, v))
    most = _largest(largest)
    safe = tl.where(most < float("inf"), most, 1.0)
    sums = tl.zeros((BLOCK_C, BLOCK_L), tl.float32)
    for first in range(0, positions, BLOCK_L):
        v, inside = _tile(x, c, first, channels, positions, stride, 0.0, ADJACENT, BLOCK_L)
        ratio = tl.where(v < FLOOR, FLOOR, v) / safe[:, None]
        ratio = tl.where(ratio > 1e-37, ratio, 1e-37)
        sums += tl.where(inside, tl.exp2(tl.log2(ratio) * p), 0.0)
    mean = tl.sum(sums, 1) / tl.cast(positions, tl.float32)
    # Channels beyond the last have no sum, and no logarithm.
    root = safe * tl.exp2(tl.log2(tl.where(mean > 0, mean, 1.0)) / p)
    return tl.where(most < float("inf"), root, most)


@triton.jit
def fold(
    x,  # items of channels x positions
    rows,  # (items, ...), rows at multiples of `row_stride`
    channels,
    positions,
    item_stride,
    stride,  # of positions where ADJACENT (channels are adjacent), else of channels
    row_stride,
    p,
    METHOD: tl.constexpr,
    ADJACENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += item * item_stride
    to = rows + item * row_stride + c
    if METHOD == 3:
        careful = _careful_power(x, c, channels, positions, stride, p, ADJACENT, BLOCK_C, BLOCK_L)
        tl.store(to, careful, mask=c < channels)
    elif METHOD == 1:
        largest = tl.full((BLOCK_C, BLOCK_L), float("-inf"), tl.float32)
        for first in range(0, positions, BLOCK_L):
            v, _ = _tile(x, c, first, channels, positions, stride, float("-inf"), ADJACENT, BLOCK_L)
            largest = _greater(largest, v)
        tl.store(to, _largest(largest), mask=c < channels)
    else:
        sums = tl.zeros((BLOCK_C, BLOCK_L), tl.float32)
        for first in range(0, positions, BLOCK_L):
            v, inside = _tile(x, c, first, channels, positions, stride, 0.0, ADJACENT, BLOCK_L)
            if METHOD == 2:
                v = tl.where(v < FLOOR, FLOOR, v)
                v = tl.where(inside, v * v * v, 0.0)
            sums += v
        mean = tl.div_rn(tl.sum(sums, 1), tl.cast(positions, tl.float32))
        good = (tl.abs(mean) < float("inf")) | (c >= channels)
        if METHOD == 2:
            good = good & ((mean >= 1e-33) | (c >= channels))
            safe = tl.where(good & (c < channels), mean, 1.0)
            root = tl.exp2(tl.log2(safe) / 3.0)
            mean = root - (root - safe / (root * root)) / 3.0  # one step of Newton
        tl.store(to, mean, mask=c < channels)
        if tl.min(good.to(tl.int32), 0) == 0:
            if METHOD == 2:
                careful = _careful_power(
                    x, c, channels, positions, stride, p, ADJACENT, BLOCK_C, BLOCK_L
                )
            else:
                careful = _careful_mean(
                    x, c, channels, positions, stride, ADJACENT, BLOCK_C, BLOCK_L
                )
            tl.store(to, careful, mask=(c < channels) & (good == 0))


def run(x: Tensor, method: int, p: float, stride: int, adjacent: bool, rows: Tensor) -> None:
    """Fold x (items, channels, positions) into float32 `rows` (items, channels).

    Parameters
    ----------
    x : Tensor of shape (items, channels, positions)
        Channels adjacent, or positions.
    method : int
        AVG, MAX, CUBES or POWERS.
    p : float
        Exponent of POWERS; 3 for CUBES.
    stride : int
        That of the axis which is not adjacent.
    adjacent : bool
        Whether the channels are adjacent.
    rows : Tensor of shape (items, channels), float32, adjacent along channels
    """
    n, channels, positions = x.shape
    if n == 0 or channels == 0:
        return
    if adjacent:
        block_c, block_l = 128, 16
    else:
        block_l = min(128, triton.next_power_of_2(max(positions, 16)))
        block_c = 2048 // block_l
    with torch.cuda.device_of(x):
        fold[(n, triton.cdiv(channels, block_c))](
            x,
            rows,
            channels,
            positions,
            x.stride(0),
            stride,
            rows.stride(0),
            p,
            METHOD=method,
            ADJACENT=adjacent,
            BLOCK_C=block_c,
            BLOCK_L=block_l,
        )


def _kernel(source: str, method: int, adjacent: bool, block_c: int, block_l: int) -> Kernel:
    integers = ("channels", "positions", "item_stride", "stride", "row_stride")
    signature = {"x": source, "rows": "*fp32", **dict.fromkeys(integers, "i32"), "p": "fp32"}
    constants = {
        "METHOD": method,
        "ADJACENT": adjacent,
        "BLOCK_C": block_c,
        "BLOCK_L": block_l,
    }
    return Kernel(fold, signature, constants)


_SHAPES = ((True, 128, 16), *((False, 2048 // length, length) for length in (16, 32, 64, 128)))

KERNELS = tuple(
    _kernel(source, method, *shape)
    for source, shapes in (("*fp32", _SHAPES), ("*fp16", _SHAPES[:1]), ("*bf16", _SHAPES[::4]))
    for method in (AVG, MAX, CUBES, POWERS)
    for shape in shapes
)
