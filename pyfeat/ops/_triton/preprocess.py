"""Resize across, then down, in exact integers; both passes round to bytes.

Sums run in int32: no partial sum of weights in units of 2^-22 and bytes can leave it (see `Taps`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from pyfeat.ops._check import interpreting
from pyfeat.ops._triton import Kernel

if TYPE_CHECKING:
    from pyfeat.ops._preprocess_device import Pass

BLOCK_X = 64
ROWS = 4
ROWS_INTERPRETED = 128  # programs run one after another there


@triton.jit
def preprocess_across(
    image,  # first byte that is read: (rows, ...) RGB bytes, rows `stride` bytes apart
    narrow,  # (rows, 3, count) bytes
    starts,  # (count,)
    weights,  # (count, taps)
    stride,
    rows,
    count,
    taps,
    ROWS: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]  # (ROWS, 1)
    x = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)[None, :]  # (1, BLOCK_X)
    inside = (r < rows) & (x < count)
    start = tl.load(starts + x, mask=x < count, other=0)
    at = image + r.to(tl.int64) * stride + start.to(tl.int64) * 3
    half: tl.constexpr = 1 << 21
    red = tl.full((ROWS, BLOCK_X), half, tl.int32)
    green = tl.full((ROWS, BLOCK_X), half, tl.int32)
    blue = tl.full((ROWS, BLOCK_X), half, tl.int32)
    for t in range(taps):
        w = tl.load(weights + x * taps + t, mask=x < count, other=0)
        red += w * tl.load(at + 3 * t, mask=inside, other=0).to(tl.int32)
        green += w * tl.load(at + 3 * t + 1, mask=inside, other=0).to(tl.int32)
        blue += w * tl.load(at + 3 * t + 2, mask=inside, other=0).to(tl.int32)
    to = narrow + r.to(tl.int64) * 3 * count + x
    tl.store(to, tl.minimum(tl.maximum(red >> 22, 0), 255).to(tl.uint8), mask=inside)
    tl.store(to + count, tl.minimum(tl.maximum(green >> 22, 0), 255).to(tl.uint8), mask=inside)
    tl.store(to + 2 * count, tl.minimum(tl.maximum(blue >> 22, 0), 255).to(tl.uint8), mask=inside)


@triton.jit
def preprocess_down(
    narrow,  # (rows, 3, width) bytes
    starts,  # (height,)
    weights,  # (height, taps)
    table,  # (3, 256)
    out,  # first value that is written, of (3, side, side)
    height,
    width,
    taps,
    side,
    ROWS: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    y = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]  # (ROWS, 1)
    x = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)[None, :]  # (1, BLOCK_X)
    c = tl.program_id(2)
    inside = (y < height) & (x < width)
    start = tl.load(starts + y, mask=y < height, other=0)
    at = narrow + (start.to(tl.int64) * 3 + c) * width + x
    half: tl.constexpr = 1 << 21
    sums = tl.full((ROWS, BLOCK_X), half, tl.int32)
    for t in range(taps):
        w = tl.load(weights + y * taps + t, mask=y < height, other=0)
        sums += w * tl.load(at + t * 3 * width, mask=inside, other=0).to(tl.int32)
    byte = tl.minimum(tl.maximum(sums >> 22, 0), 255)
    value = tl.load(table + c * 256 + byte, mask=inside, other=0)
    tl.store(out + (c * side + y).to(tl.int64) * side + x, value, mask=inside)


def launch(one: Pass) -> None:
    """Fill the slot of one image; memory: 3 * crop bytes per source row that is read."""
    image, down, across, table, out = one
    rows, count, side = down.length, across.weights.shape[0], out.shape[-1]
    height = down.weights.shape[0]
    block_y = ROWS_INTERPRETED if interpreting() else ROWS
    narrow = torch.empty(rows, 3, count, dtype=torch.uint8, device=out.device)
    corner = image[down.source :, across.source :]
    with torch.cuda.device_of(image):
        preprocess_across[(triton.cdiv(rows, block_y), triton.cdiv(count, BLOCK_X))](
            corner,
            narrow,
            across.starts,
            across.weights,
            image.stride(0),
            rows,
            count,
            across.weights.shape[1],
            block_y,
            BLOCK_X,
            num_warps=4,
        )
        preprocess_down[(triton.cdiv(height, block_y), triton.cdiv(count, BLOCK_X), 3)](
            narrow,
            down.starts,
            down.weights,
            table,
            out[:, down.at :, across.at :],
            height,
            count,
            down.weights.shape[1],
            side,
            block_y,
            BLOCK_X,
            num_warps=4,
        )


_BLOCKS = {"ROWS": ROWS, "BLOCK_X": BLOCK_X}

KERNELS = (
    Kernel(
        preprocess_across,
        {
            "image": "*u8",
            "narrow": "*u8",
            "starts": "*i32",
            "weights": "*i32",
            **dict.fromkeys(("stride", "rows", "count", "taps"), "i32"),
        },
        _BLOCKS,
    ),
    *(
        Kernel(
            preprocess_down,
            {
                "narrow": "*u8",
                "starts": "*i32",
                "weights": "*i32",
                "table": kind,
                "out": kind,
                **dict.fromkeys(("height", "width", "taps", "side"), "i32"),
            },
            _BLOCKS,
        )
        for kind in ("*i32", "*i16", "*u8")
    ),
)
