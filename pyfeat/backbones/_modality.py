"""What a backbone takes: images, texts, sound or videos, and how each becomes part of a batch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyfeat.ops._preprocess import Preprocessing

_NORMALIZE = ["none", "unit", "volume"]
_WINDOWS = ["avg", "first"]
# Multiples to which token sequences are filled up: a model sees few shapes, and a text always the
# same one, whatever else is in its batch. Short ones are many, and filled up only a little.
_STEP, _LONG_STEP, _LONG = 4, 16, 64


@dataclass(frozen=True, eq=False)
class Tokenization:
    """What a text goes through before it becomes part of a batch.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Without truncation and padding of its own; adds the special tokens.
    max_length : int
        Most tokens of a text, special ones included; what is longer is cut off and counted.
    pad_id : int
        Token that fills up.
    identity : str
        Hash of the vocabulary and the rules of the tokenizer.
    prefix : str, default=""
        What stands in front of every text.
    fixed : bool, default=False
        Whether every text is filled up to `max_length`, and the filling read like the text.
    """

    tokenizer: Any = field(repr=False)
    max_length: int
    pad_id: int
    identity: str
    prefix: str = ""
    fixed: bool = False

    def to_parts(self) -> dict[str, Any]:
        """Return the settings as JSON values, for a fingerprint."""
        parts = {"tokenizer": self.identity, "max_length": self.max_length}
        if self.prefix:
            parts["prefix"] = self.prefix
        if self.fixed:
            parts["fixed"] = True
            parts["pad_id"] = self.pad_id
        return parts


@dataclass(frozen=True)
class AudioPreprocessing:
    """What a recording goes through before it becomes part of a batch.

    Parameters
    ----------
    sample_rate : int
        Samples a second; a recording of another rate is resampled.
    window : float
        Seconds of one window. A longer recording is cut into windows, whose rows are averaged.
    hop : float
        Seconds between the starts of two windows.
    normalize : {"none", "unit", "volume"}, default="none"
        "unit": mean 0 and variance 1. "volume": raised to -30 dBFS where it is more silent.
    shortest : float, default=0.1
        Seconds up to which a shorter recording is filled with silence.
    lead : float, default=0
        Seconds of silence put before a recording.
    least : float, default=0
        Above 0 every window is whole: it is filled with silence where the recording ends, and
        there are as many windows, but at least one, as hold at least so many seconds of the
        recording. With 0 the last window ends with the recording, and a recording shorter than a
        window stays as long as it is.
    windows : {"avg", "first"}, default="avg"
        "first": nothing of a recording is seen but its first window.
    """

    sample_rate: int
    window: float
    hop: float
    normalize: str = "none"
    shortest: float = 0.1
    lead: float = 0.0
    least: float = 0.0
    windows: str = "avg"

    def __post_init__(self) -> None:
        if isinstance(self.sample_rate, bool) or int(self.sample_rate) != self.sample_rate:
            raise TypeError(f"sample_rate must be an integer, got {self.sample_rate!r}")
        object.__setattr__(self, "sample_rate", int(self.sample_rate))
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate must be at least 1, got {self.sample_rate}")
        for name in ("window", "hop", "shortest", "lead", "least"):
            value = float(getattr(self, name))
            # A window and a step have at least one sample.
            low = 1 / self.sample_rate if name in ("window", "hop") else 0.0
            if not low <= value < math.inf:
                raise ValueError(f"{name} must be at least {low:g} seconds, got {value}")
            object.__setattr__(self, name, value)
        if self.hop > self.window:
            rule = f"be at most window={self.window:g}, else samples are left out"
            raise ValueError(f"hop must {rule}, got {self.hop:g}")
        if self.normalize not in _NORMALIZE:
            raise ValueError(f"normalize must be one of {_NORMALIZE}, got {self.normalize!r}")
        if self.windows not in _WINDOWS:
            raise ValueError(f"windows must be one of {_WINDOWS}, got {self.windows!r}")

    def to_parts(self) -> dict[str, Any]:
        """Return the settings as JSON values, for a fingerprint."""
        parts = asdict(self)
        if self.windows == "avg":  # as before there was a choice
            del parts["windows"]
        return parts

    @classmethod
    def from_parts(cls, parts: dict[str, Any]) -> AudioPreprocessing:
        """Return the settings that `to_parts` gave."""
        return cls(**parts)


@dataclass(frozen=True)
class VideoPreprocessing:
    """What a video goes through before its frames become part of a batch.

    Parameters
    ----------
    image : Preprocessing
        What each frame goes through.
    frames : int, default=8
        How many frames are taken, spread evenly; of a shorter video all of them.
    pooling : {"avg", "max"}, default="avg"
        How the rows of the frames become one.
    """

    image: Preprocessing
    frames: int = 8
    pooling: str = "avg"

    def to_parts(self) -> dict[str, Any]:
        """Return what a fingerprint needs beside the preprocessing of images."""
        return {"frames": self.frames, "pooling": self.pooling}


Preparation = Preprocessing | Tokenization | AudioPreprocessing | VideoPreprocessing


def modality_of(preparation: Preparation) -> str:
    """Return "image", "text", "audio" or "video"."""
    if isinstance(preparation, VideoPreprocessing):
        return "video"
    if isinstance(preparation, Tokenization):
        return "text"
    return "audio" if isinstance(preparation, AudioPreprocessing) else "image"


def pixels_of(preparation: Preparation) -> Preprocessing | None:
    """Return how images, or frames of videos, are normalised; None for other inputs."""
    if isinstance(preparation, (Preprocessing, VideoPreprocessing)):
        return _image(preparation)
    return None


def _image(preparation: Preprocessing | VideoPreprocessing) -> Preprocessing:
    return preparation.image if isinstance(preparation, VideoPreprocessing) else preparation


def bucket_of(length: int, max_length: int) -> int:
    """Return the bucket of a sequence of `length` tokens: the length to which it is filled up.

    Only a sequence of `max_length` is not filled up at all, and has a bucket of its own,
    `max_length + 1`. So in a batch of one bucket all masks have a zero or none has: attention
    without a mask is another kernel, and rows would depend on their neighbours.
    """
    if length >= max_length:
        return max_length + 1
    step = _STEP if length < _LONG else _LONG_STEP
    return min((length // step + 1) * step, max_length)


def example_inputs(preparation: Preparation, n: int) -> tuple[Tensor, ...]:
    """Return `n` inputs of noise, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(preparation, Tokenization):
        length = min(bucket_of(24, preparation.max_length), preparation.max_length)
        vocabulary = preparation.tokenizer.get_vocab_size()
        ids = torch.randint(0, vocabulary, (n, length), generator=generator)
        return ids, torch.ones_like(ids)
    if isinstance(preparation, AudioPreprocessing):
        samples = round(preparation.window * preparation.sample_rate)
        return (torch.randn(n, samples, generator=generator) * 0.1,)
    size = _image(preparation).crop
    return (torch.randn(n, 3, size, size, generator=generator),)


def normalised(inputs: tuple[Tensor, ...], pixels: Preprocessing | None) -> tuple[Tensor, ...]:
    """Return a batch of images as float32: bytes become what `preprocess` gives, to the bit."""
    first = inputs[0]
    if first.dtype != torch.uint8 or pixels is None:
        return inputs
    # Filled where the bytes are: a copy from the host cannot be recorded in a CUDA graph.
    mean, std = (
        torch.stack([first.new_full((1, 1), v, dtype=torch.float32) for v in of])
        for of in (pixels.mean, pixels.std)
    )
    return ((first.float() / 255 - mean) / std, *inputs[1:])


def check_inputs(preparation: Preparation, inputs: tuple[Any, ...]) -> None:
    """Raise unless `inputs` are a batch of what the preparation makes.

    Raises
    ------
    TypeError
        If one is no tensor or of another dtype.
    ValueError
        If there are more or fewer, or of another shape.
    """
    if isinstance(preparation, Tokenization):
        dtype, count, rule = torch.int64, 2, "(n, length)"
        fits = all(getattr(t, "ndim", 0) == 2 for t in inputs)
    elif isinstance(preparation, AudioPreprocessing):
        dtype, count, rule = torch.float32, 1, "(n, samples)"
        fits = all(getattr(t, "ndim", 0) == 2 for t in inputs)
    else:
        side = _image(preparation).crop
        dtype, count, rule = torch.float32, 1, f"(n, 3, {side}, {side})"
        fits = all(tuple(getattr(t, "shape", ()))[1:] == (3, side, side) for t in inputs)
    if len(inputs) != count:
        raise ValueError(f"batch must be {count} tensors, got {len(inputs)}")
    bytes_too = pixels_of(preparation) is not None
    for tensor in inputs:
        own = getattr(tensor, "dtype", None)
        if own != dtype and not (bytes_too and own == torch.uint8):
            got = getattr(tensor, "dtype", type(tensor).__name__)
            raise TypeError(f"batch must be a {str(dtype)[6:]} tensor, got {got}")
        if not fits or tensor.shape != inputs[0].shape:
            raise ValueError(f"batch must have shape {rule}, got {tuple(tensor.shape)}")
