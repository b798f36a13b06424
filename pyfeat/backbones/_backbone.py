"""A frozen backbone: batches in, rows out, and an identity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from pyfeat._memory import memory_errors
from pyfeat.backbones._calibration import Batches
from pyfeat.backbones._engine import Engine, Inputs, make_engine
from pyfeat.backbones._freeze import make_fast, probe
from pyfeat.backbones._layers import OUTPUT, Layers
from pyfeat.backbones._modality import (
    Preparation,
    VideoPreprocessing,
    check_inputs,
    example_inputs,
    modality_of,
    pixels_of,
)
from pyfeat.backbones._precision import exact_float32
from pyfeat.backbones._pretrained import Joint, Pretrained
from pyfeat.backbones._tap import Averaged, as_rows, tap, with_first_windows
from pyfeat.backbones._weights import all_tensors, weights_hash
from pyfeat.ops._preprocess import Preprocessing

# Raised whenever the same weights and pixels give other rows than before, beyond rounding.
NUMERICS = 1


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network without its classifier, in evaluation mode and without gradients.

    Made by `load_backbone`. Calling it turns a batch of inputs into rows.

    Parameters
    ----------
    name : str
        Full name: loads the same weights again, unless they came from a file or a folder (see
        `Pretrained`).
    dim : int
        Number of columns of a row.
    preprocessing : Preprocessing, Tokenization or AudioPreprocessing
        What an input goes through before it becomes part of a batch.
    device : torch.device
        Where it computes.
    parts : dict of JSON values
        What identifies the rows (see `pyfeat.Space`): source, name, weights, architecture, layer,
        pooling, preprocessing, precision, numerics; `engine` where it is not torch, `video` where
        it takes videos, `joint` where it is one of two towers.
    shapes : tuple of tuple of int
        Shape of what each layer adds to a row: (d,), or with `pooling="none"` that of its map or
        tokens. Their sizes add up to `dim`.
    l2 : bool
        Whether the row of a recording or video, pooled from those of its windows or frames, has
        norm 1.
    chunk : int or None
        How many inputs are computed at a time on a CPU. Any multiple of it is a good batch size.
        None, on a GPU: the whole batch.
    joint : Joint or None
        The space that it shares with the other tower of its model.

    Notes
    -----
    On a CPU every chunk has the same size, the last one filled up with zeros. So a row does not
    depend on its neighbours or on the batch size, to the bit; without it rows differ by about
    3e-7 of their length between batches of one and of many. On a GPU they may.

    With engine "torch" and precision "fp32" sums run in float32: TF32, bfloat16 products and
    autocast are off while a batch is computed.
    """

    name: str
    dim: int
    preprocessing: Preparation
    device: torch.device
    parts: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    l2: bool
    chunk: int | None
    _module: nn.Module = field(repr=False)
    _engine: Engine = field(repr=False)
    joint: Joint | None = None
    _text: Callable[[], Backbone] | None = field(default=None, repr=False)

    @property
    def modality(self) -> str:
        """What it takes: "image", "text", "audio" or "video"."""
        return modality_of(self.preprocessing)

    @property
    def full_batch(self) -> int:
        """Inputs of the smallest batch that keeps every core busy; 1 where that is not known."""
        return (self.chunk or 1) * self._engine.at_once

    @property
    def takes_bytes(self) -> bool:
        """Whether images are best handed in as bytes, resized and not normalised."""
        return self._engine.takes_bytes

    def __call__(self, *batch: Tensor) -> Tensor:
        """Return the rows of a batch.

        Parameters
        ----------
        *batch : Tensor
            Images, or frames of videos: (n, 3, crop, crop), preprocessed, float32; or uint8, not
            yet normalised. Texts: tokens and mask, both (n, length), int64. Recordings:
            (n, samples), float32. On any device. Not changed.

        Returns
        -------
        rows : Tensor of shape (n, dim), float32
            On the device of the backbone. An ordinary tensor, which autograd may use further.

        Raises
        ------
        TypeError
            If `batch` holds something else than tensors of that dtype.
        ValueError
            If `batch` has another shape.
        MemoryError, torch.OutOfMemoryError
            If the batch is too large for the memory of the CPU, or of the GPU.
        """
        check_inputs(self.preprocessing, batch)
        rows = torch.empty(len(batch[0]), self.dim, device=self.device)
        if len(rows):
            with memory_errors():
                rows.copy_(self._engine(batch))
        return rows

    def with_engine(
        self, engine: str, precision: str, calibration: Batches | None = None
    ) -> Backbone:
        """Return the same network on another engine or in another precision.

        Parameters
        ----------
        engine : {"torch", "openvino", "onnxruntime"}
        precision : {"fp32", "bf16", "fp16", "int8", "int8:IDENTITY", "fp8"}
            With an identity, as `parts["precision"]` of such rows has it: the network calibrated
            then, which `keep` has left on disk.
        calibration : sequence of batches, optional
            Needed for "int8": inputs of the kind to come, on which ranges are measured.

        Raises
        ------
        BackendError
            If the engine is not installed, or has no such precision on this device.
        ValueError
            If there is nothing to calibrate "int8" on.
        FileNotFoundError
            If the cache does not have the calibrated network.
        """
        example = _example(self.preprocessing, self.device)
        pixels = pixels_of(self.preprocessing)
        module, device = self._module, self.device
        run = make_engine(engine, precision, module, example, device, calibration, pixels)
        parts = {k: v for k, v in self.parts.items() if k != "engine"}
        parts["precision"] = "float32" if precision == "fp32" else run.precision
        if engine != "torch":
            parts["engine"] = engine
        return replace(self, parts=parts, chunk=run.chunk, _engine=run)

    def keep(self) -> None:
        """Keep what a later process needs for equal rows: a network calibrated to int8.

        It is written to `$XDG_CACHE_HOME/pyfeat/int8` (by default `~/.cache/pyfeat/int8`).

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self._engine.keep()

    def on_videos(self, pooling: str = "avg", frames: Any = 8) -> Backbone:
        """Return the same network for videos: the rows of frames become one.

        Parameters
        ----------
        pooling : {"avg", "max"}, default="avg"
        frames : int, default=8
            How many frames of a video. Range [1, inf).

        Raises
        ------
        ValueError
            If it takes no images, or there is no such pooling or number.
        """
        if not isinstance(self.preprocessing, Preprocessing):
            raise ValueError(f"backbone must take images to take videos, got {self.modality}")
        if pooling not in ("avg", "max"):
            raise ValueError(f"video must be one of ['avg', 'max'], got {pooling!r}")
        if isinstance(frames, bool) or not isinstance(frames, Integral) or frames < 1:
            raise ValueError(f"frames must be a positive integer, got {frames!r}")
        video = VideoPreprocessing(self.preprocessing, int(frames), pooling)
        return replace(self, preprocessing=video, parts={**self.parts, "video": video.to_parts()})

    def text_tower(self) -> Backbone:
        """Return the tower that brings texts into the space of this one's images; loaded once.

        Raises
        ------
        ValueError
            If there is none, or this backbone gives other rows than those that both towers share.
        """
        if self._text is None:
            rule = "have a text tower, and layers and pooling be those of the model (-1, 'auto')"
            raise ValueError(f"backbone must {rule}, got {self.name!r}")
        return self._text()


def freeze(
    found: Pretrained, device: torch.device, layers: Layers = -1, pooling: str = "auto"
) -> Backbone:
    """Turn what a source handed over into a backbone; the module is taken over and rewritten.

    Raises
    ------
    ValueError
        If the module does not take inputs of its preprocessing, or returns neither
        (n, d) nor (n, c, h, w); or if there are no such layers, or no such pooling of them.
    """
    _check_preprocessing(found.preprocessing)
    module = found.module.eval().requires_grad_(False).float()
    weights = weights_hash(_tensors_of(found.source, module))
    name = f"{found.name}:{weights[:16]}" if found.source == "folder" else found.name
    module = module.to(device)
    example = _example(found.preprocessing, device)
    own = layers in (-1, OUTPUT) and pooling == "auto"
    with torch.no_grad(), exact_float32(device):
        output = probe(module, example)
        if own:
            layer: Any = "penultimate"
            shapes: tuple[tuple[int, ...], ...] = ((as_rows(output, 1).shape[1],),)
            pooling = "avg" if output.ndim == 4 else "module"
            module = Averaged(module) if output.ndim == 4 else module
        else:
            found = with_first_windows(found) if pooling == "none" else found
            module, layer, shapes = tap(module, layers, pooling, found.preprocessing, example)
        make_fast(module, example, device)
    l2 = found.l2 and own  # of the network's own rows, not of what other layers give
    joint = found.joint if own else None
    parts = _parts(found, (name, weights, layer, pooling), l2, joint)
    dim = sum(torch.Size(s).numel() for s in shapes)
    pixels = pixels_of(found.preprocessing)
    engine = make_engine("torch", "fp32", module, example, device, pixels=pixels)
    return Backbone(
        name,
        dim,
        found.preprocessing,
        device,
        parts,
        shapes,
        l2,
        engine.chunk,
        module,
        engine,
        joint,
        _text_loader(found, device) if own else None,
    )


def _parts(
    found: Pretrained, said: tuple[str, str, Any, str], l2: bool, joint: Joint | None
) -> dict[str, Any]:
    """Return what identifies the rows of torch in float32."""
    name, weights, layer, pooling = said
    parts = {
        "source": found.source,
        "name": name,
        "weights": weights,
        "architecture": found.architecture,
        "layer": layer,
        "pooling": pooling,
        "preprocessing": found.preprocessing.to_parts(),
        "precision": "float32",
        "numerics": NUMERICS,
    }
    if l2:
        parts["l2"] = True
    if joint is not None:
        parts["joint"] = joint.to_parts()
    return parts


def _check_preprocessing(preprocessing: Preparation) -> None:
    if isinstance(preprocessing, VideoPreprocessing):
        raise ValueError("preprocessing must be one of images: videos are asked for by video=")


def _tensors_of(source: str, module: nn.Module) -> dict[str, Any]:
    # Buffers outside the state dict belong to the architecture, which a name of a model fixes.
    return all_tensors(module) if source == "module" else module.state_dict()


def _text_loader(found: Pretrained, device: torch.device) -> Callable[[], Backbone] | None:
    load = found.text
    return None if load is None else cache(lambda: freeze(load(), device))


def _example(preparation: Preparation, device: torch.device) -> Inputs:
    return tuple(t.to(device) for t in example_inputs(preparation, 1))
