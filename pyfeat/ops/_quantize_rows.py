"""Rows of floats to what a store keeps - int8 with a scale, float16, bfloat16 - and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from pyfeat._config import num_threads
from pyfeat.ops._check import (
    ITEMS,
    as_tensor,
    like,
    stream_of,
    why_not_cpp,
    why_not_cuda,
    why_not_triton,
)
from pyfeat.ops._dispatch import Backend, choose, never_refuses
from pyfeat.ops._quantize_rows_out import (
    FLOATS,
    Quantized,
    addresses,
    check_out,
    dtype_of,
    empty_out,
    store_reference,
)


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
        If a shape, the device of `scales`, or the dtype, device or layout of `out`, is another one;
        if int8 comes without scales, or floats with them.
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
    if tensor.device != rows.device:
        raise ValueError(f"scales must be on {rows.device}, got {tensor.device}")
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
        ITEMS[rows.dtype],
        rows.stride(0),
        n,
        d,
        ITEMS[dtype],
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
    result: Tensor = empty_out(tuple(rows.shape), dtype, rows.device) if out is None else out
    n, d = rows.shape
    run(
        rows.data_ptr(),
        ITEMS[rows.dtype],
        rows.stride(0),
        n,
        d,
        0 if scales is None else scales.data_ptr(),
        ITEMS[dtype],
        result.data_ptr(),
        num_threads(),
    )
    return result


Store = Callable[[Tensor, Tensor | None, bool, Any], None]


def cuda_store(rows: Tensor, scales: Tensor | None, l2: bool, result: Any) -> None:
    """Write rows to what `empty_out` gave by the CUDA kernel, after L2 where wanted."""
    from pyfeat._cuda import quantize_rows as run

    to, codes = addresses(result)
    target = result.rows.dtype if isinstance(result, Quantized) else result.dtype
    n, d = rows.shape
    with stream_of(rows) as stream:
        run(
            rows.data_ptr(),
            ITEMS[rows.dtype],
            rows.stride(0),
            n,
            d,
            0 if scales is None else scales.data_ptr(),
            l2,
            ITEMS[target],
            to,
            codes,
            stream,
        )


def triton_store(rows: Tensor, scales: Tensor | None, l2: bool, result: Any) -> None:
    """Write rows to what `empty_out` gave by the Triton kernel, after L2 where wanted."""
    from pyfeat.ops._triton.quantize_rows import run

    to, codes = result if isinstance(result, Quantized) else (result, None)
    run(rows, scales, l2, to, codes)


def _by(store: Store) -> Callable[[Tensor, torch.dtype, Any], Any]:
    def run(rows: Tensor, dtype: torch.dtype, out: Any) -> Any:
        result = empty_out(tuple(rows.shape), dtype, rows.device) if out is None else out
        store(readable_rows(rows), None, False, result)
        return result

    return run


def _back_by(store: Store) -> Callable[[Tensor, Tensor | None, torch.dtype, Any], Tensor]:
    def run(rows: Tensor, scales: Tensor | None, dtype: torch.dtype, out: Any) -> Tensor:
        result = empty_out(tuple(rows.shape), dtype, rows.device) if out is None else out
        scales = None if scales is None else scales.contiguous()
        store(readable_rows(rows), scales, False, result)
        return cast(Tensor, result)

    return run


def _cuda_refuses(rows: Tensor, *_: Any) -> str | None:
    return why_not_cuda(rows=rows)


def _dequantize_cuda_refuses(rows: Tensor, scales: Tensor | None = None, *_: Any) -> str | None:
    return why_not_cuda(rows=rows, scales=scales)


def _triton_refuses(rows: Tensor, *_: Any) -> str | None:
    return why_not_triton(rows=rows)


def _dequantize_triton_refuses(rows: Tensor, scales: Tensor | None = None, *_: Any) -> str | None:
    return why_not_triton(rows=rows, scales=scales)


def _cpp_refuses(rows: Tensor, *_: Any) -> str | None:
    return why_not_cpp(rows=rows)


def _dequantize_cpp_refuses(rows: Tensor, scales: Tensor | None = None, *_: Any) -> str | None:
    return why_not_cpp(rows=rows, scales=scales)


BACKENDS = (
    Backend("cuda", _by(cuda_store), _cuda_refuses),
    Backend("triton", _by(triton_store), _triton_refuses),
    Backend("cpp", _cpp, _cpp_refuses),
    Backend("reference", _reference, never_refuses),
)
DEQUANTIZE_BACKENDS = (
    Backend("cuda", _back_by(cuda_store), _dequantize_cuda_refuses),
    Backend("triton", _back_by(triton_store), _dequantize_triton_refuses),
    Backend("cpp", _dequantize_cpp, _dequantize_cpp_refuses),
    Backend("reference", _dequantize_reference, never_refuses),
)
