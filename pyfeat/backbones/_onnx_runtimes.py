"""The two packages that run ONNX files, behind one small interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyfeat._config import num_threads
from pyfeat.backbones._layers import _GEM_FLOOR, _GEM_POWER
from pyfeat.backbones._openvino_core import compile_model, core

_INSTALL = 'pip install "pyfeat[onnx]" or "pyfeat[openvino]"'
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "f32": np.float32,
    "f16": np.float16,
}
# Key and value of a tensor that lies in another file, as protobuf writes the first of them.
_EXTERNAL = b"\x0a\x08location\x12"
_NOWHERE = "/dev/null"


@dataclass(frozen=True)
class Slot:
    """One input of a model: name, type as its runtime calls it, and sides; None is a free one."""

    name: str
    kind: str
    shape: tuple[int | None, ...]

    @property
    def dtype(self) -> Any:
        """The numpy type; None if it is no float of 16 or 32 bits."""
        return _DTYPES.get(self.kind)

    @property
    def channels_last(self) -> bool:
        """Whether images are (n, h, w, 3)."""
        return self.shape[1] not in (3, None) or (self.shape[1] is None and self.shape[3] == 3)

    def side_names(self) -> tuple[int | None, ...] | None:
        """Return height and width; None if there are not three channels."""
        if self.channels_last:
            return self.shape[1:3] if self.shape[3] == 3 else None
        return self.shape[2:4]

    def shape_of(self, n: int, size: int) -> list[int]:
        """Return the shape of `n` images."""
        return [n, size, size, 3] if self.channels_last else [n, 3, size, size]


class Runner:
    """Runs a model over batches of any size.

    Attributes
    ----------
    inputs : list of Slot
    outputs : list of str
    batch : int or None
        Images that it takes at a time; None is any number.
    """

    inputs: list[Slot]
    outputs: list[str]
    batch: int | None

    def run(self, images: NDArray[np.float32], names: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return outputs of images (n, 3, s, s); a model of a fixed batch runs several times."""
        slot = self.inputs[0]
        arranged = images.transpose(0, 2, 3, 1) if slot.channels_last else images
        batch = np.ascontiguousarray(arranged, slot.dtype)
        step = self.batch or len(batch)
        parts = [self._part(batch[i : i + step], step, names) for i in range(0, len(batch), step)]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def probe(self, size: int) -> dict[str, list[int]]:
        """Return the shapes of the outputs that have one entry of floats for each image."""
        slot = self.inputs[0]
        n = self.batch or 1
        found = self._call(np.zeros(slot.shape_of(n, size), slot.dtype), self.outputs)
        arrays = {k: v for k, v in zip(self.outputs, found, strict=True) if hasattr(v, "dtype")}
        return {
            name: list(array.shape)
            for name, array in arrays.items()
            if array.dtype.kind == "f" and array.shape[:1] == (n,)
        }

    def _part(
        self, part: NDArray[Any], step: int, names: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        n = len(part)
        if n < step:
            part = np.concatenate([part, np.zeros((step - n, *part.shape[1:]), part.dtype)])
        found = self._call(part, names)
        for name, array in zip(names, found, strict=True):
            if len(np.shape(array)) == 0 or len(array) != step:
                got = list(np.shape(array))
                raise ValueError(f"{name!r} must have one entry an image ({step}), got {got}")
        return [_as_float32(array[:n]) for array in found]

    def _call(self, part: NDArray[Any], names: Sequence[str]) -> list[Any]:
        raise NotImplementedError


class OnnxRunner(Runner):
    """ONNX Runtime on the CPU, in float32."""

    def __init__(self, model: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads()
        options.log_severity_level = 4  # what is wrong is raised
        # No other file is opened, whatever the model says.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", _NOWHERE
        )
        self._path = onnxruntime.RunOptions()
        self._path.only_execute_path_to_fetches = True
        self._path.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [
            Slot(i.name, i.type, tuple(s if isinstance(s, int) else None for s in i.shape))
            for i in self._session.get_inputs()
        ]
        self.outputs = [o.name for o in self._session.get_outputs()]

    def _call(self, part: NDArray[Any], names: Sequence[str]) -> list[Any]:
        found: list[Any] = self._session.run(list(names), {self.inputs[0].name: part}, self._path)
        return found


class OpenVinoRunner(Runner):
    """OpenVINO on the CPU, in float32."""

    def __init__(self, model: bytes) -> None:
        read = core().read_model(model)
        config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": num_threads()}
        self._compiled = compile_model(read, config)
        self.inputs = [
            Slot(i.any_name, i.element_type.get_type_name(), _sides(i.partial_shape))
            for i in read.inputs
        ]
        self._ports = {name: o for o in self._compiled.outputs for name in o.get_names()}
        self.outputs = [o.any_name for o in read.outputs]

    def _call(self, part: NDArray[Any], names: Sequence[str]) -> list[Any]:
        request = self._compiled.create_infer_request()  # of its own: threads may overlap
        found = request.infer([part])
        return [found[self._ports[name]] for name in names]


class RowSession:
    """What an ONNX Runtime session is to its engine, for a file: one image to its row."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def get_inputs(self) -> list[Slot]:
        """Return the one input."""
        slots: list[Slot] = self._module.runner.inputs
        return slots

    def run(self, _names: None, named: dict[str, NDArray[np.float32]]) -> list[NDArray[Any]]:
        """Return the rows."""
        (images,) = named.values()
        return [self._module(torch.from_numpy(images)).numpy()]


def check_installed() -> None:
    """Raise ImportError unless one of the packages is there."""
    if find_spec("onnxruntime") is None and find_spec("openvino") is None:
        raise ImportError(f"ONNX files need onnxruntime or openvino: {_INSTALL}")


def open_model(model: bytes, batch: int | None = None) -> Runner:
    """Return what runs a model: ONNX Runtime, or OpenVINO where that is missing.

    `batch` is what it takes at a time; by default what it says itself.
    """
    if _EXTERNAL in model:
        raise ValueError("it must hold its weights itself, got some in other files")
    check_installed()
    has_onnxruntime = find_spec("onnxruntime") is not None
    runner = OnnxRunner(model) if has_onnxruntime else OpenVinoRunner(model)
    shape = runner.inputs[0].shape if runner.inputs else ()
    runner.batch = batch or (shape[0] if shape else None)
    return runner


def takes_two(runner: Runner, size: int, name: str) -> bool:
    """Return whether a model takes two images at a time: some say so, and cannot."""
    try:
        runner.run(np.zeros((2, 3, size, size), np.float32), [name])
    except _errors():
        return False
    return True


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn what the packages raise for a bad file into one ValueError."""
    try:
        yield
    except _errors() as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"ONNX file must be an image model that can run, got {path!r}: "
            f"{lines[-1] if lines else type(error).__name__}"
        ) from error


def _errors() -> tuple[type[Exception], ...]:
    # ONNX Runtime's exceptions have no base class of their own.
    own: list[type[Exception]] = []
    if find_spec("onnxruntime") is not None:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        found = (getattr(state, name) for name in dir(state))
        own = [e for e in found if isinstance(e, type) and issubclass(e, Exception)]
    return (RuntimeError, ValueError, MemoryError, *own)


def with_outputs(model: bytes, names: Sequence[str], inner: Sequence[str]) -> bytes:
    """Return a model that gives tensors of its graph; what lies behind the last is not computed.

    Raises
    ------
    ImportError
        If the package onnx is missing.
    ValueError
        If there is no such tensor.
    """
    try:
        import onnx
    except ImportError as error:
        needs = "layers inside an ONNX file need onnx"
        raise ImportError(f'{needs}: pip install "pyfeat[onnx]"') from error
    graph_of = onnx.load_from_string(model)
    graph = graph_of.graph
    known = [name for node in graph.node for name in node.output if name]
    for name in inner:
        if name not in known:
            some = ", ".join(known[:: max(len(known) // 5, 1)][:5])
            raise ValueError(f"layers must be names of tensors ({some}, ...), got {name!r}")
    given = {o.name: o for o in graph.output}
    kept = [given.get(name) or onnx.ValueInfoProto(name=name) for name in names]
    del graph.output[:]
    graph.output.extend(kept)
    changed: bytes = graph_of.SerializeToString()
    return changed


def openvino_rows(
    model: bytes, names: Sequence[str], pooling: str, prefixes: Sequence[int], shape: list[int]
) -> Any:
    """Return an OpenVINO model of one image (1, 3, s, s) float32 that gives the row (1, d)."""
    import openvino
    from openvino import opset13 as ops

    read = core().read_model(model)
    read.reshape(shape)
    rows = []
    for name, prefix in zip(names, prefixes, strict=True):
        tensor = read.output(name).get_node().input_value(0)
        pooled = _pooled(ops.convert(tensor, "f32"), pooling, prefix)
        rows.append(ops.reshape(pooled, np.array([1, -1]), special_zero=False))
    row = ops.concat(rows, 1) if len(rows) > 1 else rows[0]
    whole = openvino.Model([row], read.get_parameters())
    prepare = openvino.preprocess.PrePostProcessor(whole)
    images = prepare.input()
    images.tensor().set_element_type(openvino.Type.f32).set_layout(openvino.Layout("NCHW"))
    images.model().set_layout(openvino.Layout("NHWC" if shape[3] == 3 else "NCHW"))
    return prepare.build()


def _pooled(x: Any, pooling: str, prefix: int) -> Any:
    # As `pool_layer`, which has run and not refused.
    from openvino import opset13 as ops

    shape = list(x.output(0).shape)
    if len(shape) == 2 or pooling == "none":
        return x
    if len(shape) == 4 and shape[1] == shape[2] != shape[3]:
        x = ops.reshape(x, np.array([1, -1, shape[3]]), special_zero=False)
    elif len(shape) == 4:
        x = ops.reshape(x, np.array([1, shape[1], -1]), special_zero=False)
        x = ops.transpose(x, np.array([0, 2, 1]))
    if pooling == "auto":
        pooling = "cls" if prefix else "avg"
    cut = partial(ops.slice, step=np.array([1]), axes=np.array([1]))
    end = np.array([np.iinfo(np.int32).max])
    first = ops.squeeze(cut(x, np.array([0]), np.array([1])), np.array([1]))
    if pooling == "cls":
        return first
    rest = cut(x, np.array([prefix]), end) if prefix else x
    axis = np.array([1])
    if pooling == "max":
        return ops.reduce_max(rest, axis)
    if pooling == "gem":
        low = ops.maximum(rest, np.float32(_GEM_FLOOR))
        mean = ops.reduce_mean(ops.power(low, np.float32(_GEM_POWER)), axis)
        return ops.power(mean, np.float32(1 / _GEM_POWER))
    mean = ops.reduce_mean(rest, axis)
    return ops.concat([first, mean], 1) if pooling == "cls+avg" else mean


def _sides(shape: Any) -> tuple[int | None, ...]:
    if shape.rank.is_dynamic:
        return ()
    return tuple(None if s.is_dynamic else s.get_length() for s in shape)


def _as_float32(array: Any) -> NDArray[Any]:
    given: NDArray[Any] = np.asarray(array)
    return given.astype(np.float32, copy=False) if given.dtype.kind == "f" else given
