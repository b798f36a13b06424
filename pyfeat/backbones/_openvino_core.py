"""OpenVINO's entry, without what its CPU plugin does to the handling of signals."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any


class _Stack(ctypes.Structure):
    """`stack_t` of <signal.h>."""

    _fields_ = (
        ("start", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Leave the calling thread the stack that it had for handling signals.

    OpenVINO's CPU plugin, when it is loaded, gives the thread another one, and frees that when it
    is unloaded, in whatever thread that happens. Python handles signals on this stack: the next
    Ctrl-C would end the process with a segmentation fault.
    """
    libc = ctypes.CDLL(None)
    before = _Stack()
    known = libc.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaltstack(ctypes.byref(before), None)


@lru_cache
def core() -> Any:
    """Return the one core of the process, which loads the plugin once."""
    import openvino

    return openvino.Core()


def compile_model(model: Any, config: dict[str, Any]) -> Any:
    """Return an OpenVINO model compiled for the CPU."""
    with own_signal_stack():
        return core().compile_model(model, "CPU", config)


@lru_cache
def capabilities() -> tuple[str, ...]:
    """Return what this CPU computes in, in OpenVINO's words."""
    with own_signal_stack():
        return tuple(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
