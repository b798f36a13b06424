"""Where rows are stored: types, memory, and the reference for what is written there."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

LARGEST_CODE = 127.0
LARGE = 1 << 22  # bytes; below this numpy does not ask for huge pages
LINE = 64  # bytes of a cache line
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
    rows = _empty(shape, dtype, device)
    if dtype != torch.int8:
        return rows
    return Quantized(rows, torch.empty(shape[:1], dtype=torch.float32, device=device))


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE:
        return torch.empty(shape, dtype=dtype, device=device)
    # numpy asks for huge pages, torch does not: writing to new small pages costs more than all the
    # rest.
    memory = torch.from_numpy(np.empty(size + LINE, np.uint8))
    start = -memory.data_ptr() % LINE
    return memory[start : start + size].view(dtype).view(shape)


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
