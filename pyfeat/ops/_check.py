"""Rows in and out of ops, and the reasons to refuse that several ops share, as sentences."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ITEMS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}  # csrc/cpu/item.h
LEAST_CAPABILITY = (8, 0)  # what CMakeLists.txt compiles for; Triton supports nothing older either


def as_tensor(x: Any, name: str) -> Tensor:
    """Return an array or tensor as a tensor that shares its memory wherever it can.

    What lies in that memory are its numbers: kernels go by address, and know nothing of a tensor
    that is conjugated or negated as it is read.

    Raises
    ------
    TypeError
        If `x` is neither, a sparse tensor, or an array of a dtype that torch lacks.
    """
    if isinstance(x, Tensor):
        if x.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got {x.layout}")
        return x.resolve_conj().resolve_neg()
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be an ndarray or a Tensor, got {type(x).__name__}")
    if min(x.strides, default=0) < 0 or not x.flags.aligned:
        x = x.copy()
    try:
        return torch.from_numpy(x if x.flags.writeable else np.asarray(_Unlocked(x)))
    except (TypeError, ValueError) as error:  # ValueError: another byte order
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


# What a backend is asked about: arrays too, which lie on the CPU and need no gradient. `explain`
# hands in what a caller would.
Asked = NDArray[Any] | Tensor | None


def why_not_cpp(**tensors: Asked) -> str | None:
    """Return why the backend "cpp" cannot take these tensors, or None."""
    return _why_not_on("cpu", tensors) or _why_gradient(tensors) or why_no_core()


def why_not_cuda(**tensors: Asked) -> str | None:
    """Return why the backend "cuda" cannot take these tensors, or None."""
    reason = _why_not_on("cuda", tensors) or _why_gradient(tensors) or _why_no_cuda_module()
    return reason or _why_too_old(tensors)


def why_not_triton(**tensors: Asked) -> str | None:
    """Return why the backend "triton" cannot take these tensors, or None."""
    where = "cpu" if interpreting() else "cuda"
    reason = _why_not_on(where, tensors) or _why_gradient(tensors) or _why_no_triton_package()
    return reason or _why_too_old(tensors)


@contextmanager
def stream_of(tensor: Tensor) -> Iterator[int]:
    """Work on the GPU of a tensor for as long as the block lasts, and hand out its stream."""
    with torch.cuda.device(tensor.get_device()):  # -1, and nothing happens, on the CPU
        yield torch.cuda.current_stream().cuda_stream if tensor.is_cuda else 0


def why_capability(found: tuple[int, int]) -> str | None:
    """Return why a GPU of this compute capability cannot run the kernels, or None."""
    if found >= LEAST_CAPABILITY:
        return None
    least, have = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, found))
    return f"the GPU must have compute capability {least} or more, got {have}"


def _why_too_old(tensors: dict[str, Asked]) -> str | None:
    devices = {t.device for t in tensors.values() if isinstance(t, Tensor) and t.is_cuda}
    reasons = (why_capability(torch.cuda.get_device_capability(device)) for device in devices)
    return next(filter(None, reasons), None)


def _why_not_on(where: str, tensors: dict[str, Asked]) -> str | None:
    for name, tensor in tensors.items():
        device = tensor.device if isinstance(tensor, Tensor) else torch.device("cpu")
        if tensor is not None and device.type != where:
            return f"{name} must be on {where}, got {device}"
    return None


def _why_gradient(tensors: dict[str, Asked]) -> str | None:
    if not torch.is_grad_enabled():
        return None
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            return f"{name} must not require a gradient: this backend has no backward"
    return None
