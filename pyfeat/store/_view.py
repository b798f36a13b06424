"""Rows of a store as an array that is read only where it is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyfeat._identity import Space

DEFAULT_BLOCK = 8192
_ALL = slice(None)


class View:
    """Rows of given keys, in the order of the keys; array-like, read from disk on access.

    Made by `FeatureStore.view`. Rows that were there when the view was made stay readable, also
    after the store was closed.

    Attributes
    ----------
    shape : tuple of (n, d)
    dtype : numpy dtype
        float16 where the rows are stored so, else float32.
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
        storage_order: Callable[[], NDArray[np.int64]],
        read: Callable[[NDArray[np.int64]], NDArray[Any]],
    ) -> None:
        self.keys = keys
        self.space = space
        self.shape = (len(keys), space.dim)
        self.dtype = space.numpy_dtype
        self._order_of_storage = storage_order
        self._read = read

    @cached_property
    def _storage_order(self) -> NDArray[np.int64]:
        return self._order_of_storage()

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"View(shape={self.shape}, dtype={self.dtype}, space={self.space.fingerprint[:12]})"

    def __getitem__(self, index: Any) -> NDArray[Any]:
        rows, columns = index if isinstance(index, tuple) and len(index) == 2 else (index, _ALL)
        if not isinstance(columns, (int, np.integer, slice)) or isinstance(columns, bool):
            raise IndexError(f"columns must be an integer or a slice, got {columns!r}")
        if isinstance(rows, (int, np.integer)) and not isinstance(rows, bool):
            position = range(len(self))[rows]  # IndexError as a list raises it
            found: NDArray[Any] = self._read(np.array([position]))[0]
            return found[columns]
        return self._read(self._positions(rows))[:, columns]

    def _positions(self, rows: Any) -> NDArray[np.int64]:
        """Return the positions that a slice, or a list or array of integers or bools, means."""
        if isinstance(rows, slice):
            return np.arange(len(self))[rows]
        wanted = np.asarray(rows)
        if wanted.size == 0 and wanted.ndim == 1:
            wanted = wanted.astype(np.int64)
        if isinstance(rows, tuple) or wanted.ndim != 1 or wanted.dtype.kind not in "iub":
            raise IndexError(
                f"rows must be an integer, a slice, or a list of integers or bools, got {rows!r}"
            )
        positions: NDArray[np.int64] = np.arange(len(self))[wanted]
        return positions

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
        picked = self._positions(positions)
        read = self._read

        def storage_order() -> NDArray[np.int64]:
            rank = np.empty(len(self), np.int64)
            rank[self._storage_order] = np.arange(len(self))
            return np.argsort(rank[picked], kind="stable")

        return View(
            self.keys[picked],
            self.space,
            storage_order,
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
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        for start in range(0, len(self), max_rows):
            positions = self._storage_order[start : start + max_rows]
            yield positions, self._read(positions)
