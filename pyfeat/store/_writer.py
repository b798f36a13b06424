"""The writing half of a store: one tail of our own, sealed into segments; dead tails recovered."""

from __future__ import annotations

import errno
import os
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
        """Add rows; return whether they were sealed into a segment with all before them.

        Raises
        ------
        StoreError
            If the disk refuses; nothing was added then.
        """
        self._own_tail().append(keys, rows.view(np.uint8))
        self._bytes += rows.nbytes
        return self._bytes >= self._segment_bytes and self.seal()

    def sync(self) -> None:
        """Return when every appended row is on the disk."""
        if self._tail is not None and self._owner == os.getpid():
            self._tail.sync()

    def seal(self) -> bool:
        """Turn the tail into a segment; return whether there was one."""
        tail, self._tail, self._bytes = self._tail, None, 0
        if tail is None or self._owner != os.getpid():
            return False
        self._seal_one(tail)
        return True

    def recover(self) -> None:
        """Seal the tails of writers that died; leave those of living ones alone.

        Warns
        -----
        StoreWarning
            If a record is damaged; names path and offset.
        """
        for path in layout.files(self._folder, layout.TAIL):
            try:
                tail = Tail.adopt(str(path), layout.row_bytes(self._space))
            except StoreError as error:
                if error.errno != errno.ENOENT:
                    raise
                continue  # sealed by its writer, or recovered by somebody else, just now
            if tail is None:
                continue
            for offset in tail.damaged_offsets():
                message = f"{path}, byte {offset}: a record fails its checksum and is left out"
                warnings.warn(message, StoreWarning, stacklevel=4)
            self._seal_one(tail)

    def _own_tail(self) -> Tail:
        if self._owner != os.getpid():
            # After a fork the tail belongs to the parent: two writers in one file would mix.
            self._tail, self._bytes, self._owner = None, 0, os.getpid()
        if self._tail is None:
            path = self._folder / f"{layout.new_id()}{layout.TAIL}"
            fingerprint = np.frombuffer(bytes.fromhex(self._space.fingerprint), np.uint8)
            self._tail = Tail.create(str(path), layout.row_bytes(self._space), fingerprint)
        return self._tail

    def _seal_one(self, tail: Tail) -> None:
        path = Path(tail.path)
        target = path.with_name(path.name.removesuffix(layout.TAIL) + layout.SEGMENT)
        dtype = layout.SAFETENSORS_DTYPE[self._space.dtype]
        seal(tail, str(target), dtype, self._space.dim, self._space.fingerprint)
