"""The launches of a forward pass on a GPU, recorded once for each size of batch and replayed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[tuple[Tensor, ...]], Tensor]

# Each holds the activations of its largest batch; of texts there is one for each length.
_KEPT = 16
_REMEMBERED = 1024
_WARM_UP = 3  # passes before recording: libraries choose kernels and ask for workspace in them


class CudaGraphs:
    """Records a function for batches of 1, 2, 4, 8, ... inputs, and replays the record.

    Parameters
    ----------
    forward : callable
        Takes a tuple of tensors on a GPU and returns rows (n, d), the same launches whatever the
        numbers in them.

    Notes
    -----
    A batch is filled up to the next power of two, so that the last, short one of a job is nothing
    new. Recordings shorter than a window have lengths of their own, most of which never come again:
    one is recorded when it comes for the second time. What cannot be recorded, because it asks the
    GPU for a number in between, is launched every time. Threads take turns: a record has one set of
    buffers.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._lock = threading.Lock()
        self._records: OrderedDict[Any, tuple[Any, tuple[Tensor, ...], Tensor] | None]
        self._records = OrderedDict()
        self._seen: OrderedDict[Any, None] = OrderedDict()

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the rows of a batch."""
        n = len(inputs[0])
        if n == 0:
            return self._forward(inputs)
        filled = tuple(fill_up(t, bucket_size(n)) for t in inputs)
        with self._lock:
            key = tuple((t.shape, t.dtype) for t in filled)
            if key not in self._records:
                if filled[0].ndim == 2 and filled[0].is_floating_point() and self._is_new(key):
                    return self._forward(filled)[:n]
                self._records[key] = self._record(filled)
                while len(self._records) > _KEPT:
                    self._records.popitem(last=False)
            self._records.move_to_end(key)
            record = self._records[key]
            if record is None:
                return self._forward(filled)[:n]
            graph, buffers, rows = record
            for buffer, t in zip(buffers, filled, strict=True):
                buffer.copy_(t)
            graph.replay()
            return rows[:n].clone()  # the next replay writes there

    def _is_new(self, key: Any) -> bool:
        """Return whether a shape comes for the first time, as far as that is remembered."""
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return True

    def _record(self, inputs: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...], Tensor] | None:
        device = inputs[0].device
        buffers = tuple(t.clone() for t in inputs)
        side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._forward(buffers)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may allocate meanwhile: only this one is held to what can be recorded.
            with (
                torch.cuda.device(device),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                rows = self._forward(buffers)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return None
        return graph, buffers, rows


def bucket_size(n: int) -> int:
    """Return the smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()


def fill_up(t: Tensor, n: int) -> Tensor:
    """Return a batch of `n` inputs that begins with `t`."""
    # Ones rather than zeros for integers: a mask of nothing but zeros has no softmax.
    value = 1 if t.dtype == torch.int64 else 0
    return nn.functional.pad(t, (0, 0) * (t.ndim - 1) + (0, n - len(t)), value=value)
