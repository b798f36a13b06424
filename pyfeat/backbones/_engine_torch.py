"""Engine "torch": the module itself, on a GPU as CUDA graphs."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pyfeat.backbones._cuda_graphs import CudaGraphs, fill_up
from pyfeat.backbones._fp8 import put_fp8_into, why_not_fp8
from pyfeat.backbones._freeze import chunk_of
from pyfeat.backbones._modality import normalised
from pyfeat.backbones._precision import exact_float32
from pyfeat.ops._preprocess_spec import Preprocessing

# What a precision's activations are; of fp8 those outside the products.
_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,
}


class TorchEngine:
    """Runs a module batch by batch; on a CPU in chunks of one size (see `Engine`).

    Notes
    -----
    A chunk is so small that glibc keeps the memory of its activations (see `_freeze`). On a GPU the
    launches of a batch are recorded once for each size (see `CudaGraphs`), and bfloat16 and
    float16 weights of convolutions are channels-last. In fp8 the products of transformers run in
    8-bit floats (see `_fp8`), and the rest in bfloat16.
    """

    def __init__(
        self,
        precision: str,
        module: nn.Module,
        example: tuple[Tensor, ...],
        where: torch.device,
        _calibration: Any = None,
        pixels: Preprocessing | None = None,
    ) -> None:
        on_gpu = where.type == "cuda"
        self.takes_bytes = on_gpu and pixels is not None  # a quarter of the bytes cross the bus
        self.precision = precision
        self.at_once = 1
        self._pixels = pixels
        self._dtype = _DTYPES[precision]
        self._device = where
        self._module = module if precision == "fp32" else _cast(module, self._dtype)
        if precision == "fp8":
            backend = "triton" if on_gpu else "reference"
            self._module = put_fp8_into(self._module, module, example, backend)
        with self._widened():
            self.chunk = None if on_gpu else chunk_of(self._module, self._cast(example))
        self._run = CudaGraphs(self._forward) if on_gpu else self._forward

    @staticmethod
    def refuses(precision: str, where: torch.device) -> str | None:
        """Return why it cannot run, or None."""
        if precision not in _DTYPES:
            return f"it has {', '.join(_DTYPES)}"
        if precision == "fp16" and where.type == "cpu":
            return "float16 is for GPUs"
        return why_not_fp8(where) if precision == "fp8" else None

    def keep(self) -> None:
        """Keep nothing: the weights are all."""

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the rows of a batch, float32."""
        n = len(inputs[0])
        step = self.chunk or max(n, 1)
        parts = []
        exact = self._dtype == torch.float32
        with torch.inference_mode(), exact_float32(self._device) if exact else nullcontext():
            for start in range(0, max(n, 1), step):
                part = tuple(t[start : start + step] for t in inputs)
                if self.chunk is not None and len(part[0]) < self.chunk:
                    part = tuple(fill_up(t, self.chunk) for t in part)
                moved = tuple(t.to(self._device, non_blocking=True) for t in part)
                parts.append(self._run(moved)[: min(step, n - start)])
        return torch.cat(parts)

    def _forward(self, part: tuple[Tensor, ...]) -> Tensor:
        part = self._cast(normalised(part, self._pixels))
        if part[0].ndim == 4:
            part = (part[0].contiguous(memory_format=torch.channels_last), *part[1:])
        with self._widened():
            rows: Tensor = self._module(*part)
        return rows.float()

    def _widened(self) -> Any:
        # Weights are cast already: where a module widens in between, autocast brings both together
        # again. Its cache must not outlive a recording.
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype, cache_enabled=False)

    def _cast(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dtype = self._dtype
        return tuple(t.to(dtype) if t.is_floating_point() else t for t in inputs)


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    own = copy.deepcopy(module).to(dtype)
    if any(isinstance(m, nn.Conv2d) for m in own.modules()):
        own.to(memory_format=torch.channels_last)
    return own
