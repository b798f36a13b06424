"""A store view in small: rows in a file, handed out in blocks, in storage order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import Space


class RowsOnDisk:
    """Rows (n, d) in a read-only memory map, stored in an order of their own.

    Slicing is left out on purpose: an estimator that loads the rows fails.
    """

    def __init__(self, path: Path, rows: NDArray[Any], space: Space | None = None) -> None:
        self.shape = rows.shape
        self.dtype = rows.dtype
        self.space = space or Space(rows.shape[1], parts={"weights": "w"})
        self.positions = np.random.default_rng(1).permutation(len(rows))
        np.save(path, rows[self.positions])
        self._stored = np.load(path, mmap_mode="r")

    def blocks(self, max_rows: int = 1024) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        size = min(max_rows, 97)
        for start in range(0, len(self._stored), size):
            yield self.positions[start : start + size], self._stored[start : start + size]
