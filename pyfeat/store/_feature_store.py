"""The store's door: rows of one space, put and got by key."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pyfeat._identity import Space
from pyfeat.errors import StoreError, StoreWarning
from pyfeat.store import _layout as layout
from pyfeat.store import _sources as at
from pyfeat.store._reader import Reader
from pyfeat.store._sources import Located, Sources, as_keys, locate
from pyfeat.store._view import View
from pyfeat.store._writer import Writer

Keys = NDArray[np.uint8] | Sequence[bytes]


class FeatureStore:
    """Rows of one space on disk, found by the content of what they were computed from.

    Many processes may write into one store and read from it at the same time: each writer appends
    to a file of its own. What `flush` has acknowledged survives `kill -9` and power loss; a flipped
    bit is detected when its row is read.

    Parameters
    ----------
    path : path-like
        Folder. Made, with mode "a", when it is not there.
    space : Space, optional
        What makes rows comparable. May be left out when the store holds exactly one.
    mode : {"a", "r"}, default="a"
        "a" reads and adds rows, "r" only reads and changes nothing on disk.
    segment_bytes : int, default=268435456
        A tail of this size is sealed into a segment. Closing seals what there is: a store that is
        opened and closed for each row gets a file for each.

    Attributes
    ----------
    path : pathlib.Path
    space : Space

    Raises
    ------
    StoreError
        If `path` is neither a store nor an empty folder, or cannot be written; with mode "r" also
        if it is not there.
    ValueError
        If `space` is left out and the store holds none or several.

    Warns
    -----
    StoreWarning
        If rows of a writer that died are damaged: they are left out, with path and offset.

    Notes
    -----
    The format is written down in docs/store_format.md. Not a database: no deletes, no queries
    other than by key, and no network file system whose `flock` is not honoured.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pyfeat import FeatureStore, Space
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with FeatureStore(folder, Space(2)) as store:
    ...         store.put([b"0123456789abcdef"], np.ones((1, 2), np.float32))
    ...     FeatureStore(folder, mode="r").get([b"0123456789abcdef"])
    array([[1., 1.]], dtype=float32)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        space: Space | None = None,
        *,
        mode: Literal["a", "r"] = "a",
        segment_bytes: int = 256 << 20,
    ) -> None:
        if mode not in ("a", "r"):
            raise ValueError(f"mode must be 'a' or 'r', got {mode!r}")
        if segment_bytes < 1:
            raise ValueError(f"segment_bytes must be at least 1, got {segment_bytes}")
        self.path = Path(path).absolute()
        self.mode = mode
        self.segment_bytes = segment_bytes
        if mode == "a":
            layout.create_store(self.path)
        else:
            layout.check_store(self.path)
        self.space = space if space is not None else self._only_space()
        self._lock = threading.RLock()
        self._closed = False
        self._folder = layout.space_folder(self.path, self.space)
        self._reader = Reader(self._folder, self.space)
        self._writer = Writer(self._folder, self.space, segment_bytes)
        if mode == "a":
            layout.create_space(self.path, self.space)
            self._writer.recover()
        self.refresh()

    def _only_space(self) -> Space:
        spaces = layout.read_spaces(self.path)
        if len(spaces) != 1:
            names = [s.fingerprint[:12] for s in spaces]
            raise ValueError(f"space must be given: {str(self.path)!r} holds {names}")
        return spaces[0]

    # --- reading ---------------------------------------------------------------------------

    def _sources(self) -> Sources:
        return self._reader.sources(self._writer.tails())

    def __len__(self) -> int:
        return len(self.keys())

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, space={self.space.fingerprint[:12]})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureStore:
        # A store is a place, not a value: scikit-learn's clone must not open it twice.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self.space, self.mode, self.segment_bytes)

    def keys(self) -> NDArray[np.uint8]:
        """Return every key once, in the order the rows were written (oldest file first).

        Returns
        -------
        keys : ndarray of shape (n, 16), uint8
        """
        with self._lock:
            parts = [s.keys() for s in reversed(self._sources())]
        keys = np.concatenate([np.empty((0, 16), np.uint8), *parts])
        if len(parts) < 2:
            return keys
        _, first = np.unique(keys.view("V16").ravel(), return_index=True)
        return keys[np.sort(first)]

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
        with self._lock:
            return locate(self._sources(), as_keys(keys)).found

    def get(self, keys: Keys, *, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """Return the rows of keys.

        Parameters
        ----------
        keys : ndarray of shape (n, 16), uint8, or (n,), V16, or sequence of bytes of length 16
            Arrays are faster.
        dtype : {"float32", "float16"}, default=that of the space
            Of the result. float16 rows become float32 while they are copied.

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
            If `keys` has another form, or `dtype` is neither that of the space nor float32.
        """
        wanted = np.dtype(self.space.dtype if dtype is None else dtype)
        if wanted not in (self.space.dtype, np.float32):
            raise ValueError(f"dtype must be {self.space.dtype} or float32, got {wanted}")
        keys = as_keys(keys)
        with self._lock:
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
        with self._lock:
            sources = self._sources()
        located = locate(sources, keys)
        rows, damaged = at.gather(sources, keys, located, self.space)
        intact = located.found.copy()
        for position, source, row in damaged:
            intact[position] = False
            warnings.warn(at.damage(source, row), StoreWarning, stacklevel=2)
        rows[~intact] = np.nan
        return rows, intact

    def view(self, keys: Keys | None = None) -> View:
        """Return an array-like of rows that reads them only when they are asked for.

        Parameters
        ----------
        keys : ndarray of shape (n, 16), uint8, or sequence of bytes of length 16, optional
            Rows and their order; by default all rows, in the order of `keys()`.

        Returns
        -------
        view : View

        Raises
        ------
        KeyError
            If a key has no row.
        """
        keys = self.keys() if keys is None else as_keys(keys)
        with self._lock:
            sources = self._sources()
        located = at.locate_all(sources, keys)

        def read(positions: NDArray[np.int64]) -> NDArray[Any]:
            where = Located(located.source[positions], located.row[positions])
            return at.read_rows(sources, keys[positions], where, self.space)

        return View(keys, self.space, lambda: np.lexsort((located.row, located.source)), read)

    def refresh(self) -> None:
        """See what other writers have flushed or sealed since.

        Warns
        -----
        StoreWarning
            If a segment cannot be opened: it is left out.
        """
        with self._lock:
            self._reader.refresh(self._writer.tails())

    # --- writing ---------------------------------------------------------------------------

    def put(self, keys: Keys, rows: ArrayLike) -> None:
        """Add rows. They survive a killed process at once, and power loss after `flush`.

        Parameters
        ----------
        keys : ndarray of shape (n, 16), uint8, or sequence of bytes of length 16
        rows : array-like of shape (n, dim)
            Converted to the dtype of the space. A key that is here already gets the new row.

        Raises
        ------
        ValueError
            If the shapes do not fit each other or the space.
        StoreError
            If the store is read-only or closed, or the disk refuses: the first rows may be there
            then, whole and right.
        """
        keys = as_keys(keys)
        values = np.ascontiguousarray(rows, dtype=self.space.dtype)
        if values.shape != (len(keys), self.space.dim):
            raise ValueError(
                f"rows must have shape {(len(keys), self.space.dim)}, got {values.shape}"
            )
        with self._lock:
            if self.mode == "r" or self._closed:
                state = "mode='r'" if self.mode == "r" else "a closed store"
                raise StoreError(f"{self.path} must be open with mode='a' to put rows, got {state}")
            if len(keys) and self._writer.append(keys, values):
                self.refresh()

    def flush(self) -> None:
        """Return when every row put so far is on the disk.

        Raises
        ------
        StoreError
            If the disk refuses; the rows put since the last flush may be lost then.
        """
        with self._lock:
            if self._writer.sync():
                self.refresh()

    def close(self) -> None:
        """Seal what was put into a segment. A closed store can still be read, not written."""
        with self._lock:
            if not self._closed and self._writer.seal():
                self.refresh()
            self._closed = True

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @staticmethod
    def spaces(path: str | os.PathLike[str]) -> list[Space]:
        """Return the spaces that a store holds.

        Raises
        ------
        StoreError
            If `path` is no store.
        """
        layout.check_store(Path(path))
        return layout.read_spaces(Path(path))

    def files(self) -> Iterable[str]:
        """Return the paths of the segments and tails that are read, newest first."""
        with self._lock:
            return [s.path for s in self._sources()]


def _reopen(path: str, space: Space, mode: Literal["a", "r"], segment_bytes: int) -> FeatureStore:
    return FeatureStore(path, space, mode=mode, segment_bytes=segment_bytes)
