"""A linear layer over 8-bit floats, with what follows it in a transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyfeat.ops._check import why_not_triton
from pyfeat.ops._dispatch import Backend, choose, never_refuses
from pyfeat.ops._quantize_fp8 import FP8
from pyfeat.ops._quantize_rows_out import FLOATS, Quantized

LEAST_FP8 = (8, 9)  # compute capability from which on GPUs multiply e4m3 numbers


def fp8_linear(
    x: Quantized,
    weight: Quantized,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    backend: str | None = None,
) -> Tensor:
    """Return x W^T + bias, through GELU and added to a residual where wanted.

    Parameters
    ----------
    x : Quantized
        `rows` (n, k) of float8_e4m3fn and `scales` (n,) of float32, as `layernorm_quantize` or
        `quantize_fp8` give them.
    weight : Quantized
        `rows` (m, k) and `scales` (m,) of the same types.
    bias : Tensor of shape (m,), float32, float16 or bfloat16, optional
    gelu : bool, default=False
        Whether v becomes v (1 + erf(v / sqrt 2)) / 2.
    residual : Tensor of shape (n, m), `dtype`, optional
        Added last. Not changed.
    dtype : {torch.bfloat16, torch.float16, torch.float32}, default=torch.bfloat16
        Type of the result.
    backend : {"triton", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    y : Tensor of shape (n, m), `dtype`

    Raises
    ------
    TypeError
        If an argument holds another type.
    ValueError
        If a shape or a device is another one.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    Products of two e4m3 numbers are exact in float32, and are summed in float32, by the units of a
    GPU with fewer bits within 128 columns; scales, bias, GELU and residual follow in float32, with
    one rounding to `dtype` at the end.

    Examples
    --------
    >>> from pyfeat.ops import quantize_fp8
    >>> x, weight = quantize_fp8(torch.ones(2, 8)), quantize_fp8(torch.eye(8)[:3])
    >>> fp8_linear(x, weight).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    _check_quantized(x, "x")
    _check_quantized(weight, "weight")
    n, m = len(x.rows), len(weight.rows)
    if weight.rows.shape[1] != x.rows.shape[1]:
        wanted = (m, x.rows.shape[1])
        raise ValueError(f"weight must have shape {wanted}, got {tuple(weight.rows.shape)}")
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be one of {', '.join(map(str, FLOATS))}, got {dtype!r}")
    _check_added(bias, "bias", (m,), FLOATS)
    _check_added(residual, "residual", (n, m), (dtype,))
    for name, tensor in (("weight", weight.rows), ("bias", bias), ("residual", residual)):
        if tensor is not None and tensor.device != x.rows.device:
            raise ValueError(f"{name} must be on {x.rows.device}, got {tensor.device}")
    chosen = choose("fp8_linear", BACKENDS, backend, x, weight, bias, gelu, residual, dtype)
    result: Tensor = chosen.run(x, weight, bias, gelu, residual, dtype)
    return result


def _check_quantized(given: Any, name: str) -> None:
    if not isinstance(given, Quantized) or not all(isinstance(t, Tensor) for t in given):
        raise TypeError(f"{name} must be Quantized of tensors, got {type(given).__name__}")
    rows, scales = given
    if rows.dtype != FP8 or scales.dtype != torch.float32:
        got = f"{rows.dtype} and {scales.dtype}"
        raise TypeError(f"{name} must hold float8_e4m3fn and scales of float32, got {got}")
    if rows.ndim != 2 or 0 in rows.shape[1:] or scales.shape != rows.shape[:1]:
        got = f"{tuple(rows.shape)} and scales {tuple(scales.shape)}"
        raise ValueError(f"{name} must have shape (n, k) and scales (n,), k at least 1, got {got}")
    if scales.device != rows.device:
        raise ValueError(f"scales of {name} must be on {rows.device}, got {scales.device}")


def _check_added(
    tensor: Any, name: str, shape: tuple[int, ...], allowed: tuple[torch.dtype, ...]
) -> None:
    if tensor is None:
        return
    if not isinstance(tensor, Tensor) or tensor.dtype not in allowed:
        got = getattr(tensor, "dtype", type(tensor).__name__)
        raise TypeError(f"{name} must hold {' or '.join(map(str, allowed))}, got {got}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _reference(
    x: Quantized,
    weight: Quantized,
    bias: Tensor | None,
    gelu: bool,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    y: Tensor = x.rows.float() @ weight.rows.float().T * x.scales[:, None] * weight.scales
    if bias is not None:
        y = y + bias.float()
    if gelu:
        y = torch.nn.functional.gelu(y)
    if residual is not None:
        y = y + residual.float()
    return y.to(dtype)


def _triton(
    x: Quantized,
    weight: Quantized,
    bias: Tensor | None,
    gelu: bool,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    from pyfeat.ops._triton.fp8_linear import run

    out = torch.empty(len(x.rows), len(weight.rows), dtype=dtype, device=x.rows.device)
    flat = Quantized(x.rows.contiguous(), x.scales.contiguous())
    matrix = Quantized(weight.rows.contiguous(), weight.scales.contiguous())
    shift = None if bias is None else bias.float().contiguous()
    rest = None if residual is None else residual.contiguous()
    run(flat, matrix, shift, gelu, rest, out)
    return out


def _triton_refuses(x: Quantized, weight: Quantized, bias: Any = None, *_: Any) -> str | None:
    rows = x.rows
    if rows.is_cuda and torch.cuda.get_device_capability(rows.device) < LEAST_FP8:
        return "the GPU must multiply 8-bit floats, from compute capability 8.9 on"
    return why_not_triton(x=rows, weight=weight.rows, bias=bias)


BACKENDS = (
    Backend("triton", _triton, _triton_refuses),
    Backend("reference", _reference, never_refuses),
)
