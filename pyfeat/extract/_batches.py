"""Batches through the backbone, as large as fits, or one by one when bits must not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfeat.backbones import Backbone
from pyfeat.extract._readers import Reader

AUTO_CPU = 16
AUTO_CUDA = 128
# Windows of long recordings in one forward pass.
_WINDOWS = 64


Forward = Callable[[Sequence[Tensor]], NDArray[np.float32]]


class Batches:
    """Runs a backbone over lists of tensors.

    Parameters
    ----------
    forward : callable
        Takes the tensors of n inputs, returns their rows (n, d).
    size : int or "auto"
        Most inputs of one call. "auto" begins with `automatic` and halves when memory runs out.
    automatic : int
        See `automatic_size`.
    one_by_one : bool
        One input a call, so that no kernel is chosen by the number of inputs.
    """

    def __init__(
        self,
        forward: Forward,
        size: int | str,
        *,
        automatic: int = AUTO_CPU,
        one_by_one: bool = False,
    ) -> None:
        self._forward = forward
        self._may_shrink = size == "auto"
        self._one_by_one = one_by_one
        self.size = int(automatic if size == "auto" else size)

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return rows of the tensors of n inputs of one bucket, and which inputs they are of.

        Returns
        -------
        rows : ndarray of shape (m, d)
        fits : ndarray of shape (n,), bool
            False where memory ran out though the input was alone; m are True.

        Raises
        ------
        MemoryError, torch.OutOfMemoryError
            If memory runs out at the batch size that was asked for.
        """
        parts: list[NDArray[np.float32]] = [np.empty((0, 0), np.float32)]
        fits = np.ones(len(tensors), bool)
        size, done = self.size, 0
        while done < len(tensors):
            chunk = tensors[done : done + (1 if self._one_by_one else size)]
            try:
                parts.append(self._forward(chunk))
            except (MemoryError, torch.OutOfMemoryError):
                if len(chunk) == 1:
                    fits[done] = False
                    size = self.size  # the input was too large, not the batch
                elif self._may_shrink:
                    size = len(chunk) // 2
                    continue
                else:
                    raise
            done += len(chunk)
        if fits.all():
            self.size = size
        return np.concatenate(parts[1:] or parts), fits


def automatic_size(backbone: Backbone) -> int:
    """Return how many inputs to hand over at a time: 128 images to a GPU.

    On a CPU a backbone computes in chunks of its own, and more of them at a time than keep the
    cores busy gain nothing: the smallest number from 16 on that does. The frames of a video count.
    """
    images = AUTO_CUDA
    if backbone.device.type != "cuda":
        images = -(-AUTO_CPU // backbone.full_batch) * backbone.full_batch
    return max(1, images // getattr(backbone.preprocessing, "frames", 1))


def forward_of(backbone: Backbone, reader: Reader) -> Forward:
    """Return what makes rows of the tensors of inputs.

    The rows of the windows of one recording, or of the frames of one video, are averaged; those of
    frames may be pooled by their maximum instead.
    """
    pool: Any = np.max if getattr(backbone.preprocessing, "pooling", "avg") == "max" else np.mean

    def forward(tensors: Sequence[Tensor]) -> NDArray[np.float32]:
        batch, counts = reader.collate(tensors)
        step = max(len(counts), _WINDOWS)
        starts = range(0, max(len(batch[0]), 1), step)
        passes = [backbone(*(t[i : i + step] for t in batch)).cpu().numpy() for i in starts]
        rows: NDArray[np.float32] = np.concatenate(passes)
        if len(rows) > len(counts):
            ends = np.cumsum([0, *counts])
            rows = np.stack([pool(rows[a:b], axis=0) for a, b in pairwise(ends)])
        if backbone.l2:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows

    return forward
