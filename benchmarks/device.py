"""Ceilings of a GPU: what a plain copy and plain matrix products of torch reach on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch

COPY_BYTES = 2**30  # far beyond any cache
MATMUL_SIDE = 8192
ROUNDS = 9
only: str | None = None  # the device that `run.py --device` asks for


def devices() -> tuple[str, ...]:
    """Return where cases are to run: on the CPU and, where there is one, on a GPU."""
    have = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return tuple(name for name in have if only in (None, name))


def wait_for(device: str) -> Callable[[], Any]:
    """Return what to call so that all work given to a device is done."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def shares(device: str, bytes_: int | None, flop: int | None, seconds: float) -> dict[str, float]:
    """Return the shares of a device's ceilings: of its copies, and of products by precision."""
    row: dict[str, float] = {}
    if bytes_ is not None:
        row["share_of_bytes"] = bytes_ / seconds / copy_bytes_per_second(device)
    if flop is not None:
        row["share_of_flop"] = flop / seconds / matmul_flop_per_second(device, "fp32")
        for precision in ("tf32", "bf16", *(["fp8"] if multiplies_fp8(device) else [])):
            rate = matmul_flop_per_second(device, precision)
            row[f"share_of_{precision}_flop"] = flop / seconds / rate
    return row


def multiplies_fp8(device: str) -> bool:
    """Return whether a device multiplies 8-bit floats."""
    return device == "cuda" and torch.cuda.get_device_capability() >= (8, 9)


@lru_cache
def copy_bytes_per_second(device: str, size: int = COPY_BYTES) -> float:
    """Return bytes read plus written a second by a copy within the device's memory."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device)


@lru_cache
def matmul_flop_per_second(device: str, precision: str, side: int = MATMUL_SIDE) -> float:
    """Return FLOP a second of a square product in "fp32", "tf32", "bf16" or "fp8" (e4m3)."""
    dtypes = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
    dtype = dtypes.get(precision, torch.float32)
    # Random numbers: on zeros a GPU draws less power and clocks higher.
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    if precision == "fp8":
        one = torch.ones((), device=device)
        product = partial(
            torch._scaled_mm, a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )
        return 2 * side**3 / _fastest(product, device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        return 2 * side**3 / _fastest(lambda: a @ b, device)
    finally:
        torch.set_float32_matmul_precision(before)


def _fastest(run: Callable[[], Any], device: str) -> float:
    """Return the seconds of the fastest of some calls."""
    wait = wait_for(device)
    run()
    wait()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)
