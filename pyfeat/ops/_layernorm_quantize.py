"""LayerNorm, and its rows in 8-bit floats with a scale each: what a product of fp8 takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyfeat.ops._check import as_tensor, why_not_triton
from pyfeat.ops._dispatch import Backend, choose, never_refuses
from pyfeat.ops._quantize_fp8 import FP8, to_fp8, why_too_wide
from pyfeat.ops._quantize_rows_out import FLOATS, Quantized


def layernorm_quantize(
    x: Any, weight: Any, bias: Any, eps: float = 1e-5, *, backend: str | None = None
) -> Quantized:
    """Normalise rows and round them to 8-bit floats (e4m3) with a scale for each row.

    Parameters
    ----------
    x : ndarray or Tensor of shape (n, d), float32, float16 or bfloat16
        Not changed. d is at least 1.
    weight, bias : ndarray or Tensor of shape (d,), float32, float16 or bfloat16
        On the device of `x`.
    eps : float, default=1e-5
        Added to the variance. Range [0, inf).
    backend : {"triton", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    quantized : Quantized
        `rows`, a Tensor (n, d) of float8_e4m3fn, which numpy lacks, and `scales`, a Tensor (n,) of
        float32: y is near scale * row.

    Raises
    ------
    TypeError
        If an argument is neither array nor tensor or holds another type.
    ValueError
        If a shape, a device or `eps` is another one.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    y = (x - mean) / sqrt(var + eps) * weight + bias over each row, var being the mean square of
    x - mean; scale = max |y| / 448 and row = y * (448 / max |y|), to the nearest number of e4m3,
    ties to even. So |scale * row - y| <= 2^-4 |y|, or 2^-10 scale where that is more, beside the
    rounding of y itself: all of it runs in float32, and sums of backends differ in their order. A
    row whose max |y| is below 448 * 2^-126 has scale 0 and codes 0; one that holds NaN or infinity
    has the scale NaN and codes 0.

    Memory: the result; "reference" also a few times the rows in float32.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    >>> rows, scales = layernorm_quantize(x, torch.ones(2), torch.zeros(2), eps=0.0)
    >>> rows.float().tolist()[0], round(float(scales[0]), 6)
    ([-448.0, 448.0], 0.002232)
    """
    rows, gain, shift = as_tensor(x, "x"), as_tensor(weight, "weight"), as_tensor(bias, "bias")
    _check(rows, gain, shift, eps)
    chosen = choose("layernorm_quantize", BACKENDS, backend, rows, gain, shift, float(eps))
    result: Quantized = chosen.run(rows, gain, shift, float(eps))
    return result


def _check(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor.dtype not in FLOATS:
            names = ", ".join(str(a).removeprefix("torch.") for a in FLOATS)
            raise TypeError(f"{name} must hold one of {names}, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on {x.device}, got {tensor.device}")
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape (n, d), d at least 1, got {tuple(x.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tuple(tensor.shape) != (x.shape[1],):
            raise ValueError(f"{name} must have shape ({x.shape[1]},), got {tuple(tensor.shape)}")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be a number in [0, inf), got {eps!r}")


def _reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Quantized:
    wide = x.float()
    centred = wide - wide.mean(dim=1, keepdim=True)
    variance = (centred * centred).mean(dim=1, keepdim=True)
    return to_fp8(centred * (variance + eps).rsqrt() * weight.float() + bias.float())


def _triton(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Quantized:
    from pyfeat.ops._triton.layernorm_quantize import run

    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    scales = torch.empty(len(x), dtype=torch.float32, device=x.device)
    rows = x if x.shape[1] < 2 or x.stride(1) == 1 else x.contiguous()
    run(rows, weight.float().contiguous(), bias.float().contiguous(), eps, codes, scales)
    return Quantized(codes.view(FP8), scales)


def _triton_refuses(x: Tensor, weight: Tensor, bias: Tensor, *_: Any) -> str | None:
    return why_too_wide(x) or why_not_triton(x=x, weight=weight, bias=bias)


BACKENDS = (
    Backend("triton", _triton, _triton_refuses),
    Backend("reference", _reference, never_refuses),
)
