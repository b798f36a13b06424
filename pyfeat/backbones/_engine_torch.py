"""Engine "torch": the module itself."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pyfeat.backbones._freeze import chunk_of
from pyfeat.backbones._precision import exact_float32

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """Runs a module batch by batch; on a CPU in chunks of one size (see `Engine`)."""

    def __init__(
        self,
        precision: str,
        module: nn.Module,
        example: tuple[Tensor, ...],
        where: torch.device,
        _calibration: Any = None,
    ) -> None:
        self._dtype = _DTYPES[precision]
        self._device = where
        self._module = module if precision == "fp32" else _cast(module, self._dtype)
        self.chunk = None if where.type == "cuda" else chunk_of(self._module, self._cast(example))

    @staticmethod
    def refuses(precision: str, where: torch.device) -> str | None:
        """Return why it cannot run, or None."""
        if precision not in _DTYPES:
            return f"it has {', '.join(_DTYPES)}"
        if precision == "fp16" and where.type == "cpu":
            return "float16 is for GPUs"
        return None

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the rows of a batch, float32."""
        n = len(inputs[0])
        step = self.chunk or max(n, 1)
        parts = []
        exact = self._dtype == torch.float32
        with torch.inference_mode(), exact_float32(self._device) if exact else nullcontext():
            for start in range(0, max(n, 1), step):
                part = self._cast(tuple(t[start : start + step] for t in inputs))
                parts.append(self._run(part)[: min(step, n - start)].float())
        return torch.cat(parts)

    def _cast(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dtype = self._dtype
        moved = (t.to(self._device, non_blocking=True) for t in inputs)
        return tuple(t.to(dtype) if t.is_floating_point() else t for t in moved)

    def _run(self, part: tuple[Tensor, ...]) -> Tensor:
        if self.chunk is not None and len(part[0]) < self.chunk:
            part = tuple(_fill(t, self.chunk) for t in part)
        if part[0].ndim == 4:
            part = (part[0].contiguous(memory_format=torch.channels_last), *part[1:])
        rows: Tensor = self._module(*part)
        return rows


def _fill(t: Tensor, n: int) -> Tensor:
    # Ones rather than zeros for integers: a mask of nothing but zeros has no softmax.
    value = 0 if t.is_floating_point() else 1
    return nn.functional.pad(t, (0, 0) * (t.ndim - 1) + (0, n - len(t)), value=value)


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(module).to(dtype)
