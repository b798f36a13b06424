"""The definition of `preprocess`: weights, two passes over bytes, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfeat.ops._preprocess_spec import RADIUS, Cut, Preprocessing, cuts

Image = NDArray[np.uint8] | Tensor

FRACTION_BITS = 22  # weights are integers in units of 2^-22, as in Pillow


def taps_of(cut: Cut, interpolation: str) -> tuple[Tensor, Tensor]:
    """Return starts (count,) and W (count, taps), both int64.

    Output first + i of n_out is the sum over t of W[i, t] * source[starts[i] + t], in units of
    2^-22. Every window lies inside the source.
    """
    scale = cut.n_in / cut.n_out
    stretch = max(scale, 1.0)
    support = RADIUS[interpolation] * stretch
    # The device is named: whatever `torch.set_default_device` says, weights are made on the CPU.
    i = torch.arange(cut.first, cut.first + cut.count, dtype=torch.float64, device="cpu")[:, None]
    centre = (i + 0.5) * scale
    begin = (centre - support + 0.5).floor().clamp(min=0)
    end = (centre + support + 0.5).floor().clamp(max=cut.n_in)
    taps = int((end - begin).max())
    starts = begin.clamp(max=cut.n_in - taps)
    x = starts + torch.arange(taps, dtype=torch.float64, device="cpu")  # (count, taps)
    weights = _filter((x - centre + 0.5) * (1.0 / stretch), interpolation)
    weights = weights * ((x >= begin) & (x < end))
    # Pillow adds from left to right; another order can round a weight to the next integer.
    weights = weights / weights.cumsum(dim=1)[:, -1:] * 2.0**FRACTION_BITS
    rounded = (weights + torch.full_like(weights, 0.5).copysign(weights)).trunc()
    return starts[:, 0].long(), rounded.long()


def _filter(x: Tensor, interpolation: str) -> Tensor:
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1  # eq. 4 of [1] with a = -1/2
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _matrix(cut: Cut, interpolation: str, device: torch.device) -> Tensor:
    """Return W (count, n_in) in float64: sums of its products with bytes stay below 2^53."""
    starts, weights = taps_of(cut, interpolation)
    columns = starts[:, None] + torch.arange(weights.shape[1], device="cpu")
    dense = torch.zeros(cut.count, cut.n_in, dtype=torch.float64, device="cpu")
    return dense.scatter_(1, columns, weights.double()).to(device)


def _to_bytes(sums: Tensor) -> Tensor:
    return (sums / 2.0**FRACTION_BITS + 0.5).floor().clamp(0, 255)


def _normalise(pixels: Tensor, spec: Preprocessing, dtype: torch.dtype) -> Tensor:
    # pixels is (3, ...), whole numbers in [0, 255]
    if dtype == torch.uint8:
        return pixels.to(dtype)
    shape = (3,) + (1,) * (pixels.ndim - 1)
    mean = torch.tensor(spec.mean, dtype=torch.float32, device=pixels.device).reshape(shape)
    std = torch.tensor(spec.std, dtype=torch.float32, device=pixels.device).reshape(shape)
    return ((pixels.float() / 255 - mean) / std).to(dtype)


def reference_one(image: Image, spec: Preprocessing, dtype: torch.dtype) -> Tensor:
    """Return one image, (3, crop, crop), on its device."""
    source = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image, order="C"))
    device = source.device
    down, across = cuts(source.shape[0], source.shape[1], spec)
    wide = _matrix(across, spec.interpolation, device)  # (columns, w)
    tall = _matrix(down, spec.interpolation, device)  # (rows, h)
    narrow = _to_bytes(torch.einsum("xj,ijc->ixc", wide, source.double()))  # (h, columns, 3)
    inner = _to_bytes(torch.einsum("yi,ixc->cyx", tall, narrow))  # (3, rows, columns)
    fill = torch.tensor(spec.fill, dtype=torch.float64, device=device)[:, None, None]
    pixels = fill.repeat(1, spec.crop, spec.crop)
    pixels[:, down.at : down.at + down.count, across.at : across.at + across.count] = inner
    return _normalise(pixels.flip(2) if spec.hflip else pixels, spec, dtype)


def reference(
    images: Sequence[Image], spec: Preprocessing, dtype: torch.dtype, out: Tensor
) -> Tensor:
    """Fill `out` (n, 3, crop, crop)."""
    for image, slot in zip(images, out, strict=True):
        slot.copy_(reference_one(image, spec, dtype))
    return out


@lru_cache(maxsize=16)
def table_of(spec: Preprocessing, dtype: torch.dtype) -> Tensor:
    """Return the result for every byte of every channel, (3, 256): pixels have no other values."""
    return _normalise(torch.arange(256, device="cpu").expand(3, 256), spec, dtype).contiguous()
