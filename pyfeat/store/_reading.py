"""What is read of a store: its keys, and rows by key."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pyfeat._config import num_threads
from pyfeat._identity import Space
from pyfeat.errors import StoreWarning
from pyfeat.store import _sources as at
from pyfeat.store._item_lists import Where, keys_where
from pyfeat.store._sources import Located, Sources, as_keys, locate
from pyfeat.store._view import View

Keys = NDArray[np.uint8] | Sequence[bytes]


class Reading(ABC):
    """The reading half of `FeatureStore`, over the files that `_sources` names."""

    path: Path
    space: Space

    @abstractmethod
    def _sources(self) -> Sources:
        """Return where rows lie now, newest first. The lock is held only for that long."""

    def __len__(self) -> int:
        sources = self._sources()
        return len(self.keys()) if sources.tails else sources.lookups.count_keys(num_threads())

    def keys(self) -> NDArray[np.uint8]:
        """Return every key once, in the order the rows were written (oldest file first).

        Returns
        -------
        keys : ndarray of shape (n, 16), uint8
        """
        sources = self._sources()
        sealed = sources.lookups.keys(num_threads())
        if not sources.tails:
            return sealed
        fresh = np.concatenate([tail.keys() for tail in reversed(sources.tails)])
        fresh = fresh[sources.lookups.locate(fresh, num_threads())[0] < 0]
        _, first = np.unique(fresh.view("V16").ravel(), return_index=True)
        return np.concatenate([sealed, fresh[np.sort(first)]])

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return for each key whether its row is here.

        Parameters
        ----------
        keys : ndarray of shape (n, 16), uint8, or sequence of bytes of length 16

        Returns
        -------
        found : ndarray of shape (n,), bool

        Raises
        ------
        ValueError
            If `keys` has another form.
        """
        return locate(self._sources(), as_keys(keys)).found

    def get(self, keys: Keys, *, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """Return the rows of keys.

        Parameters
        ----------
        keys : ndarray of shape (n, 16), uint8, or (n,), V16, or sequence of bytes of length 16
            Arrays are faster.
        dtype : {"float32", "float16"}, optional
            Of the result; by default float16 where rows are stored so, else float32. Rows become
            float32 while they are copied.

        Returns
        -------
        rows : ndarray of shape (n, dim), `dtype`

        Raises
        ------
        KeyError
            If a key has no row.
        CorruptStoreError
            If a row fails its checksum; names file and offset.
        ValueError
            If `keys` has another form, or `dtype` is float16 and the rows are not, or another.
        """
        wanted = _wanted_dtype(dtype, self.space)
        keys = as_keys(keys)
        sources = self._sources()
        return at.read_rows(sources, keys, at.locate_all(sources, keys), self.space, wanted)

    def get_intact(self, keys: Keys) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return what rows there are: missing and damaged ones are left to the caller to compute.

        Returns
        -------
        rows : ndarray of shape (n, dim)
            Rows that are not intact hold NaN.
        intact : ndarray of shape (n,), bool

        Warns
        -----
        StoreWarning
            If a row fails its checksum; names file and offset.
        """
        keys = as_keys(keys)
        sources = self._sources()
        located = locate(sources, keys)
        rows, damaged = at.gather(sources, keys, located, self.space)
        intact = located.found.copy()
        for position, source, row in damaged:
            intact[position] = False
            warnings.warn(at.damage(source, row), StoreWarning, stacklevel=2)
        rows[~intact] = np.nan
        return rows, intact

    def view(self, keys: Keys | None = None, *, where: Where | None = None) -> View:
        """Return an array-like of rows that reads them only when they are asked for.

        Parameters
        ----------
        keys : ndarray of shape (n, 16), uint8, or sequence of bytes of length 16, optional
            Rows and their order; by default all rows, in the order of `keys()`.
        where : str or callable, optional
            Instead of keys: one row for each input that fits, in order of name, as `items_where`
            gives them. A glob on the name ("*/cat/*"), or a callable that is given the `Item`.

        Returns
        -------
        view : View

        Raises
        ------
        KeyError
            If a given key has no row.
        ValueError
            If both `keys` and `where` are given.

        Warns
        -----
        StoreWarning
            If keys are listed and cannot be found, because a table of a segment is damaged.
        """
        if where is not None:
            if keys is not None:
                raise ValueError("keys must be None with where, got both")
            keys = keys_where(self.path, self.space, where)
        given = keys is not None
        keys = self.keys() if keys is None else as_keys(keys)
        sources = self._sources()
        located = at.locate_all(sources, keys) if given else locate(sources, keys)
        if not (there := located.found).all():
            message = f"{self.path}: {int((~there).sum())} keys of damaged tables are left out"
            warnings.warn(f"{message}; verify names the tables", StoreWarning, stacklevel=2)
            keys, located = keys[there], Located(located.source[there], located.row[there])

        def read(positions: NDArray[np.int64]) -> NDArray[Any]:
            where = Located(located.source[positions], located.row[positions])
            return at.read_rows(sources, keys[positions], where, self.space)

        return View(keys, self.space, lambda: np.lexsort((located.row, located.source)), read)


def _wanted_dtype(dtype: DTypeLike | None, space: Space) -> np.dtype[Any]:
    own = space.numpy_dtype
    if dtype is None:
        return own
    try:
        wanted = np.dtype(dtype)
    except TypeError:  # such as bfloat16, which numpy does not know
        wanted = None
    if wanted not in (own, np.float32):
        allowed = "float32" if own == np.float32 else f"{own} or float32"
        raise ValueError(f"dtype must be {allowed}, got {dtype if wanted is None else wanted}")
    return wanted
