"""Engine "openvino": the network compiled for this CPU, in float32 or bfloat16."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyfeat._config import num_threads
from pyfeat.backbones._engine_onnxruntime import export
from pyfeat.backbones._onnx import OnnxModule

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_REQUESTS = 2
# Images of one request: one lets a row be the same to the bit in any batch.
_CHUNK = 1


class OpenVinoEngine:
    """Compiles a module once, and keeps several requests running."""

    def __init__(
        self,
        precision: str,
        module: nn.Module,
        example: tuple[Tensor, ...],
        where: torch.device,
        _calibration: Any = None,
    ) -> None:
        import openvino

        self.chunk = _CHUNK
        model = convert(module, example)
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "THROUGHPUT",
            "PERFORMANCE_HINT_NUM_REQUESTS": _REQUESTS,
            "INFERENCE_NUM_THREADS": num_threads(),
            "ENABLE_CPU_PINNING": False,
        }
        compiled = openvino.Core().compile_model(model, "CPU", config)
        self._queue = openvino.AsyncInferQueue(compiled, _REQUESTS)
        self._dim = int(compiled.output(0).partial_shape[1].get_length())

    @staticmethod
    def refuses(precision: str, where: torch.device) -> str | None:
        """Return why it cannot run, or None."""
        if find_spec("openvino") is None:
            return 'it is not installed: pip install "pyfeat[openvino]"'
        if where.type != "cpu":
            return "it is for CPUs"
        if precision not in ("fp32", "bf16"):
            return "it has fp32 and bf16"
        return None

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the rows of a batch, float32."""
        arrays = [t.contiguous().numpy() for t in inputs]
        rows = np.empty((len(arrays[0]), self._dim), np.float32)

        def keep(request: Any, at: int) -> None:
            rows[at : at + self.chunk] = request.get_output_tensor(0).data

        self._queue.set_callback(keep)
        for at in range(0, len(rows), self.chunk):
            self._queue.start_async([a[at : at + self.chunk] for a in arrays], at)
        self._queue.wait_all()
        return torch.from_numpy(rows)


def convert(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """Return an OpenVINO model of one input at a time; only the length of texts is free."""
    import openvino

    if isinstance(module, OnnxModule):
        return module.openvino_model()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what torch says about tracing
        try:
            model = openvino.convert_model(module, example_input=example)
        except openvino.frontend.OpConversionFailure:  # it reads ONNX with other rules
            model = openvino.Core().read_model(export(module, example))
    shapes = [[_CHUNK, *t.shape[1:]] if t.ndim == 4 else [_CHUNK, -1] for t in example]
    model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    return model
