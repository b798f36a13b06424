"""Products of e4m3 rows: a tile of the result a program, finished before it is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyfeat.ops._quantize_rows_out import Quantized
from pyfeat.ops._triton import Kernel
from pyfeat.ops._triton.quantize_rows import _bfloat16

BLOCK_N, BLOCK_M, BLOCK_K = 128, 64, 64
WARPS, STAGES = 8, 3
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


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
    # Wide numbers for the corner of a tile only: offsets within it fit in 32 bits.
    row = tl.program_id(0).to(tl.int64) * BLOCK_N
    column = tl.program_id(1).to(tl.int64) * BLOCK_M
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
    """
    n, m = out.shape
    if n == 0 or m == 0:
        return
    with torch.cuda.device_of(out):
        multiply[(triton.cdiv(n, BLOCK_N), triton.cdiv(m, BLOCK_M))](
            x.rows,
            x.scales,
            weight.rows,
            weight.scales,
            x.scales if bias is None else bias,
            out if residual is None else residual,
            out,
            n,
            m,
            x.rows.shape[1],
            BIAS=bias is not None,
            GELU=gelu,
            RESIDUAL=residual is not None,
            BLOCK_N=BLOCK_N,
            BLOCK_M=BLOCK_M,
            BLOCK_K=BLOCK_K,
            num_warps=WARPS,
            num_stages=STAGES,
        )


def _kernel(dtype: torch.dtype, bias: bool, gelu: bool, residual: bool) -> Kernel:
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
        "BLOCK_N": BLOCK_N,
        "BLOCK_M": BLOCK_M,
        "BLOCK_K": BLOCK_K,
    }
    return Kernel(multiply, signature, constants, WARPS, STAGES, least=90)


KERNELS = (
    _kernel(torch.bfloat16, True, False, False),
    _kernel(torch.bfloat16, True, True, False),
    _kernel(torch.bfloat16, True, False, True),
    _kernel(torch.float16, False, True, True),
    _kernel(torch.float32, False, False, False),
)
