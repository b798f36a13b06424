"""The store's door: rows of one space, put and got by key."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from pyfeat._identity import Space
from pyfeat.errors import StoreError
from pyfeat.store import _layout as layout
from pyfeat.store._encoding import encode
from pyfeat.store._lock import join
from pyfeat.store._reader import Reader
from pyfeat.store._reading import Keys, Reading
from pyfeat.store._sources import Sources, as_keys
from pyfeat.store._writer import Writer


class FeatureStore(Reading):
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
        self._presence = join(self.path, self.space) if mode == "a" else None
        if mode == "a":
            self._writer.recover()
        self.refresh()

    def _only_space(self) -> Space:
        spaces = layout.read_spaces(self.path)
        if len(spaces) != 1:
            names = [s.fingerprint[:12] for s in spaces]
            raise ValueError(f"space must be given: {str(self.path)!r} holds {names}")
        return spaces[0]

    def _sources(self) -> Sources:
        with self._lock:
            return self._reader.sources(self._writer.tails())

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, space={self.space.fingerprint[:12]})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureStore:
        # A store is a place, not a value: scikit-learn's clone must not open it twice.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self.space, self.mode, self.segment_bytes)

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
            Rounded to the dtype of the space, as `pyfeat.ops.quantize_rows` does; an int8 row that
            holds NaN or infinity comes back as NaN. A key that is here already gets the new row.

        Raises
        ------
        ValueError
            If the shapes do not fit each other or the space.
        StoreError
            If the store is read-only or closed, or the disk refuses: the first rows may be there
            then, whole and right.
        """
        keys = as_keys(keys)
        values = np.asarray(rows, self.space.numpy_dtype)
        if values.shape != (len(keys), self.space.dim):
            raise ValueError(
                f"rows must have shape {(len(keys), self.space.dim)}, got {values.shape}"
            )
        raw = encode(values, self.space.dtype)
        with self._lock:
            if self.mode == "r" or self._closed:
                state = "mode='r'" if self.mode == "r" else "a closed store"
                raise StoreError(f"{self.path} must be open with mode='a' to put rows, got {state}")
            if len(keys) and self._writer.append(keys, raw):
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
            if self._presence is not None:
                self._presence.close()

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
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
        return [s.path for s in self._sources()]


def _reopen(path: str, space: Space, mode: Literal["a", "r"], segment_bytes: int) -> FeatureStore:
    return FeatureStore(path, space, mode=mode, segment_bytes=segment_bytes)
