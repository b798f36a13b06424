"""Videos: files and arrays become a few frames, each of which goes through an image backbone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfeat.backbones import VideoPreprocessing
from pyfeat.errors import InputError
from pyfeat.extract._decode import read_file
from pyfeat.extract._video_frames import centres, decode_frames
from pyfeat.ops import preprocess


class VideoReader:
    """Paths and encoded bytes (mp4, mkv, webm, avi, mov, ...), and arrays (t, h, w, 3) of uint8.

    Parameters
    ----------
    preprocessing : VideoPreprocessing
    dtype : torch.dtype
        Of the frames: float32, or uint8 where the backbone takes bytes.

    Notes
    -----
    Of n frames those at floor((i + 1/2) n / frames) are taken, the middle ones of equal segments;
    a video of fewer frames gives each of them once. A file is read whole, for its key; only what
    lies between a key frame and a wanted frame is decoded. Rotation noted in the file is applied,
    in quarter turns; pixels that are not square stay as they are. YUV becomes RGB by FFmpeg's
    swscale, whose rounding may differ by a level or two between its versions.
    """

    def __init__(
        self, preprocessing: VideoPreprocessing, dtype: torch.dtype = torch.float32
    ) -> None:
        self._spec = preprocessing
        self._dtype = dtype

    def content(self, value: Any, name: str) -> bytes | NDArray[Any]:
        """Return the bytes of a file, or the frames."""
        if isinstance(value, (str, os.PathLike)):
            return read_file(Path(value))
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
            frames = np.asarray(value)
            fits = frames.ndim == 4 and frames.shape[3] == 3 and 0 not in frames.shape
            if not fits or frames.dtype != np.uint8:
                got = f"{frames.dtype} of shape {frames.shape}"
                raise InputError(name, f"array must be uint8 of shape (t, h, w, 3), got {got}")
            return frames
        kind = type(value).__name__
        raise InputError(name, f"must be a path, bytes or an array of frames, got {kind}")

    def tensor(self, content: Any, name: str) -> tuple[Tensor, bool]:
        """Return the frames (k, 3, crop, crop), k at most `frames`."""
        count = self._spec.frames
        if isinstance(content, bytes):
            frames = decode_frames(content, count, name)
        else:
            frames = [content[i] for i in centres(len(content), count)]
        spec, dtype = self._spec.image, self._dtype
        return torch.stack([preprocess(frame, spec, dtype=dtype) for frame in frames]), False

    def collate(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[int]]:
        """Return all frames below each other."""
        return (torch.cat(list(tensors)),), [len(t) for t in tensors]

    def bucket(self, _tensor: Tensor) -> int:
        """Return 0: all frames have one size."""
        return 0
