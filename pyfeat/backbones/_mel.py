"""Mel spectrograms as two products, which every engine has; no FFT, no complex numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Slaney's scale: linear up to 1 kHz, above it a factor 6.4 in 27 steps.
_LINEAR_HZ, _BREAK_HZ = 200 / 3, 1000.0
_LOG_STEP = math.log(6.4) / 27
_EMPHASIS = 0.97


class Bands(nn.Module):
    """Samples to the power in bands of frequencies, frame by frame.

    Parameters
    ----------
    waves : Tensor of shape (2 k, n), float64
        What a frame of n samples is multiplied with: real parts, then imaginary parts.
    filters : Tensor of shape (n_bands, k), float64
        What share of the power at k frequencies belongs to each band.
    hop : int
        Samples between the starts of two frames.

    Notes
    -----
    The product is laid out as a convolution over blocks of gcd(n, hop) samples, so that frames are
    not copied although they overlap. All sums run in the dtype of the input.
    """

    def __init__(self, waves: Tensor, filters: Tensor, hop: int) -> None:
        super().__init__()
        self.block = math.gcd(waves.shape[1], hop)
        self.stride = hop // self.block
        blocks = waves.reshape(len(waves), -1, self.block).transpose(1, 2)
        # Not part of the weights: they follow from a few numbers.
        self.register_buffer("waves", blocks.float().contiguous(), persistent=False)
        self.register_buffer("filters", filters.float(), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Return (n, frames, bands) of samples (n, l); what fills no frame at the end is left."""
        whole = samples.shape[1] - samples.shape[1] % self.block
        blocks = samples[:, :whole].reshape(samples.shape[0], -1, self.block).transpose(1, 2)
        waves = nn.functional.conv1d(blocks, self.get_buffer("waves"), stride=self.stride)
        real, imaginary = waves.chunk(2, dim=1)  # each (n, k, frames)
        power = real * real + imaginary * imaginary
        return power.transpose(1, 2) @ self.get_buffer("filters").T


class MelSpectrogram(Bands):
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
    n_fft x (n_fft + 2).
    """

    def __init__(self, sample_rate: int, n_fft: int, hop: int, n_mels: int) -> None:
        super().__init__(fourier_matrix(n_fft), mel_filters(sample_rate, n_fft, n_mels), hop)


class KaldiSpectrogram(Bands):
    """Samples to the power in mel bands as Kaldi defines them.

    Parameters
    ----------
    sample_rate : int
        Hz.
    frame : int
        Samples of a frame.
    hop : int
        Samples between the starts of two frames.
    n_mels : int

    Notes
    -----
    Of each frame the mean is taken off, x[i] - 0.97 x[i - 1] follows (x[0] before the first), a
    symmetric Hann window, and a Fourier transform of the next power of two. All of it is linear,
    and one matrix here. The bands are triangles on 1127 ln(1 + f / 700) from 20 Hz on.
    """

    def __init__(self, sample_rate: int, frame: int, hop: int, n_mels: int) -> None:
        n_fft = 1 << (frame - 1).bit_length()
        filters = kaldi_filters(sample_rate, n_fft, n_mels)
        super().__init__(kaldi_matrix(frame, n_fft), filters, hop)


def fourier_matrix(n_fft: int) -> Tensor:
    """Return (n_fft + 2, n_fft), float64: cosines, then sines, each times a Hann window."""
    return _waves(n_fft) * torch.hann_window(n_fft, periodic=True, dtype=torch.float64)


def kaldi_matrix(frame: int, n_fft: int) -> Tensor:
    """Return (n_fft + 2, frame), float64: what `KaldiSpectrogram` makes of a frame."""
    centred = torch.eye(frame, dtype=torch.float64) - 1 / frame
    emphasised = torch.eye(frame, dtype=torch.float64)
    emphasised -= _EMPHASIS * torch.diag(torch.ones(frame - 1, dtype=torch.float64), -1)
    emphasised[0, 0] = 1 - _EMPHASIS
    window = torch.hann_window(frame, periodic=False, dtype=torch.float64)
    return _waves(n_fft)[:, :frame] * window @ emphasised @ centred


def kaldi_filters(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Return (n_mels, n_fft / 2 + 1), float64: triangles of height 1 on Kaldi's mel scale."""
    hz = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    low, high = (_kaldi_mel(torch.tensor(f, dtype=torch.float64)) for f in (20, sample_rate / 2))
    edges = low + (high - low) * torch.arange(n_mels + 2, dtype=torch.float64) / (n_mels + 1)
    return _triangles(edges, _kaldi_mel(hz))


def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Return (n_mels, n_fft / 2 + 1), float64: triangles of area 1 on Slaney's scale."""
    top = _mel_of(sample_rate / 2)
    edges = torch.tensor(
        [_hz_of(top * i / (n_mels + 1)) for i in range(n_mels + 2)], dtype=torch.float64
    )
    hz = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    return _triangles(edges, hz) * 2 / (edges[2:, None] - edges[:-2, None])


def _triangles(edges: Tensor, at: Tensor) -> Tensor:
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    up, down = (at - left) / (middle - left), (right - at) / (right - middle)
    return torch.minimum(up, down).clamp(min=0)


def _waves(n_fft: int) -> Tensor:
    """Return (n_fft + 2, n_fft), float64: cosines, then sines."""
    k = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None]
    at = torch.arange(n_fft, dtype=torch.float64)
    angle = 2 * math.pi / n_fft * torch.remainder(k * at, n_fft)
    return torch.cat([angle.cos(), angle.sin()])


def _kaldi_mel(hz: Tensor) -> Tensor:
    return 1127 * torch.log1p(hz / 700)


def _mel_of(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _LINEAR_HZ
    return _BREAK_HZ / _LINEAR_HZ + math.log(hz / _BREAK_HZ) / _LOG_STEP


def _hz_of(mel: float) -> float:
    straight = mel * _LINEAR_HZ
    if straight < _BREAK_HZ:
        return straight
    return _BREAK_HZ * math.exp(_LOG_STEP * (mel - _BREAK_HZ / _LINEAR_HZ))
