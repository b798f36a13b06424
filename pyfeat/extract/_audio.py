"""Recordings: files and arrays of samples become windows of one length."""

from __future__ import annotations

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
from pyfeat.extract._audio_file import read_samples, resample
from pyfeat.extract._decode import read_file

VOLUME = -30.0  # dBFS
_SAMPLES = {"int16": 1 / 32768, "float32": 1.0, "float64": 1.0}


class AudioReader:
    """Audio files as paths or bytes, and arrays of samples.

    Parameters
    ----------
    preprocessing : AudioPreprocessing

    Notes
    -----
    Files are wav, flac, ogg or mp3; their channels are averaged, and they are resampled by soxr in
    its quality "HQ". An array is one row of int16, or of float in [-1, 1], at the rate of the
    model; (array, rate) is an array of another rate.
    """

    def __init__(self, preprocessing: AudioPreprocessing) -> None:
        self._spec = preprocessing

    def content(self, value: Any, name: str) -> bytes | NDArray[Any]:
        """Return the bytes of a file, or samples at the rate of the model."""
        if isinstance(value, (str, os.PathLike)):
            return read_file(Path(value))
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if isinstance(value, tuple) and len(value) == 2:
            samples, rate = _samples(value[0], name), value[1]
            if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)):
                raise InputError(name, f"(array, rate) must have a rate in Hz, got {rate!r}")
            if rate != self._spec.sample_rate:
                samples = resample([_scaled(samples)], float(rate), self._spec.sample_rate, name)
            return samples
        return _samples(value, name)

    def tensor(self, content: Any, name: str) -> tuple[Tensor, bool]:
        """Return the windows (k, samples), and whether some were left out.

        Where windows overlap they share memory.
        """
        spec = self._spec
        if isinstance(content, bytes):
            samples = read_samples(content, spec.sample_rate, name)
        else:
            samples = _scaled(content)
        if len(samples) == 0:
            raise InputError(name, "it has no samples")
        with np.errstate(over="ignore", invalid="ignore"):  # named below
            samples = normalized(samples, spec.normalize)
        if not np.isfinite(samples).all():
            raise InputError(name, "its samples are not finite")
        found = windows(samples, spec)
        return (found[:1], len(found) > 1) if spec.windows == "first" else (found, False)

    def collate(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[int]]:
        """Return all windows below each other."""
        joined = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
        return (joined,), [len(t) for t in tensors]

    def bucket(self, tensor: Tensor) -> int:
        """Return the length of a window: that of the recording where it is shorter than one."""
        return int(tensor.shape[1])


def _samples(value: Any, name: str) -> NDArray[Any]:
    if not (isinstance(value, np.ndarray) or hasattr(value, "__array__")):
        rule = "must be a path, bytes, an array of samples or (array, rate)"
        raise InputError(name, f"{rule}, got {type(value).__name__}")
    samples: NDArray[Any] = np.asarray(value)
    if samples.ndim != 1 or samples.dtype.name not in _SAMPLES:
        got = f"{samples.dtype} of shape {samples.shape}"
        raise InputError(name, f"array must be one row of float or int16, got {got}")
    return samples


def _scaled(samples: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # becomes infinite, which `tensor` names
        return samples.astype(np.float32) * np.float32(_SAMPLES[samples.dtype.name])


def normalized(samples: NDArray[np.float32], how: str) -> NDArray[np.float32]:
    """Return samples of mean 0 and variance 1 ("unit"), at -30 dBFS or louder, or as they are.

    Sums run in float64.
    """
    if how == "unit":
        mean, variance = samples.mean(dtype=np.float64), samples.var(dtype=np.float64)
        # 1e-7 as in the feature extractors of transformers.
        unit: NDArray[np.float32] = (samples - np.float32(mean)) / np.float32(
            np.sqrt(variance + 1e-7)
        )
        return unit
    if how == "volume":
        power = float(np.einsum("i,i->", samples, samples, dtype=np.float64)) / len(samples)
        gain = 10 ** (VOLUME / 20) / max(power**0.5, 1e-12)
        return samples * np.float32(gain) if gain > 1 else samples
    return samples


def windows(samples: NDArray[np.float32], spec: AudioPreprocessing) -> Tensor:
    """Return windows (k, samples), at least one (see `AudioPreprocessing`)."""
    rate = spec.sample_rate
    lead, least = round(spec.lead * rate), round(spec.least * rate)
    shortest, length, hop = (round(s * rate) for s in (spec.shortest, spec.window, spec.hop))
    if least:
        whole = max((lead + len(samples) - least) // hop, 0) * hop + length
        return _filled(samples, lead, whole).unfold(0, length, hop)
    led = _filled(samples, lead, max(lead + len(samples), shortest))
    if len(led) <= length:
        return led[None]
    starting = led.unfold(0, length, hop)
    over = (len(led) - length) % hop
    return torch.cat([starting, led[None, -length:]]) if over else starting


def _filled(samples: NDArray[np.float32], lead: int, length: int) -> Tensor:
    """Return silence, samples, silence: `length` in all, whatever lies beyond cut off."""
    filled = torch.zeros(length)
    kept = torch.from_numpy(np.ascontiguousarray(samples[: length - lead]))
    filled[lead : lead + len(kept)] = kept
    return filled
