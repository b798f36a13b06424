"""Rows of a store as an array that is read only where it is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfeat._identity import Space

DEFAULT_BLOCK = 8192


class View:
    """Rows of given keys, in the order of the keys; array-like, read from disk on access.

    Made by `FeatureStore.view`. Rows that were there when the view was made stay readable, also
    after the store was closed.

    Attributes
    ----------
    shape : tuple of (n, d)
    dtype : numpy dtype
    space : Space
        What makes these rows comparable with others.
    keys : ndarray of shape (n, 16), uint8

    Notes
    -----
    Slices and index arrays give ordinary arrays. `blocks` goes through all rows in the order they
    lie on disk, which reads a large store at the speed of the disk instead of its seek time.
    """

    ndim = 2

    def __init__(
        self,
        keys: NDArray[np.uint8],
        space: Space,
        storage_order: NDArray[np.int64],
        read: Callable[[NDArray[np.int64]], NDArray[Any]],
    ) -> None:
        self.keys = keys
        self.space = space
        self.shape = (len(keys), space.dim)
        self.dtype = np.dtype(space.dtype)
        self._storage_order = storage_order
        self._read = read

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"View(shape={self.shape}, dtype={self.dtype}, space={self.space.fingerprint[:12]})"

    def __getitem__(self, index: Any) -> NDArray[Any]:
        rows, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if isinstance(rows, (int, np.integer)):
            position = range(len(self))[rows]  # IndexError as a list raises it
            found: NDArray[Any] = self._read(np.array([position]))[0]
            return found[rest] if rest else found
        picked = np.arange(len(self))[rows]
        found = self._read(picked)
        return found[(slice(None), *rest)] if rest else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("copy must not be False: a view has no array in memory to share")
        rows = self._read(np.arange(len(self)))
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def take(self, positions: ArrayLike) -> View:
        """Return a view of some of these rows, reading nothing.

        Parameters
        ----------
        positions : array-like of int or bool
            As in numpy's indexing.

        Returns
        -------
        view : View

        Raises
        ------
        IndexError
            If a position lies outside.
        """
        picked = np.arange(len(self))[np.asarray(positions)]
        rank = np.empty(len(self), np.int64)
        rank[self._storage_order] = np.arange(len(self))
        read = self._read
        return View(
            self.keys[picked],
            self.space,
            np.argsort(rank[picked], kind="stable"),
            lambda positions: read(picked[positions]),
        )

    def blocks(
        self, max_rows: int = DEFAULT_BLOCK
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Go through all rows once, in the order they lie on disk.

        Parameters
        ----------
        max_rows : int, default=8192
            Most rows of one block.

        Yields
        ------
        positions : ndarray of shape (b,), int64
            Positions in this view of the rows that follow.
        rows : ndarray of shape (b, d)
        """
        for start in range(0, len(self), max_rows):
            positions = self._storage_order[start : start + max_rows]
            yield positions, self._read(positions)
