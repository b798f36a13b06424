"""A head trained on standardised rows, written down for plain rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import Space
from pyfeat.heads import LogisticHead
from pyfeat.store import View


class Standardized:
    """Rows of a view with mean 0 and deviation 1 in every column, made as they are read.

    Parameters
    ----------
    view : View of shape (n, d)
    mean, scale : ndarray of shape (d,)
    """

    ndim = 2

    def __init__(self, view: View, mean: NDArray[Any], scale: NDArray[Any]) -> None:
        self.shape: tuple[int, int] = view.shape
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.space: Space = view.space
        self._view = view
        self._mean = mean.astype(np.float32)
        self._inverse = (1 / scale).astype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(
        self, max_rows: int = 8192
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield (positions, standardised rows) in storage order."""
        for positions, rows in self._view.blocks(max_rows):
            yield positions, (rows - self._mean) * self._inverse


def mean_and_scale(view: View) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and deviation of the columns of a view, in float64; constant columns get 1."""
    n = len(view)
    mean = sum(rows.sum(axis=0, dtype=np.float64) for _, rows in view.blocks()) / n
    square = sum(((rows - mean) ** 2).sum(axis=0) for _, rows in view.blocks()) / n
    scale = np.sqrt(square)
    # Rounding leaves a column of equal numbers with a deviation of about eps times its mean.
    constant = scale <= 10 * np.finfo(np.float32).eps * np.abs(mean)
    return mean, np.where(constant, 1.0, scale)


def fit_standardized(view: View, y: NDArray[Any], *, C: float) -> LogisticHead:
    """Train a head whose penalty does not depend on the scale of the columns.

    Parameters
    ----------
    view : View of shape (n, d)
    y : ndarray of shape (n,)
    C : float
        Inverse strength of the penalty on standardised columns.

    Returns
    -------
    head : LogisticHead
        Takes plain rows: w'(x - m)/s + b = (w/s)'x + (b - (w/s)'m).
    """
    mean, scale = mean_and_scale(view)
    head = LogisticHead(C=C).fit(Standardized(view, mean, scale), y)
    coef = head.coef_ / scale
    head.intercept_ = (head.intercept_ - coef @ mean).astype(np.float32)
    head.coef_ = coef.astype(np.float32)
    return head
