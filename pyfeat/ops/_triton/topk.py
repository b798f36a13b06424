"""Keys of queries against a chunk of base rows: a tile per program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyfeat.ops._triton import Kernel

TILE = 64  # queries, and rows
DEPTH = 32


@triton.jit
def keys_kernel(
    queries, base, row_stride, mul, add, keys, n, m, d, TILE: tl.constexpr, DEPTH: tl.constexpr
):
    q = tl.program_id(1) * TILE + tl.arange(0, TILE)
    r = tl.program_id(0) * TILE + tl.arange(0, TILE)
    depth = tl.arange(0, DEPTH)
    x = queries + q.to(tl.int64)[:, None] * d + depth[None, :]
    y = base + r.to(tl.int64)[:, None] * row_stride + depth[None, :]
    sums = tl.zeros((TILE, TILE), tl.float32)
    for k in range(0, d, DEPTH):
        inside = (k + depth < d)[None, :]
        left = tl.load(x + k, mask=(q < n)[:, None] & inside, other=0.0)
        right = tl.load(y + k, mask=(r < m)[:, None] & inside, other=0).to(tl.float32)
        sums = tl.dot(left, tl.trans(right), sums, input_precision="ieee")
    factor = tl.load(mul + r, mask=r < m, other=0.0)
    shift = tl.load(add + r, mask=r < m, other=0.0)
    key = sums * factor[None, :] + shift[None, :]
    key = tl.where(key == key, key, float("-inf"))  # noqa: PLR0124  a row that is no neighbour
    to = keys + q.to(tl.int64)[:, None] * m + r[None, :]
    tl.store(to, key, mask=(q < n)[:, None] & (r < m)[None, :])


def keys_of(x: Tensor, y: Tensor, mul: Tensor, add: Tensor) -> Tensor:
    """Return mul * (x @ y.T) + add, (n, m) float32, -inf where that is NaN; x is compact."""
    n, m = len(x), len(y)
    keys = torch.empty((n, m), dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(m, TILE), triton.cdiv(n, TILE))
    if n and m:
        with torch.cuda.device_of(x):
            keys_kernel[grid](
                x, y, y.stride(0), mul, add, keys, n, m, x.shape[1], TILE=TILE, DEPTH=DEPTH,
                num_warps=8, num_stages=2,
            )  # fmt: skip
    return keys


_TYPES = {"row_stride": "i64", "n": "i32", "m": "i32", "d": "i32"}
_FLOATS = dict.fromkeys(("queries", "mul", "add", "keys"), "*fp32")

KERNELS = tuple(
    Kernel(keys_kernel, {**_FLOATS, "base": base, **_TYPES}, {"TILE": TILE, "DEPTH": DEPTH}, 8)
    for base in ("*fp32", "*fp16", "*bf16", "*i8")
)
