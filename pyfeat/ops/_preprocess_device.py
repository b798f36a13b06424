"""`preprocess` for pixels on a GPU: weights sent there once per geometry, then two passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from pyfeat.ops._check import as_tensor, stream_of
from pyfeat.ops._preprocess_reference import Image, table_of, taps_of
from pyfeat.ops._preprocess_spec import Cut, Preprocessing, cuts

_CHUNK = 16  # bytes of one read of csrc/cuda/preprocess.cu
# Tables and results are moved, never computed with: any type of their width will do.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class Taps(NamedTuple):
    """One direction on the device: output i is the sum over t of weights[i, t] * x[starts[i] + t].

    Parameters
    ----------
    starts : Tensor of shape (count,), int32
        Counted from `source`.
    weights : Tensor of shape (count, taps), int32
        Units of 2^-22. No sum of their products with bytes, nor any part of it, leaves int32: the
        positive weights of an output sum to less than 1.25.
    source, length : int
        Source positions [source, source + length) are read.
    at : int
        Where output 0 goes.
    """

    starts: Tensor
    weights: Tensor
    source: int
    length: int
    at: int


@lru_cache(maxsize=256)
def taps_on(cut: Cut, interpolation: str, flip_in: int, device: torch.device) -> Taps:
    """Return the taps of a cut on the device; mirrored in a result of `flip_in` pixels if not 0."""
    starts, weights = taps_of(cut, interpolation)
    source, length = int(starts[0]), int(starts[-1] - starts[0]) + weights.shape[1]
    at = cut.at
    if flip_in:
        starts, weights, at = starts.flip(0), weights.flip(0), flip_in - cut.at - cut.count
    weights = weights.to(torch.int32).to(device).contiguous()
    return Taps((starts - source).to(torch.int32).to(device), weights, source, length, at)


@lru_cache(maxsize=32)
def _table_on(spec: Preprocessing, dtype: torch.dtype, device: torch.device) -> Tensor:
    return as_bits(table_of(spec, dtype)).to(device)


def as_bits(tensor: Tensor) -> Tensor:
    """Return the same memory as integers."""
    return tensor.view(_BITS[tensor.element_size()])


class Pass(NamedTuple):
    """What a launcher is told of one image.

    Parameters
    ----------
    image : Tensor of shape (h, w, 3), uint8
        Pixels of a row adjacent.
    down, across : Taps
    table : Tensor of shape (3, 256)
    out : Tensor of shape (3, crop, crop)
        Its background is filled already.
    """

    image: Tensor
    down: Taps
    across: Taps
    table: Tensor
    out: Tensor


def passes(
    images: Sequence[Image], spec: Preprocessing, dtype: torch.dtype, out: Tensor
) -> list[Pass]:
    """Return what is to be done for each image, background of `out` filled."""
    table, slots = _table_on(spec, dtype, out.device), as_bits(out)
    result = []
    for image, slot in zip(images, slots, strict=True):
        source = as_tensor(image, "image")
        if source.stride()[1:] != (3, 1):
            source = source.contiguous()
        down, across = cuts(source.shape[0], source.shape[1], spec)
        if min(down.count, across.count) < spec.crop:
            for plane, values, byte in zip(slot, table, spec.fill, strict=True):
                plane.copy_(values[byte])
        flip_in = spec.crop if spec.hflip else 0
        tall = taps_on(down, spec.interpolation, 0, out.device)
        wide = taps_on(across, spec.interpolation, flip_in, out.device)
        result.append(Pass(source, tall, wide, table, slot))
    return result


def run_triton(
    images: Sequence[Image], spec: Preprocessing, dtype: torch.dtype, out: Tensor
) -> Tensor:
    """Fill `out` (n, 3, crop, crop), two launches an image."""
    from pyfeat.ops._triton.preprocess import launch

    for one in passes(images, spec, dtype, out):
        launch(one)
    return out


def run_cuda(
    images: Sequence[Image], spec: Preprocessing, dtype: torch.dtype, out: Tensor
) -> Tensor:
    """Fill `out` (n, 3, crop, crop), two launches for all images."""
    from pyfeat._cuda import preprocess as launch

    todo = passes(images, spec, dtype, out)
    widths = [one.across.weights.shape[0] for one in todo]
    pitches = [-(-width // _CHUNK) * _CHUNK for width in widths]
    room = [3 * one.down.length * pitch for one, pitch in zip(todo, pitches, strict=True)]
    begins = [0, *accumulate(room)]
    # Freed in the order of the stream: the launches come first.
    narrow = torch.empty(begins[-1], dtype=torch.uint8, device=out.device)
    rows = [
        _job(one, narrow.data_ptr() + begin, pitch)
        for one, begin, pitch in zip(todo, begins, pitches, strict=False)
    ]
    with stream_of(out) as stream:
        jobs = torch.tensor(rows, dtype=torch.int64).to(out.device)
        launch(
            jobs=jobs.data_ptr(),
            n=len(todo),
            rows=max(one.down.length for one in todo),
            columns=max(widths),
            lines=max(one.down.weights.shape[0] for one in todo),
            side=spec.crop,
            table=todo[0].table.data_ptr(),
            item_bytes=out.element_size(),
            stream=stream,
        )
    return out


def _job(one: Pass, narrow: int, pitch: int) -> list[int]:
    # The members of PreprocessJob in csrc/cuda/preprocess.h.
    down, across = one.down, one.across
    return [
        one.image[down.source :, across.source :].data_ptr(),
        one.image.stride(0),
        down.length,
        across.starts.data_ptr(),
        across.weights.data_ptr(),
        across.weights.shape[1],
        across.weights.shape[0],
        down.starts.data_ptr(),
        down.weights.data_ptr(),
        down.weights.shape[1],
        down.weights.shape[0],
        narrow,
        pitch,
        one.out[:, down.at :, across.at :].data_ptr(),
    ]
