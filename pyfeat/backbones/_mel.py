"""Mel spectrograms as two products, which every engine has; no FFT, no complex numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Slaney's scale: linear up to 1 kHz, above it a factor 6.4 in 27 steps.
_LINEAR_HZ, _BREAK_HZ = 200 / 3, 1000.0
_LOG_STEP = math.log(6.4) / 27


class MelSpectrogram(nn.Module):
    """Samples to the power in mel bands, frame by frame.

    Parameters
    ----------
    sample_rate : int
        Hz.
    n_fft : int
        Samples of a frame.
    hop : int
        Samples between the starts of two frames.
    n_mels : int

    Notes
    -----
    Equals `librosa.feature.melspectrogram(..., center=False)`: periodic Hann window, power,
    Slaney's scale and areas. The window and the Fourier transform of a frame are one matrix of
    n_fft x (n_fft + 2). It is laid out as a convolution over blocks of gcd(n_fft, hop) samples, so
    that frames are not copied although they overlap. All sums run in the dtype of the input.
    """

    def __init__(self, sample_rate: int, n_fft: int, hop: int, n_mels: int) -> None:
        super().__init__()
        self.block = math.gcd(n_fft, hop)
        self.stride = hop // self.block
        waves = fourier_matrix(n_fft).reshape(n_fft + 2, -1, self.block).transpose(1, 2)
        # Not part of the weights: they follow from the numbers above.
        self.register_buffer("waves", waves.float().contiguous(), persistent=False)
        filters = mel_filters(sample_rate, n_fft, n_mels)
        self.register_buffer("filters", filters.float(), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Return (n, frames, n_mels) of samples (n, l); what fills no frame at the end is left."""
        whole = samples.shape[1] - samples.shape[1] % self.block
        blocks = samples[:, :whole].reshape(samples.shape[0], -1, self.block).transpose(1, 2)
        waves = nn.functional.conv1d(blocks, self.get_buffer("waves"), stride=self.stride)
        real, imaginary = waves.chunk(2, dim=1)  # each (n, n_fft / 2 + 1, frames)
        power = real * real + imaginary * imaginary
        return power.transpose(1, 2) @ self.get_buffer("filters").T


def fourier_matrix(n_fft: int) -> Tensor:
    """Return (n_fft + 2, n_fft), float64: cosines, then sines, each times a Hann window."""
    k = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None]
    at = torch.arange(n_fft, dtype=torch.float64)
    angle = 2 * math.pi / n_fft * torch.remainder(k * at, n_fft)
    window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
    return torch.cat([angle.cos(), angle.sin()]) * window


def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Return (n_mels, n_fft / 2 + 1), float64: triangles of area 1 on Slaney's scale."""
    top = _mel_of(sample_rate / 2)
    edges = torch.tensor(
        [_hz_of(top * i / (n_mels + 1)) for i in range(n_mels + 2)], dtype=torch.float64
    )
    hz = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    up, down = (hz - left) / (middle - left), (right - hz) / (right - middle)
    return torch.minimum(up, down).clamp(min=0) * 2 / (right - left)


def _mel_of(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _LINEAR_HZ
    return _BREAK_HZ / _LINEAR_HZ + math.log(hz / _BREAK_HZ) / _LOG_STEP


def _hz_of(mel: float) -> float:
    straight = mel * _LINEAR_HZ
    if straight < _BREAK_HZ:
        return straight
    return _BREAK_HZ * math.exp(_LOG_STEP * (mel - _BREAK_HZ / _LINEAR_HZ))
