"""Engine "openvino": the network compiled for this CPU, in float32, bfloat16 or int8."""

from __future__ import annotations

import threading
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyfeat._config import num_threads
from pyfeat.backbones._calibration import Batches, calibrate, identity_of, keep, read
from pyfeat.backbones._engine_onnxruntime import export
from pyfeat.backbones._freeze import largest_activation
from pyfeat.backbones._modality import normalised
from pyfeat.backbones._onnx import OnnxModule
from pyfeat.backbones._openvino_core import capabilities, compile_model, core
from pyfeat.ops._preprocess_spec import Preprocessing

# What int8 leaves in floating point is float32: CPUs without bfloat16 give the same rows.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
# Inputs of one request. Starting one costs a small network a tenth of its time with one image each;
# of large activations fewer stay in the cache; weights are read once a request, which counts where
# no cache holds them (VGG16: 240 MB); products of one sentence have too few rows to fill registers.
_CHUNK, _CHUNK_OF_LARGE = 8, 4
_LARGE_ACTIVATION = 2 * 2**20  # bytes
_LARGE_WEIGHTS = 64 * 2**20  # numbers
_REQUESTS = 2  # for each core: one that is done finds the next


class OpenVinoEngine:
    """Compiles a module once, and keeps as many requests running as there are cores.

    Parameters
    ----------
    precision : {"fp32", "bf16", "int8", "int8:IDENTITY"}
    module : nn.Module
        Frozen. Not changed, and not needed afterwards.
    example : tuple of Tensor
    where : torch.device
        The CPU.
    calibration : sequence of batches, optional
        For "int8": what ranges are measured on.
    pixels : Preprocessing, optional
        Of an image network: it then takes pixels as bytes, too, and normalises them itself.

    Notes
    -----
    Every request computes `chunk` inputs, the last one of a batch filled up, on one thread. So a
    row is the same to the bit in any batch. Threads may share an engine; their batches take turns.
    """

    def __init__(
        self,
        precision: str,
        module: nn.Module,
        example: tuple[Tensor, ...],
        where: torch.device,
        calibration: Batches | None = None,
        pixels: Preprocessing | None = None,
    ) -> None:
        kind, _, identity = precision.partition(":")
        self.chunk = chunk_of(module, example)
        example = tuple(t.expand(self.chunk, *t.shape[1:]).contiguous() for t in example)
        self.at_once = num_threads()
        self.takes_bytes = pixels is not None
        self.precision = precision
        self._hint = _HINTS[kind]
        self._pixels = pixels
        self._lock = threading.Lock()
        model = read(identity) if identity else convert(module, example)
        model.reshape({i: _shape(t) for i, t in zip(model.inputs, example, strict=True)})
        if precision == "int8":
            filled = [
                tuple(_filled(t.cpu().numpy(), self.chunk) for t in normalised(b, pixels))
                for b in calibration or []
            ]
            model = calibrate(model, filled, self.chunk)
            self.precision = f"int8:{identity_of(model)}"
        self._model = model
        self._compiled: dict[bool, list[Any]] = {}  # requests, by whether bytes go in

    @staticmethod
    def refuses(precision: str, where: torch.device) -> str | None:
        """Return why it cannot run, or None."""
        if find_spec("openvino") is None:
            return 'it is not installed: pip install "pyfeat[openvino]"'
        if where.type != "cpu":
            return "it is for CPUs"
        kind = precision.partition(":")[0]
        if kind not in _HINTS:
            return f"it has {', '.join(_HINTS)}"
        if kind == "bf16" and "BF16" not in capabilities():
            return "this CPU has no instructions for bfloat16"
        if precision == "int8" and find_spec("nncf") is None:
            return 'nncf is not installed: pip install "pyfeat[openvino]"'
        return None

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the rows of a batch, float32."""
        n, chunk = len(inputs[0]), self.chunk
        arrays = [_filled(t.detach().cpu().contiguous().numpy(), chunk) for t in inputs]
        whole = [[a[i : i + chunk] for a in arrays] for i in range(0, len(arrays[0]), chunk)]
        from_bytes = inputs[0].dtype == torch.uint8
        with self._lock:
            # Back only after success. Graphs that ran out of memory leave numbers of their own in
            # the rows of later inputs, and after Ctrl-C requests may be on their way.
            requests = self._compiled.pop(from_bytes, None) or self._compile(from_bytes)
            parts = _run(requests, whole)
            self._compiled[from_bytes] = requests
        return torch.from_numpy(np.concatenate(parts)[:n])

    def keep(self) -> None:
        """Keep a calibrated network for later processes (see `_calibration`)."""
        if self.precision.startswith("int8:"):
            keep(self._model, self.precision.partition(":")[2])

    def _compile(self, from_bytes: bool) -> list[Any]:
        model = self._model.clone()
        if from_bytes and self._pixels is not None:
            model = normalising(model, self._pixels)
        compiled = compile_model(model, _config(self._hint, self.at_once))
        return [compiled.create_infer_request() for _ in range(_REQUESTS * self.at_once)]


def _run(requests: list[Any], parts: list[list[NDArray[Any]]]) -> list[NDArray[np.float32]]:
    """Return the rows of each part; as many are on their way as there are requests.

    No callbacks in Python, as an `AsyncInferQueue` has them: OpenVINO's threads would need the
    interpreter's lock at their end, and who frees an engine holds it and waits for them.
    """
    rows: list[NDArray[np.float32]] = []
    for i in range(len(parts) + len(requests)):
        request = requests[i % len(requests)]
        if i >= len(requests):
            request.wait()
            rows.append(request.get_output_tensor(0).data.copy())
        if i < len(parts):
            request.start_async(parts[i])
    return rows


def convert(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """Return an OpenVINO model of as many inputs as the example has."""
    import openvino

    if isinstance(module, OnnxModule):
        return module.openvino_model()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what torch says about tracing
        try:
            return openvino.convert_model(module, example_input=example)
        except openvino.frontend.OpConversionFailure:  # it reads ONNX with other rules
            return core().read_model(export(module, example))


def normalising(model: Any, pixels: Preprocessing) -> Any:
    """Return the model behind (v / 255 - mean) / std, so that it takes pixels v as bytes."""
    from openvino import Layout, Type
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    image = steps.input(0)
    image.tensor().set_element_type(Type.u8).set_layout(Layout("NCHW"))
    image.model().set_layout(Layout("NCHW"))
    # Not folded into the first layer: its zeros around the image are zeros after normalisation.
    image.preprocess().convert_element_type(Type.f32)
    image.preprocess().mean([255 * m for m in pixels.mean])
    image.preprocess().scale([255 * s for s in pixels.std])
    return steps.build()


def chunk_of(module: nn.Module, example: tuple[Tensor, ...]) -> int:
    """Return how many inputs one request computes."""
    if isinstance(module, OnnxModule):  # read for one image
        return 1
    if not example[0].is_floating_point():
        return _CHUNK
    large = largest_activation(module, example) > _LARGE_ACTIVATION
    few_weights = sum(p.numel() for p in module.parameters()) <= _LARGE_WEIGHTS
    return _CHUNK_OF_LARGE if large and few_weights else _CHUNK


def _config(hint: str, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "THROUGHPUT",
        "PERFORMANCE_HINT_NUM_REQUESTS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }


def _shape(example: Tensor) -> list[int]:
    # Only the length of texts and recordings is free.
    return list(example.shape) if example.ndim == 4 else [len(example), -1]


def _filled(array: NDArray[Any], chunk: int) -> NDArray[Any]:
    missing = -len(array) % chunk
    if not missing:
        return array
    # The last input again: a mask of nothing but zeros has no softmax.
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
