"""Which of the inputs a job takes: a share of them, or those that failed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import overload

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pyfeat._identity import Space
from pyfeat.extract import Input
from pyfeat.jobs._options import Options
from pyfeat.store import quarantined_names


class Selected(Sequence[Input]):
    """Some of the inputs, in their order.

    Parameters
    ----------
    inputs : sequence of Input
    positions : ndarray of shape (n,), int64
    """

    def __init__(self, inputs: Sequence[Input], positions: NDArray[np.int64]) -> None:
        self._inputs = inputs
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Input: ...

    @overload
    def __getitem__(self, index: slice) -> Selected: ...

    def __getitem__(self, index: int | slice) -> Input | Selected:
        if isinstance(index, slice):
            return Selected(self._inputs, self._positions[index])
        return self._inputs[int(self._positions[index])]


def share_of(name: str, n: int) -> int:
    """Return which of n shares an input is in, from 1 to n: by BLAKE3 of its name.

    Examples
    --------
    >>> sorted({share_of(f"{i}.jpg", 3) for i in range(30)})
    [1, 2, 3]
    """
    digest = blake3(name.encode("utf-8", "surrogateescape")).digest(length=8)
    return int.from_bytes(digest, "little") % n + 1


def chosen_inputs(
    inputs: Sequence[Input], options: Options, store: str | os.PathLike[str], space: Space
) -> Sequence[Input]:
    """Return the inputs that are in the shard, and in quarantine where only those are tried."""
    if options.shard is None and not options.retry_failed:
        return inputs
    failed = quarantined_names(store, space) if options.retry_failed else None
    positions = [
        position
        for position, item in enumerate(inputs)
        if (options.shard is None or share_of(item.name, options.shard[1]) == options.shard[0])
        and (failed is None or item.name in failed)
    ]
    return Selected(inputs, np.array(positions, np.int64))
