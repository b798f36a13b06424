"""Rows to 8-bit floats with a scale each: weights and activations of `fp8_linear`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyfeat.ops._check import as_tensor, why_not_triton
from pyfeat.ops._dispatch import Backend, choose, never_refuses
from pyfeat.ops._quantize_rows_out import FLOATS, Quantized

FP8 = torch.float8_e4m3fn
LARGEST_FP8 = 448.0
# Below it 448 / max |y| would be infinite.
SMALLEST_FP8_ROW = LARGEST_FP8 * 2.0**-126
WIDEST = 8192  # numbers of a row that one program keeps in registers


def quantize_fp8(rows: Any, *, backend: str | None = None) -> Quantized:
    """Round rows to 8-bit floats (e4m3) with a scale for each: what `fp8_linear` takes.

    Parameters
    ----------
    rows : ndarray or Tensor of shape (n, d), float32, float16 or bfloat16
        Not changed. d is at least 1.
    backend : {"triton", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    quantized : Quantized
        `rows`, a Tensor (n, d) of float8_e4m3fn, and `scales`, a Tensor (n,) of float32.

    Raises
    ------
    TypeError
        If `rows` is neither array nor tensor or holds another type.
    ValueError
        If `rows` has another shape.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    scale = max |x| / 448 and row = x * (448 / max |x|), in float32, to the nearest number of e4m3,
    ties to even: |scale * row - x| <= 2^-4 |x|, or 2^-10 scale where that is more. Rows of zeros,
    and those that are not finite, become what they become by `layernorm_quantize`. Backends agree
    to the bit. Memory: the result; "reference" also a few times the rows in float32.

    Examples
    --------
    >>> quantized = quantize_fp8(torch.tensor([[1.0, -3.0]]))
    >>> (quantized.rows.float() * quantized.scales[:, None]).tolist()
    [[0.9642857313156128, -3.0]]
    """
    tensor = as_tensor(rows, "rows")
    if tensor.dtype not in FLOATS:
        names = ", ".join(str(a).removeprefix("torch.") for a in FLOATS)
        raise TypeError(f"rows must hold one of {names}, got {tensor.dtype}")
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise ValueError(f"rows must have shape (n, d), d at least 1, got {tuple(tensor.shape)}")
    chosen = choose("quantize_fp8", BACKENDS, backend, tensor)
    result: Quantized = chosen.run(tensor)
    return result


def to_fp8(y: Tensor) -> Quantized:
    """Return rows (n, d), d at least 1, as e4m3 with a scale each: the reference."""
    y = y.float()
    most = y.abs().amax(dim=1)  # NaN where one is
    finite = most < torch.inf
    counts = finite & (most >= SMALLEST_FP8_ROW)
    safe = torch.where(counts, most, LARGEST_FP8)
    scales = torch.where(finite, torch.where(counts, safe / LARGEST_FP8, 0.0), torch.nan)
    # A number over a tensor would be the number times a rounded reciprocal.
    scaled = y * (safe.new_full((), LARGEST_FP8) / safe)[:, None]
    # The product may round up to beyond the largest, which is NaN in this type.
    codes = torch.where(counts[:, None], scaled, 0.0).clamp(-LARGEST_FP8, LARGEST_FP8)
    return Quantized(codes.to(FP8), scales)


def _triton(x: Tensor) -> Quantized:
    from pyfeat.ops._triton.quantize_fp8 import run

    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    scales = torch.empty(len(x), dtype=torch.float32, device=x.device)
    run(x if x.shape[1] < 2 or x.stride(1) == 1 else x.contiguous(), codes, scales)
    return Quantized(codes.view(FP8), scales)


def _triton_refuses(x: Any, *_: Any) -> str | None:
    return why_too_wide(x) or why_not_triton(rows=x)


def why_too_wide(x: Any) -> str | None:
    """Return why rows are too wide for a program to keep, or None."""
    if x.ndim == 2 and x.shape[1] > WIDEST:
        return f"it takes rows of at most {WIDEST} numbers"
    return None


BACKENDS = (
    Backend("triton", _triton, _triton_refuses),
    Backend("reference", to_fp8, never_refuses),
)
