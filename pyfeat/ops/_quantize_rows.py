"""Rows of floats to what a store keeps - int8 with a scale, float16, bfloat16 - and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyfeat._config import num_threads
from pyfeat.ops._check import (
    as_tensor,
    like,
    why_not_cpp,
    why_not_triton,
)
from pyfeat.ops._dispatch import Backend, choose, never_refuses

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
ITEM = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}  # as in gemm.h

LARGEST_CODE = 127.0
SMALLEST_ROW = LARGEST_CODE * 2.0**-126


class Quantized(NamedTuple):
    """Rows of codes and what one code counts in each row: x is near scale * code.

    Parameters
    ----------
    rows : ndarray or Tensor of shape (n, d), int8
    scales : ndarray or Tensor of shape (n,), float32
    """

    rows: Any
    scales: Any


def quantize_rows(
    rows: Any, dtype: torch.dtype | str = torch.int8, *, out: Any = None, backend: str | None = None
) -> Any:
    """Round rows to int8 with a scale for each row, or to a shorter float.

    Parameters
    ----------
    rows : ndarray or Tensor of shape (n, d), float32, float16 or bfloat16
        Not changed. Rows whose numbers are adjacent are read where they lie.
    dtype : torch.dtype or its name, {int8, float16, bfloat16}, default=int8
        What to round to.
    out : Tensor of shape (n, d), or Quantized of tensors, optional
        Where to write, contiguous, on the device of `rows`; by default new memory.
    backend : {"cuda", "triton", "cpp", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    quantized : Quantized, or ndarray or Tensor of shape (n, d)
        `Quantized(rows, scales)` for int8, else the rows; of the kind of `rows`, except that
        bfloat16, which numpy lacks, is always a Tensor. `out` when it was given.

    Raises
    ------
    TypeError
        If `rows` is neither array nor tensor or holds another type, or `dtype` is another one.
    ValueError
        If `rows` or `out` has another shape, or `out` another dtype, device or memory layout.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    int8: scale = max |x| / 127 and code = x * (127 / max |x|), each step rounded in float32 and the
    code to the nearest integer, ties to even: every backend gives the same codes and scales. Hence
    |scale * code - x| <= scale (1/2 + 2^-15). A row with max |x| below 127 * 2^-126 (1.5e-36)
    counts as zero: scale 0, codes 0. A row that holds NaN or infinity gets the scale NaN and codes
    0, and comes back as NaN.

    float16, bfloat16: nearest, ties to even; beyond the range infinity, as IEEE 754 says; NaN and
    infinity stay.

    Memory: the result. "cpp" works on several threads and releases the GIL.

    Examples
    --------
    >>> quantized = quantize_rows(torch.tensor([[0.5, -2.0, 1.0]]))
    >>> quantized.rows.tolist(), round(float(quantized.scales[0]), 6)
    ([[32, -127, 64]], 0.015748)
    """
    source = _checked_rows(rows, FLOATS)
    target = dtype_of(dtype, (torch.int8, torch.float16, torch.bfloat16))
    check_out(out, tuple(source.shape), target, source.device)
    chosen = choose("quantize_rows", BACKENDS, backend, source, target, out)
    result = chosen.run(source, target, out)
    if out is not None:
        return out
    if isinstance(result, Quantized):
        return Quantized(like(rows, result.rows), like(rows, result.scales))
    return like(rows, result)


def dequantize_rows(
    rows: Any,
    scales: Any = None,
    dtype: torch.dtype | str = torch.float32,
    *,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Any:
    """Return rows of floats from what `quantize_rows` gave.

    Parameters
    ----------
    rows : ndarray or Tensor of shape (n, d), int8, float16, bfloat16 or float32
        Not changed.
    scales : ndarray or Tensor of shape (n,), float32
        For int8 only, on the device of `rows`.
    dtype : torch.dtype or its name, {float32, float16, bfloat16}, default=float32
        Type of the result.
    out : Tensor of shape (n, d), `dtype`, contiguous, on the device of `rows`, optional
        Where to write; by default new memory.
    backend : {"cuda", "triton", "cpp", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    rows : ndarray or Tensor of shape (n, d), `dtype`
        scale * code rounded to float32, then to `dtype`, nearest, ties to even; NaN where the scale
        is. Of the kind of `rows`, except that bfloat16 is always a Tensor. `out` when given.

    Raises
    ------
    TypeError
        If `rows` or `scales` is neither array nor tensor or holds another type, or `dtype` is
        another one.
    ValueError
        If a shape, or the dtype, device or layout of `out`, is another one; if int8 comes without
        scales, or floats with them.
    BackendError
        If the backend asked for cannot run; the message says why.

    Examples
    --------
    >>> dequantize_rows(*quantize_rows(torch.tensor([[0.0, 127.0, -3.2]])))
    tensor([[  0., 127.,  -3.]])
    """
    source = _checked_rows(rows, (torch.int8, *FLOATS))
    target = dtype_of(dtype, FLOATS)
    factors = _checked_scales(scales, source)
    check_out(out, tuple(source.shape), target, source.device)
    chosen = choose("dequantize_rows", DEQUANTIZE_BACKENDS, backend, source, factors, target, out)
    result: Tensor = chosen.run(source, factors, target, out)
    return result if out is not None else like(rows, result)


def dtype_of(dtype: torch.dtype | str, allowed: tuple[torch.dtype, ...]) -> torch.dtype:
    """Return a dtype given as such or by name, after a check that it is one of `allowed`."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in allowed:
        names = ", ".join(str(a) for a in allowed)
        raise TypeError(f"dtype must be one of {names}, got {dtype!r}")
    return found


def check_out(out: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Raise unless `out` is None or can take rows of this shape and dtype (and their scales)."""
    if out is None:
        return
    wanted = {"out": (out, shape, dtype)}
    if dtype == torch.int8:
        if not isinstance(out, Quantized):
            raise TypeError(f"out must be Quantized for int8, got {type(out).__name__}")
        wanted = {
            "out.rows": (out.rows, shape, dtype),
            "out.scales": (out.scales, shape[:1], torch.float32),
        }
    for name, (tensor, size, kind) in wanted.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tuple(tensor.shape) != size:
            raise ValueError(f"{name} must have shape {size}, got {tuple(tensor.shape)}")
        if tensor.dtype != kind:
            raise ValueError(f"{name} must have dtype {kind}, got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device}, got {tensor.device}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")


def empty_out(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Any:
    """Return new memory for rows of this shape and dtype, as `check_out` wants it."""
    rows = torch.empty(shape, dtype=dtype, device=device)
    if dtype != torch.int8:
        return rows
    return Quantized(rows, torch.empty(shape[:1], dtype=torch.float32, device=device))


def addresses(result: Any) -> tuple[int, int]:
    """Return where the rows and the scales of `empty_out` lie; 0 where there are no scales."""
    if isinstance(result, Quantized):
        return result.rows.data_ptr(), result.scales.data_ptr()
    return result.data_ptr(), 0


def store_reference(rows: Tensor, dtype: torch.dtype, out: Any) -> Any:
    """Return float32 rows as `dtype` by the formulas above, written to `out` where there is one."""
    if dtype != torch.int8:
        return rows.to(dtype) if out is None else out.copy_(rows)
    most = rows.abs().amax(dim=1) if rows.shape[1] else rows.new_zeros(len(rows))
    finite = most < torch.inf  # false for NaN
    counts = finite & (most >= SMALLEST_ROW)
    # torch may divide by a plain number, or divide one, by way of its inverse: rounded twice.
    largest = torch.full_like(most, LARGEST_CODE)
    scales = torch.where(counts, most / largest, 0.0).where(finite, torch.nan)
    factors = torch.where(counts, largest / most, 0.0)
    codes = torch.where(counts[:, None], rows * factors[:, None], 0.0).round().to(torch.int8)
    if out is None:
        return Quantized(codes, scales)
    return Quantized(out.rows.copy_(codes), out.scales.copy_(scales))


def _checked_rows(rows: Any, allowed: tuple[torch.dtype, ...]) -> Tensor:
    tensor = as_tensor(rows, "rows")
    if tensor.dtype not in allowed:
        names = ", ".join(str(a).removeprefix("torch.") for a in allowed)
        raise TypeError(f"rows must hold one of {names}, got {tensor.dtype}")
    if tensor.ndim != 2:
        raise ValueError(f"rows must have shape (n, d), got {tuple(tensor.shape)}")
    return tensor


def _checked_scales(scales: Any, rows: Tensor) -> Tensor | None:
    if rows.dtype != torch.int8:
        if scales is not None:
            raise ValueError(f"scales must be None for rows of {rows.dtype}, got an array")
        return None
    if scales is None:
        raise ValueError("scales must be given for rows of int8, got None")
    tensor = as_tensor(scales, "scales")
    if tensor.dtype != torch.float32:
        raise TypeError(f"scales must hold float32, got {tensor.dtype}")
    if tuple(tensor.shape) != (len(rows),):
        raise ValueError(f"scales must have shape ({len(rows)},), got {tuple(tensor.shape)}")
    return tensor


def _reference(rows: Tensor, dtype: torch.dtype, out: Any) -> Any:
    return store_reference(rows.float(), dtype, out)


def _dequantize_reference(
    rows: Tensor, scales: Tensor | None, dtype: torch.dtype, out: Tensor | None
) -> Tensor:
    floats = rows.float() if scales is None else rows.float() * scales.float()[:, None]
    return floats.to(dtype) if out is None else out.copy_(floats)


def readable_rows(rows: Tensor) -> Tensor:
    """Return rows whose numbers are adjacent, copied only where they are not."""
    return rows if rows.shape[1] < 2 or rows.stride(1) == 1 else rows.contiguous()


def _cpp(rows: Tensor, dtype: torch.dtype, out: Any) -> Any:
    from pyfeat._core import quantize_rows as run

    rows = readable_rows(rows)
    result = empty_out(tuple(rows.shape), dtype, rows.device) if out is None else out
    to, scales = addresses(result)
    n, d = rows.shape
    run(
        rows.data_ptr(),
        ITEM[rows.dtype],
        rows.stride(0),
        n,
        d,
        ITEM[dtype],
        to,
        scales,
        num_threads(),
    )
    return result


def _dequantize_cpp(
    rows: Tensor, scales: Tensor | None, dtype: torch.dtype, out: Tensor | None
) -> Tensor:
    from pyfeat._core import dequantize_rows as run

    rows = readable_rows(rows)
    scales = None if scales is None else scales.contiguous()
    result = torch.empty(rows.shape, dtype=dtype) if out is None else out
    n, d = rows.shape
    run(
        rows.data_ptr(),
        ITEM[rows.dtype],
        rows.stride(0),
        n,
        d,
        0 if scales is None else scales.data_ptr(),
        ITEM[dtype],
        result.data_ptr(),
        num_threads(),
    )
    return result


def _triton(rows: Tensor, dtype: torch.dtype, out: Any) -> Any:
    result = empty_out(tuple(rows.shape), dtype, rows.device) if out is None else out
    triton_store(readable_rows(rows), None, False, result)
    return result


def triton_store(rows: Tensor, scales: Tensor | None, l2: bool, result: Any) -> None:
    """Write rows to what `empty_out` gave by the Triton kernel, after L2 where wanted."""
    from pyfeat.ops._triton.quantize_rows import run

    to, codes = result if isinstance(result, Quantized) else (result, None)
    run(rows, scales, l2, to, codes)


def _dequantize_triton(
    rows: Tensor, scales: Tensor | None, dtype: torch.dtype, out: Tensor | None
) -> Tensor:
    result = torch.empty(rows.shape, dtype=dtype, device=rows.device) if out is None else out
    scales = None if scales is None else scales.contiguous()
    triton_store(readable_rows(rows), scales, False, result)
    return result


def _triton_refuses(rows: Tensor, *_: Any) -> str | None:
    return why_not_triton(rows=rows)


def _dequantize_triton_refuses(rows: Tensor, scales: Tensor | None = None, *_: Any) -> str | None:
    return why_not_triton(rows=rows, scales=scales)


def _cpp_refuses(rows: Tensor, *_: Any) -> str | None:
    return why_not_cpp(rows=rows)


def _dequantize_cpp_refuses(rows: Tensor, scales: Tensor | None = None, *_: Any) -> str | None:
    return why_not_cpp(rows=rows, scales=scales)


BACKENDS = (
    Backend("triton", _triton, _triton_refuses),
    Backend("cpp", _cpp, _cpp_refuses),
    Backend("reference", _reference, never_refuses),
)
DEQUANTIZE_BACKENDS = (
    Backend("triton", _dequantize_triton, _dequantize_triton_refuses),
    Backend("cpp", _dequantize_cpp, _dequantize_cpp_refuses),
    Backend("reference", _dequantize_reference, never_refuses),
)
