"""What each kind of input is read into, what its key is taken of, what a backbone gets of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pyfeat.backbones import AudioPreprocessing, Backbone, Tokenization, VideoPreprocessing
from pyfeat.errors import InputError
from pyfeat.extract._audio import AudioReader
from pyfeat.extract._decode import image_from_array, image_from_pil, read_file
from pyfeat.extract._text import TextReader
from pyfeat.extract._video import VideoReader
from pyfeat.ops import Preprocessing, decode_preprocess, preprocess

Content = bytes | str | NDArray[Any]


class Reader(Protocol):
    """Turns values of one modality into what a backbone takes."""

    def content(self, value: Any, name: str) -> Content:
        """Return what the key of an input is taken of; raise InputError if it cannot be read."""
        ...

    def tensor(self, content: Content, name: str) -> tuple[Tensor, bool]:
        """Return the tensor of one input, and whether something of it was cut off."""
        ...

    def collate(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[int]]:
        """Return a batch, and how many of its rows belong to each input."""
        ...

    def bucket(self, tensor: Tensor) -> int:
        """Return a number that inputs of one batch share."""
        ...


def reader_of(backbone: Backbone, decode: str, *, as_bytes: bool | None = None) -> Reader:
    """Return the reader of what a backbone takes; `decode` is the mode of `pyfeat.ops.decode`.

    Images become bytes, or float32; by default what the backbone is best given.
    """
    preparation = backbone.preprocessing
    if isinstance(preparation, Tokenization):
        return TextReader(preparation)
    if isinstance(preparation, AudioPreprocessing):
        return AudioReader(preparation)
    wanted = backbone.takes_bytes if as_bytes is None else as_bytes
    dtype = torch.uint8 if wanted else torch.float32
    if isinstance(preparation, VideoPreprocessing):
        return VideoReader(preparation, dtype)
    return ImageReader(preparation, decode, dtype)


class ImageReader:
    """Paths, encoded bytes, PIL images and arrays of pixels."""

    def __init__(
        self, preprocessing: Preprocessing, decode: str, dtype: torch.dtype = torch.float32
    ) -> None:
        self._preprocessing = preprocessing
        self._decode = decode
        self._dtype = dtype

    def content(self, value: Any, name: str) -> Content:
        """Return the bytes of a file, or the array of pixels."""
        if isinstance(value, (str, os.PathLike)):
            return read_file(Path(value))
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if isinstance(value, Image.Image):
            return image_from_pil(value, name)
        if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
            return image_from_array(np.asarray(value), name)
        kind = type(value).__name__
        raise InputError(name, f"must be a path, bytes, a PIL image or an array, got {kind}")

    def tensor(self, content: Content, name: str) -> tuple[Tensor, bool]:
        """Return the pixels (3, crop, crop)."""
        if isinstance(content, bytes):
            spec = self._preprocessing
            mode, dtype = self._decode, self._dtype
            return decode_preprocess(content, spec, mode=mode, name=name, dtype=dtype), False
        pixels: Any = content
        return preprocess(pixels, self._preprocessing, dtype=self._dtype), False

    def collate(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[int]]:
        """Return (n, 3, crop, crop)."""
        # By numpy, on this thread: torch would share the copy out among threads, and spin until one
        # of them gets a core, all of which are busy decoding.
        batch = torch.from_numpy(np.stack([t.numpy() for t in tensors]))
        return (batch,), [1] * len(tensors)

    def bucket(self, _tensor: Tensor) -> int:
        """Return 0: all images have one size."""
        return 0
