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
from pyfeat.store._segment_file import open_segment


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
        # Tails that take no more rows, oldest first: full ones, and those a write has failed on.
        self._waiting: list[Tail] = []
        self._folders_are_synced = False
        self._owner = os.getpid()

    def tails(self) -> list[Tail]:
        """Return the tails with rows that are in no segment yet, newest first."""
        own = [self._tail] if self._tail is not None else []
        return [*own, *reversed(self._waiting)]

    def append(self, keys: NDArray[np.uint8], rows: NDArray[Any]) -> bool:
        """Add rows; return whether other files are there now than before.

        Raises
        ------
        StoreError
            If the disk refuses.

        Warns
        -----
        StoreWarning
            If the rows were added and the tail could not be sealed; the next seal tries again.
        """
        forked = self._leave_parent()
        try:
            self._own_tail().append(keys, rows.view(np.uint8))
        except StoreError:
            self._retire()
            raise
        self._bytes += rows.nbytes
        if self._bytes < self._segment_bytes:
            return forked
        try:
            return self.seal()
        except StoreError as error:
            warnings.warn(f"a tail was not sealed: {error}", StoreWarning, stacklevel=3)
            return True

    def sync(self) -> bool:
        """Return when every appended row is on the disk, and whether a segment was made for it."""
        if self._owner != os.getpid():
            return False
        sealed = self._seal_waiting()
        if self._tail is not None:
            try:
                self._tail.sync()
            except StoreError:
                self._retire()
                raise
        return sealed

    def seal(self) -> bool:
        """Turn the tails into segments; return whether there were any."""
        if self._owner != os.getpid():
            return False
        self._retire()
        return self._seal_waiting()

    def _leave_parent(self) -> bool:
        """After a fork, leave the tails to the parent: two writers in one file would mix."""
        if self._owner == os.getpid():
            return False
        forked = bool(self.tails())
        self._tail, self._bytes, self._waiting, self._owner = None, 0, [], os.getpid()
        return forked

    def _retire(self) -> None:
        if self._tail is not None:
            self._waiting.append(self._tail)
        self._tail, self._bytes = None, 0

    def _seal_waiting(self) -> bool:
        sealed = False
        while self._waiting:
            tail = self._waiting[0]
            self._finish(tail, keep=self._has_damage(tail, tail.read_again()))
            self._waiting.pop(0)
            sealed = True
        return sealed

    def _finish(self, tail: Tail, keep: bool = False) -> None:
        """Seal a tail, or only remove it when that has been done up to its removal."""
        segment = self._sealed_as(Path(tail.path))
        if segment is not None and self._holds_all(segment, tail):
            tail.sync_folder()  # the segment must have its name for good before the tail goes
            tail.remove()
        else:
            self._seal_one(tail, keep)

    def recover(self) -> None:
        """Seal the tails of writers that died; leave those of living ones alone.

        Warns
        -----
        StoreWarning
            If a record is damaged (names path and offset), a tail has another version, or the disk
            refuses to take its rows as a segment.
        """
        # Oldest first: of several rows of one key the newest must be sealed last.
        for path in reversed(layout.files(self._folder, layout.TAIL)):
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
            _pass_if_not_ours(error)

    def _adopt(self, path: Path) -> Tail | None:
        try:
            return Tail.adopt(os.fsencode(path), layout.row_bytes(self._space))
        except StoreError as error:
            _pass_if_not_ours(error)
            return None

    def _recover_one(self, path: Path, tail: Tail) -> None:
        version = tail.version()
        if version not in (0, layout.VERSION):
            _warn(f"{path}: must have version {layout.VERSION}, got {version}; it is left alone")
            return
        keep = self._has_damage(tail, tail.damaged_offsets())
        try:
            self._finish(tail, keep)
        except StoreError as error:
            # Its rows are read where they lie; whoever opens the store next tries again.
            _warn(f"a tail was not sealed: {error}")

    @staticmethod
    def _has_damage(tail: Tail, offsets: list[int]) -> bool:
        for offset in offsets:
            _warn(f"{tail.path}, byte {offset}: a record fails its checksum and is left out")
        return bool(offsets)

    def _sealed_as(self, tail: Path) -> Path | None:
        """Return the segment that a tail was sealed into, if there is one."""
        segments = layout.files(self._folder, layout.SEGMENT)
        token = layout.token_of(tail.name)
        return next((p for p in segments if layout.token_of(p.name) == token), None)

    def _holds_all(self, segment: Path, tail: Tail) -> bool:
        try:
            opened = open_segment(segment, self._space)
        except (StoreError, FileNotFoundError):
            return False
        # A damaged copy is no reason to give up what it was made of.
        return bool((opened.find(tail.keys()) >= 0).all()) and not opened.damaged_rows()

    def _own_tail(self) -> Tail:
        if self._tail is None:
            if not self._folders_are_synced:
                layout.sync_folders_above(self._folder)
                self._folders_are_synced = True
            path = self._folder / f"{layout.new_id()}{layout.TAIL}"
            fingerprint = np.frombuffer(bytes.fromhex(self._space.fingerprint), np.uint8)
            self._tail = Tail.create(os.fsencode(path), layout.row_bytes(self._space), fingerprint)
        return self._tail

    def _seal_one(self, tail: Tail, keep: bool = False) -> None:
        path = Path(tail.path)
        token = layout.token_of(path.name)
        dtype = layout.SAFETENSORS_DTYPE[self._space.dtype]
        # What could not be read is kept beside the segment, for whoever wants to try.
        aside = os.fsencode(path) + layout.DAMAGED.encode() if keep else b""

        def name() -> bytes:
            return os.fsencode(path.with_name(layout.new_id(token) + layout.SEGMENT))

        seal(tail, name, dtype, self._space.dim, self._space.fingerprint, aside)


def _pass_if_not_ours(error: OSError) -> None:
    # Sealed by its writer or recovered by somebody else just now; or of a user whose files we may
    # only read, as every file is where nothing may be written.
    if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
        raise error


def _warn(message: str) -> None:
    warnings.warn(message, StoreWarning, stacklevel=5)
