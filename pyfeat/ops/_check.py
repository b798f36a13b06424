"""Rows in and out of ops, and the reasons to refuse that several ops share, as sentences."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def as_tensor(x: Any, name: str) -> Tensor:
    """Return an array or tensor as a tensor that shares its memory wherever it can.

    Raises
    ------
    TypeError
        If `x` is neither, or an array of a dtype that torch lacks.
    """
    if isinstance(x, Tensor):
        return x
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be an ndarray or a Tensor, got {type(x).__name__}")
    if min(x.strides, default=0) < 0:
        x = x.copy()
    try:
        return torch.from_numpy(x if x.flags.writeable else np.asarray(_Unlocked(x)))
    except TypeError as error:
        raise TypeError(f"{name} must hold numbers that torch knows, got {x.dtype}") from error


class _Unlocked:
    """Read-only memory as torch takes it without a warning: ops only read their arguments."""

    def __init__(self, x: NDArray[Any]) -> None:
        self.locked = x  # keeps the memory alive
        self.__array_interface__ = {
            **x.__array_interface__,
            "data": (x.__array_interface__["data"][0], False),
        }


def like(x: Any, result: Tensor) -> Any:
    """Return a tensor when x is one, else an array; bfloat16, which numpy lacks, stays a tensor."""
    if isinstance(x, Tensor) or result.dtype == torch.bfloat16:
        return result
    return result.numpy()


@lru_cache(maxsize=1)
def why_no_core() -> str | None:
    """Return why the module `_core` cannot be used, or None when it can."""
    try:
        import pyfeat._core  # noqa: F401
    except ImportError as error:
        return f"pyfeat was installed without its native module ({error})"
    return None


@lru_cache(maxsize=1)
def _why_no_cuda_module() -> str | None:
    try:
        import pyfeat._cuda  # noqa: F401
    except ImportError as error:
        return f"pyfeat was built without its CUDA module ({error})"
    return None


@lru_cache(maxsize=1)
def _why_no_triton_package() -> str | None:
    return None if find_spec("triton") else "triton is not installed"


def interpreting() -> bool:
    """Return whether Triton kernels run in its interpreter, on the CPU: slowly, to be debugged."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not_cpp(**tensors: Tensor | None) -> str | None:
    """Return why the backend "cpp" cannot take these tensors, or None."""
    return _why_not_on("cpu", tensors) or _why_gradient(tensors) or why_no_core()


def why_not_cuda(**tensors: Tensor | None) -> str | None:
    """Return why the backend "cuda" cannot take these tensors, or None."""
    return _why_not_on("cuda", tensors) or _why_gradient(tensors) or _why_no_cuda_module()


def why_not_triton(**tensors: Tensor | None) -> str | None:
    """Return why the backend "triton" cannot take these tensors, or None."""
    where = "cpu" if interpreting() else "cuda"
    return _why_not_on(where, tensors) or _why_gradient(tensors) or _why_no_triton_package()


def _why_not_on(where: str, tensors: dict[str, Tensor | None]) -> str | None:
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.device.type != where:
            return f"{name} must be on {where}, got {tensor.device}"
    return None


def _why_gradient(tensors: dict[str, Tensor | None]) -> str | None:
    if not torch.is_grad_enabled():
        return None
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            return f"{name} must not require a gradient: this backend has no backward"
    return None
