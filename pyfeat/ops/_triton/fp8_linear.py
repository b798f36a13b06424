"""Products of e4m3 rows: a tile of the result a program, finished before it is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyfeat.ops._quantize_rows_out import Quantized
from pyfeat.ops._triton import Kernel
from pyfeat.ops._triton.quantize_rows import _bfloat16

# Sides of a tile: rows, columns and depth of a step. A large one reads half as much for its FLOP; a
# small one leaves fewer units of a GPU idle where there are few tiles.
SMALL, LARGE = (128, 64, 64), (128, 128, 128)
ENOUGH_TILES = 256
WARPS, STAGES = 8, 3
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
# Where these are multiples of 16 for Triton to see, a large tile fits in the registers.
ALIGNED = ("x", "w", "out", "m", "k")


@triton.jit
def multiply(
    x,  # (n, k), e4m3
    x_scales,  # (n,)
    w,  # (m, k), e4m3
    w_scales,  # (m,)
    bias,  # (m,), where BIAS
    residual,  # (n, m), where RESIDUAL
    out,  # (n, m)
    n,
    m,
    k,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Neighbours share rows of x, of which there are many: the weight stays in the cache.
    tile, columns = tl.program_id(0), tl.cdiv(m, BLOCK_M)
    row = (tile // columns).to(tl.int64) * BLOCK_N
    column = (tile % columns).to(tl.int64) * BLOCK_M
    # Wide numbers for the corner of a tile only: offsets within it fit in 32 bits.
    down, across = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_K)
    n_here, m_here = (n - row).to(tl.int32), (m - column).to(tl.int32)
    left_at = x + row * k + (down[:, None] * k + depth[None, :])
    right_at = w + column * k + (across[None, :] * k + depth[:, None])
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for first in range(0, k, BLOCK_K):
        inside = depth < k - first
        left = tl.load(left_at, mask=(down[:, None] < n_here) & inside[None, :], other=0.0)
        right = tl.load(right_at, mask=(across[None, :] < m_here) & inside[:, None], other=0.0)
        # Units of a GPU sum 8-bit products with fewer bits: no longer than for these columns.
        total = tl.dot(left, right, total, max_num_imprecise_acc=BLOCK_K)
        left_at += BLOCK_K
        right_at += BLOCK_K
    total *= tl.load(x_scales + row + down, mask=down < n_here, other=0.0)[:, None]
    total *= tl.load(w_scales + column + across, mask=across < m_here, other=0.0)[None, :]
    if BIAS:
        total += tl.load(bias + column + across, mask=across < m_here, other=0.0)[None, :]
    if GELU:
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    here = (down[:, None] < n_here) & (across[None, :] < m_here)
    corner = row * m + column
    where = down[:, None] * m + across[None, :]
    if RESIDUAL:
        total += tl.load(residual + corner + where, mask=here, other=0.0).to(tl.float32)
    if out.dtype.element_ty == tl.bfloat16:
        tl.store(out + corner + where, _bfloat16(total), mask=here)
    else:
        tl.store(out + corner + where, total.to(out.dtype.element_ty), mask=here)


def run(
    x: Quantized,
    weight: Quantized,
    bias: Tensor | None,
    gelu: bool,
    residual: Tensor | None,
    out: Tensor,
    tile: tuple[int, int, int] | None = None,
) -> None:
    """Fill `out` (n, m).

    Parameters
    ----------
    x, weight : Quantized
        (n, k) and (m, k), contiguous.
    bias : Tensor of shape (m,), float32, or None
    gelu : bool
    residual : Tensor of shape (n, m), contiguous, of the type of `out`, or None
    out : Tensor of shape (n, m), contiguous
    tile : triple of int, optional
        By default what the shape of `out` suggests.
    """
    n, m = out.shape
    if n == 0 or m == 0:
        return
    k, addresses = x.rows.shape[1], (x.rows.data_ptr(), weight.rows.data_ptr())
    aligned = not any(number % 16 for number in (m, k, *addresses))
    rows, columns, depth = tile or tile_of(n, m, aligned)
    with torch.cuda.device_of(out):
        multiply[(triton.cdiv(n, rows) * triton.cdiv(m, columns),)](
            x.rows,
            x.scales,
            weight.rows,
            weight.scales,
            x.scales if bias is None else bias,
            out if residual is None else residual,
            out,
            n,
            m,
            k,
            BIAS=bias is not None,
            GELU=gelu,
            RESIDUAL=residual is not None,
            BLOCK_N=rows,
            BLOCK_M=columns,
            BLOCK_K=depth,
            num_warps=WARPS,
            num_stages=STAGES,
        )


def tile_of(n: int, m: int, aligned: bool) -> tuple[int, int, int]:
    """Return the tile for a result (n, m) of rows that are aligned, or not."""
    large = triton.cdiv(n, LARGE[0]) * triton.cdiv(m, LARGE[1])
    return LARGE if aligned and large >= ENOUGH_TILES else SMALL


def _kernel(
    dtype: torch.dtype, bias: bool, gelu: bool, residual: bool, tile: tuple[int, int, int] = SMALL
) -> Kernel:
    signature = {
        "x": "*fp8e4nv",
        "x_scales": "*fp32",
        "w": "*fp8e4nv",
        "w_scales": "*fp32",
        "bias": "*fp32",
        "residual": TYPES[dtype],
        "out": TYPES[dtype],
        "n": "i32",
        "m": "i32",
        "k": "i32",
    }
    constants = {
        "BIAS": bias,
        "GELU": gelu,
        "RESIDUAL": residual,
        "BLOCK_N": tile[0],
        "BLOCK_M": tile[1],
        "BLOCK_K": tile[2],
    }
    aligned = ALIGNED if tile is LARGE else ()
    return Kernel(multiply, signature, constants, WARPS, STAGES, 90, aligned)


KERNELS = (
    _kernel(torch.bfloat16, True, False, False),
    _kernel(torch.bfloat16, True, True, False),
    _kernel(torch.bfloat16, True, False, True),
    _kernel(torch.float16, False, True, True),
    _kernel(torch.float32, False, False, False),
    _kernel(torch.bfloat16, True, False, False, LARGE),
    _kernel(torch.bfloat16, True, True, False, LARGE),
    _kernel(torch.bfloat16, True, False, True, LARGE),
    _kernel(torch.float32, False, False, False, LARGE),
)
