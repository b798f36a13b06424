"""The writing half of a store: one tail of our own, sealed into segments; dead tails recovered."""

from __future__ import annotations

import errno
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._core import Tail, seal
from pyfeat._identity import Space
from pyfeat.errors import StoreError, StoreWarning
from pyfeat.store import _layout as layout


class Writer:
    """Appends rows of one space to a tail that only this process writes.

    Not safe for several threads by itself: `FeatureStore` holds its lock around every call.

    Parameters
    ----------
    folder : Path
        Folder of the space.
    space : Space
    segment_bytes : int
        A tail with rows of this size is sealed.
    """

    def __init__(self, folder: Path, space: Space, segment_bytes: int) -> None:
        self._folder = folder
        self._space = space
        self._segment_bytes = segment_bytes
        self._tail: Tail | None = None
        self._bytes = 0
        self._owner = os.getpid()

    @property
    def tail(self) -> Tail | None:
        """The tail with the rows not yet sealed, if there are any."""
        return self._tail

    def append(self, keys: NDArray[np.uint8], rows: NDArray[Any]) -> bool:
        """Add rows; return whether other files are there now than before.

        Raises
        ------
        StoreError
            If the disk refuses.

        Warns
        -----
        StoreWarning
            If the rows were added and the tail could not be sealed; the next call tries again.
        """
        forked = self._tail is not None and self._owner != os.getpid()
        self._own_tail().append(keys, rows.view(np.uint8))
        self._bytes += rows.nbytes
        if self._bytes < self._segment_bytes:
            return forked
        try:
            return self.seal()
        except StoreError as error:
            warnings.warn(f"rows stay in the tail: {error}", StoreWarning, stacklevel=3)
            return forked

    def sync(self) -> None:
        """Return when every appended row is on the disk."""
        if self._tail is not None and self._owner == os.getpid():
            self._tail.sync()

    def seal(self) -> bool:
        """Turn the tail into a segment; return whether there was one."""
        if self._tail is None or self._owner != os.getpid():
            return False
        self._seal_one(self._tail)
        self._tail, self._bytes = None, 0
        return True

    def recover(self) -> None:
        """Seal the tails of writers that died; leave those of living ones alone.

        Warns
        -----
        StoreWarning
            If a record is damaged (names path and offset), or a tail has another version.
        """
        for path in layout.files(self._folder, layout.TAIL):
            tail = self._adopt(path)
            if tail is not None:
                self._recover_one(path, tail)
        for path in layout.files(self._folder, layout.TAIL + layout.TEMPORARY):
            self._discard(path)

    def _discard(self, path: Path) -> None:
        """Remove a hidden tail of a writer that died before it had put a row."""
        try:
            if time.time() - path.stat().st_mtime > layout.ABANDONED_SECONDS:
                Tail.discard(os.fsencode(path))
        except OSError as error:
            _pass_if_gone(error)

    def _adopt(self, path: Path) -> Tail | None:
        try:
            return Tail.adopt(os.fsencode(path), layout.row_bytes(self._space))
        except StoreError as error:
            _pass_if_gone(error)
            return None

    def _recover_one(self, path: Path, tail: Tail) -> None:
        version = tail.version()
        if version not in (0, layout.VERSION):
            _warn(f"{path}: must have version {layout.VERSION}, got {version}; it is left alone")
            return
        if any(
            layout.token_of(p.name) == layout.token_of(path.name)
            for p in layout.files(self._folder, layout.SEGMENT)
        ):
            tail.remove()  # sealed already; its writer died in between
            return
        offsets = tail.damaged_offsets()
        for offset in offsets:
            _warn(f"{path}, byte {offset}: a record fails its checksum and is left out")
        self._seal_one(tail, keep=bool(offsets))

    def _own_tail(self) -> Tail:
        if self._owner != os.getpid():
            # After a fork the tail belongs to the parent: two writers in one file would mix.
            self._tail, self._bytes, self._owner = None, 0, os.getpid()
        if self._tail is None:
            path = self._folder / f"{layout.new_id()}{layout.TAIL}"
            fingerprint = np.frombuffer(bytes.fromhex(self._space.fingerprint), np.uint8)
            self._tail = Tail.create(os.fsencode(path), layout.row_bytes(self._space), fingerprint)
        return self._tail

    def _seal_one(self, tail: Tail, keep: bool = False) -> None:
        path = Path(tail.path)
        name = layout.new_id(layout.token_of(path.name)) + layout.SEGMENT
        dtype = layout.SAFETENSORS_DTYPE[self._space.dtype]
        # What could not be read is kept beside the segment, for whoever wants to try.
        aside = os.fsencode(path) + layout.DAMAGED.encode() if keep else b""
        target = os.fsencode(path.with_name(name))
        seal(tail, target, dtype, self._space.dim, self._space.fingerprint, aside)


def _pass_if_gone(error: OSError) -> None:
    # Sealed by its writer, or recovered by somebody else, just now.
    if error.errno != errno.ENOENT:
        raise error


def _warn(message: str) -> None:
    warnings.warn(message, StoreWarning, stacklevel=5)
