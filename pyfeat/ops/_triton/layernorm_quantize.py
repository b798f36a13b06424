"""LayerNorm and e4m3 codes: one program a row, which stays in registers from load to store."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyfeat.ops._triton import Kernel
from pyfeat.ops._triton.quantize_fp8 import TYPES, store_codes, warps_of


@triton.jit
def normalise_and_quantize(
    x,  # (n, d), rows at multiples of `stride`
    weight,  # (d,)
    bias,  # (d,)
    codes,  # (n, d)
    scales,  # (n,)
    d,
    stride,
    eps,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < d
    v = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(v, 0) / d
    centred = tl.where(inside, v - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / d
    gain = tl.load(weight + at, mask=inside, other=0.0)
    shift = tl.load(bias + at, mask=inside, other=0.0)
    y = centred * (1.0 / tl.sqrt_rn(variance + eps)) * gain + shift
    store_codes(y, codes + row * d + at, scales + row, inside)


def run(x: Tensor, weight: Tensor, bias: Tensor, eps: float, codes: Tensor, scales: Tensor) -> None:
    """Fill `codes` (n, d), uint8, and `scales` (n,), float32.

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Its rows' numbers are adjacent.
    weight, bias : Tensor of shape (d,), float32, contiguous
    eps : float
    codes : Tensor of shape (n, d), uint8, contiguous
        The bits of e4m3 numbers.
    scales : Tensor of shape (n,), float32, contiguous
    """
    n, d = x.shape
    if n == 0:
        return
    block = triton.next_power_of_2(max(d, 16))
    with torch.cuda.device_of(x):
        normalise_and_quantize[(n,)](
            x,
            weight,
            bias,
            codes,
            scales,
            d,
            x.stride(0),
            eps,
            BLOCK=block,
            num_warps=warps_of(block),
        )


KERNELS = tuple(
    Kernel(
        normalise_and_quantize,
        {
            "x": TYPES[dtype],
            "weight": "*fp32",
            "bias": "*fp32",
            "codes": "*u8",
            "scales": "*fp32",
            "d": "i32",
            "stride": "i32",
            "eps": "fp32",
        },
        {"BLOCK": block},
        warps_of(block),
    )
    for dtype in TYPES
    for block in (16, 1024, 8192)
)
