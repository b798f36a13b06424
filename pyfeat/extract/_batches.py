"""Batches through the backbone, as large as fits, or one by one when bits must not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AUTO_CPU = 16
AUTO_CUDA = 128


class Batches:
    """Runs a backbone over lists of tensors.

    Parameters
    ----------
    forward : callable
        Takes (n, 3, h, w), returns (n, d).
    device : torch.device
        Where `forward` wants its input.
    size : int or "auto"
        Most images of one call. "auto" begins with 16 on a CPU and 128 on a GPU and halves when
        memory runs out.
    one_by_one : bool
        One image a call, so that no kernel is chosen by the number of images.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        device: torch.device,
        size: int | str,
        one_by_one: bool,
    ) -> None:
        self._forward = forward
        self._device = device
        self._may_shrink = size == "auto"
        self._one_by_one = one_by_one
        automatic = AUTO_CUDA if device.type == "cuda" else AUTO_CPU
        self.size = int(automatic if size == "auto" else size)

    def __call__(self, tensors: Sequence[Tensor]) -> NDArray[np.float32]:
        """Return the rows (n, d) of n tensors (3, h, w).

        Raises
        ------
        torch.OutOfMemoryError
            If memory runs out at the batch size that was asked for, or at one image.
        """
        parts: list[NDArray[np.float32]] = []
        done = 0
        while done < len(tensors):
            step = 1 if self._one_by_one else self.size
            chunk = tensors[done : done + step]
            try:
                parts.append(self._run(chunk))
            except torch.OutOfMemoryError:
                if not self._may_shrink or len(chunk) == 1:
                    raise
                self.size = max(1, len(chunk) // 2)
                continue
            done += len(chunk)
        return np.concatenate(parts)

    def _run(self, chunk: Sequence[Tensor]) -> NDArray[np.float32]:
        batch = torch.stack(list(chunk)).to(self._device, non_blocking=True)
        rows: NDArray[np.float32] = self._forward(batch).float().cpu().numpy()
        return rows
