"""Recordings: files and arrays of samples become windows of one length."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfeat.backbones import AudioPreprocessing
from pyfeat.errors import InputError
from pyfeat.extract._decode import read_file

VOLUME = -30.0  # dBFS


class AudioReader:
    """Paths and encoded bytes (wav, flac, ogg, mp3), and arrays of samples at the model's rate."""

    def __init__(self, preprocessing: AudioPreprocessing) -> None:
        self._spec = preprocessing

    def content(self, value: Any, name: str) -> bytes | NDArray[Any]:
        """Return the bytes of a file, or the samples."""
        if isinstance(value, (str, os.PathLike)):
            return read_file(Path(value))
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
            samples = np.asarray(value)
            if samples.ndim != 1 or samples.dtype not in (np.float32, np.float64, np.int16):
                got = f"{samples.dtype} of shape {samples.shape}"
                raise InputError(name, f"array must be one row of float or int16, got {got}")
            return samples
        kind = type(value).__name__
        raise InputError(name, f"must be a path, bytes or an array of samples, got {kind}")

    def tensor(self, content: Any, name: str) -> tuple[Tensor, bool]:
        """Return the windows (k, samples)."""
        spec = self._spec
        samples = decode_audio(content, spec.sample_rate, name)
        if len(samples) == 0 or not np.isfinite(samples).all():
            raise InputError(name, "it has no samples" if len(samples) == 0 else "it is not finite")
        return torch.from_numpy(windows(normalized(samples, spec.normalize), spec)), False

    def collate(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[int]]:
        """Return all windows below each other."""
        return (torch.cat(list(tensors)),), [len(t) for t in tensors]

    def bucket(self, tensor: Tensor) -> int:
        """Return the length of a window: that of the recording where it is shorter than one."""
        return int(tensor.shape[1])


def decode_audio(content: Any, sample_rate: int, name: str) -> NDArray[np.float32]:
    """Return mono samples in [-1, 1] at a rate.

    Raises
    ------
    ImportError
        If soundfile or soxr is missing.
    InputError
        If a file cannot be decoded.
    """
    if not isinstance(content, bytes):
        scale = 1 / 32768 if content.dtype == np.int16 else 1.0
        return np.asarray(content * np.float32(scale), np.float32)
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise ImportError(f'audio files need {error.name}: pip install "pyfeat[audio]"') from error
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(name, f"it cannot be decoded: {error.error_string}") from error
    mono = samples.mean(axis=1)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    return np.ascontiguousarray(mono, np.float32)


def normalized(samples: NDArray[np.float32], how: str) -> NDArray[np.float32]:
    """Return samples of mean 0 and variance 1 ("unit"), at -30 dBFS or louder, or as they are."""
    if how == "unit":
        unit: NDArray[np.float32] = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return unit
    if how == "volume":
        power = float(np.mean(samples.astype(np.float64) ** 2))
        gain = 10 ** (VOLUME / 20) / max(power**0.5, 1e-12)
        return samples * np.float32(gain) if gain > 1 else samples
    return samples


def windows(samples: NDArray[np.float32], spec: AudioPreprocessing) -> NDArray[np.float32]:
    """Return windows (k, samples): one where the recording fits into one."""
    shortest = round(spec.shortest * spec.sample_rate)
    length, hop = round(spec.window * spec.sample_rate), round(spec.hop * spec.sample_rate)
    if len(samples) < shortest:
        samples = np.pad(samples, (0, shortest - len(samples)))
    if len(samples) <= length:
        return samples[None]
    starts = [*range(0, len(samples) - length, hop), len(samples) - length]
    return np.stack([samples[s : s + length] for s in starts])
