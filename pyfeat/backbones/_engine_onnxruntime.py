"""Engine "onnxruntime": the network exported to ONNX, in float32."""

from __future__ import annotations

import io
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyfeat._config import num_threads
from pyfeat.backbones._modality import normalised
from pyfeat.backbones._onnx import OnnxModule
from pyfeat.ops._preprocess_spec import Preprocessing

_INSTALL = 'pip install "pyfeat[onnx]"'


class OnnxRuntimeEngine:
    """Exports a module to ONNX and runs it one input at a time."""

    def __init__(
        self,
        precision: str,
        module: nn.Module,
        example: tuple[Tensor, ...],
        where: torch.device,
        _calibration: Any = None,
        pixels: Preprocessing | None = None,
    ) -> None:
        import onnxruntime

        self.chunk = 1
        self.takes_bytes = False
        self.precision = precision
        self.at_once = 1
        self._pixels = pixels
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads()
        if isinstance(module, OnnxModule):
            self._session = module.row_session()
        else:
            model = export(module, example)
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        self._names = [i.name for i in self._session.get_inputs()]

    @staticmethod
    def refuses(precision: str, where: torch.device) -> str | None:
        """Return why it cannot run, or None."""
        if not find_spec("onnxruntime"):
            return f"it is not installed: {_INSTALL}"
        if where.type != "cpu":
            return "it is for CPUs"
        return None if precision == "fp32" else "it has fp32"

    @staticmethod
    def refuses_module(module: nn.Module) -> str | None:
        """Return why it cannot run a module, or None: what is no ONNX file is exported first."""
        missing = [name for name in ("onnx", "onnxscript") if not find_spec(name)]
        if not missing or isinstance(module, OnnxModule):
            return None
        return f"{missing[0]} is not installed, which exports networks: {_INSTALL}"

    def keep(self) -> None:
        """Keep nothing: the weights are all."""

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the rows of a batch, float32."""
        arrays = [t.detach().cpu().contiguous().numpy() for t in normalised(inputs, self._pixels)]
        named = dict(zip(self._names, arrays, strict=True))
        rows = [
            self._session.run(None, {n: a[i : i + 1] for n, a in named.items()})[0]
            for i in range(len(arrays[0]))
        ]
        return torch.from_numpy(np.concatenate(rows))


def export(module: nn.Module, example: tuple[Tensor, ...], free_batch: bool = False) -> bytes:
    """Return the bytes of an ONNX model; the length of texts is free, and so may their number be.

    Otherwise it takes as many inputs at a time as the example has.
    """
    names = [f"input_{i}" for i in range(len(example))]
    sides = {0: "batch", 1: "length"} if free_batch else {1: "length"}
    free = {n: sides for n, t in zip(names, example, strict=True) if t.ndim == 2}
    file: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what torch says about the older exporter
        torch.onnx.export(module, example, file, input_names=names, dynamic_axes=free, dynamo=False)
    model: bytes = file.getvalue()
    return model
