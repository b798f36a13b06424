"""Rows from anywhere: arrays, tensors, and store views that must not be loaded whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class RowStream(Protocol):
    """What a store view is to an estimator: an array that hands itself out in blocks."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def blocks(self, max_rows: int = ...) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Yield (positions, rows) until every row was handed out once, in storage order."""


def is_stream(X: object) -> bool:
    """Return whether X is read in blocks rather than loaded."""
    return isinstance(X, RowStream)


def row_blocks(X: Any, max_rows: int) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """Yield (positions, rows) over an array (n, d) or a `RowStream`, at most `max_rows` each."""
    if is_stream(X):
        yield from X.blocks(max_rows)
        return
    for start in range(0, len(X), max_rows):
        rows = X[start : start + max_rows]
        yield np.arange(start, start + len(rows)), rows
