"""float32 that is float32, whatever the process allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

_lock = Lock()
_inside = 0
_before: list[Any] = []


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Switch autocast, TF32 and bfloat16 products off inside the block.

    torch lets convolutions on a GPU round their inputs to 10 bits by default, and
    `torch.set_float32_matmul_precision` or `torch.autocast` do so for the rest: the rows would
    depend on a setting that is no part of their identity.

    Parameters
    ----------
    device : torch.device
        Where the block computes.

    Notes
    -----
    The switches belong to the process: the first block to enter saves them, the last to leave
    restores them, so that threads may overlap.
    """
    global _inside  # noqa: PLW0603  the switches it counts for are global too
    switches = _switches()
    with _lock:
        if _inside == 0:
            _before[:] = [getattr(owner, name) for owner, name, _ in switches]
            for owner, name, exact in switches:
                setattr(owner, name, exact)
        _inside += 1
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for (owner, name, _), value in zip(switches, _before, strict=True):
                    setattr(owner, name, value)


def _switches() -> list[tuple[Any, str, Any]]:
    b: Any = torch.backends
    if hasattr(b.cudnn, "conv"):  # torch 2.9 and later; mixing both interfaces is an error there
        owners = (b.cuda.matmul, b.cudnn.conv, b.mkldnn.matmul, b.mkldnn.conv)
        return [(owner, "fp32_precision", "ieee") for owner in owners]
    return [(b.cuda.matmul, "allow_tf32", False), (b.cudnn, "allow_tf32", False)]
