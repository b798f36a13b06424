"""ONNX files as backbones: ONNX Runtime runs them, or OpenVINO, which reads them itself."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor, nn

from pyfeat.backbones import _onnx_runtimes as runtimes
from pyfeat.backbones._files import read_whole
from pyfeat.backbones._layers import OUTPUT, Layers, pool_layer
from pyfeat.backbones._modality import Preparation
from pyfeat.backbones._onnx_runtimes import Slot
from pyfeat.backbones._pretrained import IMAGENET, Pretrained
from pyfeat.ops._preprocess import Preprocessing

_SIZE = 224
# Tokens before those of the patches, in the order tried: class token; that and the one of
# distillation; that and four registers.
_PREFIXES = (0, 1, 2, 5)
_opening = threading.Lock()


class OnnxModule(nn.Module):
    """An ONNX file of an image model, as a module.

    Parameters
    ----------
    model : bytes
        The file, or the file with other outputs.
    digest : str
        BLAKE3 of the file: the identity of its weights.
    size : int
        Side of the images.
    outputs : tuple of str
        Outputs that make the row.
    batch : int or None
        Images that it takes at a time; None is any number.
    pooling : str, default="auto"
        How each becomes part of the row (see `pool_layer`).

    Notes
    -----
    ONNX names no class token: of l tokens, the first k in (1, 2, 5) stand for no position where
    l - k is a square number and l is none. "auto" takes the first token there, else the mean.

    The session belongs to no copy and to no pickle: each opens its own, when first called.
    """

    def __init__(
        self,
        model: bytes,
        digest: str,
        size: int,
        outputs: tuple[str, ...],
        batch: int | None,
        pooling: str = "auto",
    ) -> None:
        super().__init__()
        self.size = size
        self.batch = batch
        self.outputs = outputs
        self.pooling = pooling
        self._model = model
        self._digest = digest
        self._runner: Any = None

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, d): the outputs, pooled, beside each other."""
        return torch.cat([row.flatten(1) for row in self.pooled(images)], dim=1)

    def pooled(self, images: Tensor) -> list[Tensor]:
        """Return each output, pooled.

        Raises
        ------
        ValueError
            If an output has no such pooling, or the file cannot run on such images.
        """
        with runtimes.explained(self._digest[:16]):
            arrays = self.runner.run(images.detach().cpu().numpy(), self.outputs)
        found = [torch.from_numpy(a).to(images.device) for a in arrays]
        return [
            pool_layer(t, self.pooling, prefix_of(t.shape), None, name)
            for name, t in zip(self.outputs, found, strict=True)
        ]

    @property
    def runner(self) -> Any:
        """What runs the file; opened once."""
        if self._runner is None:
            with _opening:
                if self._runner is None:
                    self._runner = runtimes.open_model(self._model, self.batch)
        return self._runner

    def tapped(self, layers: Layers, pooling: str) -> OnnxModule:
        """Return the same file with tensors of the graph as its outputs.

        Raises
        ------
        ImportError
            If a tensor is no output of the file and the package onnx is missing.
        TypeError, ValueError
            If a layer is no name of a tensor; or a negative integer other than -1: a graph has no
            blocks to be counted.
        """
        wanted = [layers] if isinstance(layers, (int, str)) else list(layers)
        if not wanted:
            raise ValueError("layers must name at least one layer, got none")
        names: list[str] = []
        for layer in wanted:
            if isinstance(layer, bool) or not isinstance(layer, (int, str)):
                raise TypeError(f"layers must be names or -1, got {layer!r}")
            if isinstance(layer, int) and layer != -1:
                raise ValueError(f"layers of an ONNX file must be names of tensors, got {layer}")
            names += self.outputs if layer in (-1, OUTPUT) else [str(layer)]
        if len(set(names)) < len(names):
            raise ValueError(f"layers must differ, got {wanted}")
        inner = [name for name in names if name not in self.runner.outputs]
        model = runtimes.with_outputs(self._model, names, inner) if inner else self._model
        return OnnxModule(model, self._digest, self.size, tuple(names), self.batch, pooling)

    @property
    def names(self) -> tuple[str, ...]:
        """What the row is made of: the outputs."""
        return self.outputs

    def openvino_model(self) -> Any:
        """Return an OpenVINO model of one image (1, 3, s, s) that gives the row (1, d)."""
        shapes = [tuple(t.shape) for t in self._probe()]
        prefixes = [prefix_of(shape) for shape in shapes]
        images = self.runner.inputs[0]
        return runtimes.openvino_rows(
            self._model, self.outputs, self.pooling, prefixes, images.shape_of(1, self.size)
        )

    def row_session(self) -> Any:
        """Return what the engine "onnxruntime" runs: one image to its row."""
        return runtimes.RowSession(self)

    def refuses(self, engine: str, precision: str) -> str | None:
        """Return why an engine cannot run it, or None."""
        if engine == "torch" and precision != "fp32":
            return "an ONNX file has one precision in torch: fp32"
        return None

    def get_extra_state(self) -> str:
        """Return the identity of the weights."""
        return self._digest

    def set_extra_state(self, _state: Any) -> None:
        """Refuse: the weights are those of the file."""
        raise ValueError("weights of an ONNX file must be those of the file")

    def extra_repr(self) -> str:
        """Return what is shown of it."""
        return f"outputs={self.outputs}, pooling={self.pooling!r}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runner": None}

    def _probe(self) -> list[Tensor]:
        image = np.zeros((1, 3, self.size, self.size), np.float32)
        return [torch.from_numpy(a) for a in self.runner.run(image, self.outputs)]


def load_onnx(path: str, preprocessing: Preparation | None) -> Pretrained:
    """Return the model of an ONNX file.

    Parameters
    ----------
    path : str
    preprocessing : Preprocessing or None
        None means ImageNet's mean and deviation, bilinear, at the size of the file's input (224
        where that is free), the short side being resized to 256/224 of it. A file says nothing
        about how its images were prepared: pass what it was trained with.

    Raises
    ------
    ImportError
        If neither onnxruntime nor openvino is there.
    OSError
        If the file cannot be read.
    ValueError
        If it is no ONNX model that one of them can run; keeps its weights in other files; takes
        something else than one square RGB image; or returns neither rows, maps nor tokens.
    """
    runtimes.check_installed()
    content = read_whole(path, "ONNX file")
    with runtimes.explained(path):
        runner = runtimes.open_model(content)
        size = input_size(runner.inputs, preprocessing)
        default = replace(IMAGENET, resize=round(size * 256 / 224), crop=size)
        chosen = default if preprocessing is None else preprocessing
        output = _row_output(runner.probe(size))
        if runner.batch is None and not runtimes.takes_two(runner, size, output):
            runner.batch = 1
    digest = blake3(content, max_threads=blake3.AUTO).hexdigest()
    module = OnnxModule(content, digest, size, (output,), runner.batch)
    module._runner = runner
    return Pretrained(f"onnx/{digest[:16]}", "onnx", "onnx", module, chosen)


def input_size(inputs: Sequence[Slot], preprocessing: Preparation | None) -> int:
    """Return the side of the images that a model takes.

    Raises
    ------
    ValueError
        If it takes something else than one square RGB image of floating point numbers.
    """
    names = [i.name for i in inputs]
    if any(name.startswith("input_ids") for name in names):
        raise ValueError("it must be an image model, got one of texts: load texts with hf/ or st/")
    if len(inputs) != 1:
        raise ValueError(f"it must have one input, got {names}")
    images = inputs[0]
    shape = images.shape
    if len(shape) != 4 or images.side_names() is None or images.dtype is None:
        got = f"{images.kind} of shape {list(shape)}"
        raise ValueError(f"input {names[0]!r} must be RGB images of float numbers, got {got}")
    sides = {side for side in images.side_names() or () if side is not None}
    if len(sides) > 1:
        raise ValueError(f"input {names[0]!r} must be square images, got {list(shape)}")
    if preprocessing is None:
        return sides.pop() if sides else _SIZE
    if not isinstance(preprocessing, Preprocessing):
        got = type(preprocessing).__name__
        raise ValueError(f"preprocessing must be Preprocessing for an image model, got {got}")
    if sides and preprocessing.crop not in sides:
        rule = f"have crop {sides.pop()}, as the file has"
        raise ValueError(f"preprocessing must {rule}, got {preprocessing.crop}")
    return preprocessing.crop


def prefix_of(shape: Sequence[int]) -> int:
    """Return how many tokens of (n, l, c) stand for no position; 0 for maps and rows."""
    if len(shape) != 3:
        return 0
    rests = {k: shape[1] - k for k in _PREFIXES if shape[1] > k}
    return next((k for k, rest in rests.items() if round(rest**0.5) ** 2 == rest), 0)


def _row_output(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return the first output of rows or maps, else the first of tokens."""
    for ranks in ((2, 4), (3,)):
        for name, shape in shapes.items():
            if len(shape) in ranks and 0 not in shape:
                return name
    raise ValueError(f"it must return rows, maps or tokens of each image, got {dict(shapes)}")
