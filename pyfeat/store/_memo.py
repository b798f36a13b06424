"""What files held when they were last read: their keys by path, size and time of change."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pyfeat._config import num_threads
from pyfeat._core import stat_files
from pyfeat._identity import KEY_BYTES, Space
from pyfeat.errors import StoreError, StoreWarning
from pyfeat.store._compact import compact_folder
from pyfeat.store._feature_store import FeatureStore
from pyfeat.store._layout import MEMO, SEGMENT, SPACE, files, space_folder
from pyfeat.store._leftovers import remove_leftovers
from pyfeat.store._lock import take, take_administration

# A file changed within this time before it was looked at may change once more and keep its time.
SETTLED_NS = 2_000_000_000
# About a million files a segment: the keys of a tail are held in memory.
_SEGMENT_BYTES = 32 << 20
# Each job that notes a file makes a segment: so many small ones are merged when a memo is closed.
_MOST_SMALL = 8

# Notes overwritten at once.
_FORGOTTEN = 1 << 16

_NOTE = np.dtype([("size", "<i8"), ("mtime_ns", "<i8"), ("key", "u1", (KEY_BYTES,))])
_SPACE = Space(_NOTE.itemsize // 4, "float32", {"memo": 1})


@dataclass(frozen=True)
class Marks:
    """How files looked at one moment.

    Parameters
    ----------
    names : ndarray of shape (n, 16), uint8
        First 128 bits of BLAKE3 of the absolute path.
    size : ndarray of shape (n,), int64
        Bytes; -1 for what is no regular file.
    mtime_ns : ndarray of shape (n,), int64
        Time of the last change in nanoseconds since 1970.
    settled : ndarray of shape (n,), bool
        Whether a change after this moment would show.
    """

    names: NDArray[np.uint8]
    size: NDArray[np.int64]
    mtime_ns: NDArray[np.int64]
    settled: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.size)

    def take(self, positions: NDArray[np.int64]) -> Marks:
        """Return the marks of some of the files."""
        return Marks(
            self.names[positions],
            self.size[positions],
            self.mtime_ns[positions],
            self.settled[positions],
        )


def joined(parts: Sequence[Marks]) -> Marks:
    """Return marks one after the other."""
    whole = [marks_of([]), *parts]
    return Marks(
        np.concatenate([p.names for p in whole]),
        np.concatenate([p.size for p in whole]),
        np.concatenate([p.mtime_ns for p in whole]),
        np.concatenate([p.settled for p in whole]),
    )


def marks_of(paths: Sequence[str]) -> Marks:
    """Ask the file system about many files at once; call it before they are read.

    Parameters
    ----------
    paths : sequence of str
        Links are followed. What is not there, or no regular file, is never remembered.
    """
    absolute = [p if p[:1] == os.sep else os.path.abspath(p) for p in paths]  # noqa: PTH100  symlinks stay as they are
    encoded = os.fsencode("\0".join(absolute)).split(b"\0") if absolute else []
    if len(encoded) != len(absolute):  # a name with a zero is of no file: that of the root is none
        encoded = [b"/" if "\0" in p else os.fsencode(p) for p in absolute]
    joined = b"\0".join([*encoded, b""])
    digests = b"".join([blake3(name).digest(length=KEY_BYTES) for name in encoded])
    now = time.time_ns()
    stats = stat_files(joined, num_threads())
    size, mtime_ns = stats[:, 0].copy(), stats[:, 1].copy()
    names = np.frombuffer(digests, np.uint8).reshape(-1, KEY_BYTES)
    return Marks(names, size, mtime_ns, (size >= 0) & (mtime_ns < now - SETTLED_NS))


class Memo:
    """Keys of files by path, size and time of change, so that unchanged files are not read again.

    A job notes a file when its row is in the store and its name in the list of items: that it is
    known says all three. What is lost or damaged of it costs a file that is read once more.

    Parameters
    ----------
    path : path-like
        Folder of the store.
    space : Space
        Of the rows; the rows of each space have a memo of their own, in their folder.

    Raises
    ------
    StoreError
        If the disk refuses.

    Notes
    -----
    It is a store itself, with rows of 32 bytes: any number of writers, safe against crashes. It
    merges itself, so that it does not grow with jobs over the same paths. A file that was changed
    and given its old size and time back is taken for unchanged.
    """

    def __init__(self, path: str | os.PathLike[str], space: Space) -> None:
        self._root = Path(path)
        folder = space_folder(self._root, space) / MEMO
        self._store = FeatureStore(folder, _SPACE, segment_bytes=_SEGMENT_BYTES)
        self._bytes = 0  # of what was noted

    def find(self, marks: Marks) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return what is known of files.

        Parameters
        ----------
        marks : Marks of n files

        Returns
        -------
        keys : ndarray of shape (n, 16), uint8
            Keys of the content; anything where it is not known.
        known : ndarray of shape (n,), bool
            Whether a file was noted with a key, and has the same size and time now.
        """
        rows, there = self._store.get_intact(marks.names)
        notes = rows.view(_NOTE).reshape(-1)
        keys = np.ascontiguousarray(notes["key"])
        same = (notes["size"] == marks.size) & (notes["mtime_ns"] == marks.mtime_ns)
        return keys, there & same & (marks.size >= 0) & keys.any(axis=1)

    def note(self, marks: Marks, keys: NDArray[np.uint8]) -> None:
        """Note the keys of files that were read after their marks were taken.

        Parameters
        ----------
        marks : Marks of n files
            Those that were not settled are left out.
        keys : ndarray of shape (n, 16), uint8
            Keys of the content; zeros for a file without a row, which is then not known.
        """
        notes = np.empty(len(marks), _NOTE)
        notes["size"], notes["mtime_ns"], notes["key"] = marks.size, marks.mtime_ns, keys
        kept = marks.settled | ~keys.any(axis=1)
        rows = notes[kept].view(np.float32).reshape(-1, _SPACE.dim)
        self._put(marks.names[kept], rows)

    def _put(self, names: NDArray[np.uint8], rows: NDArray[np.float32]) -> None:
        self._store.put(names, rows)
        self._bytes += rows.nbytes

    def forget(self) -> None:
        """Know nothing any more: every file is read once more."""
        keys = self._store.keys()
        for start in range(0, len(keys), _FORGOTTEN):
            part = keys[start : start + _FORGOTTEN]
            self._put(part, np.zeros((len(part), _SPACE.dim), np.float32))

    def flush(self) -> None:
        """Return when everything noted is on the disk."""
        self._store.flush()

    def close(self) -> None:
        """Seal what was noted, and merge it with what was noted before where that is worthwhile.

        Warns
        -----
        StoreWarning
            If it could not be merged: it takes more room than it must.
        """
        self._store.close()
        noted, self._bytes = self._bytes, 0
        if noted and (noted > _SEGMENT_BYTES // 2 or self._count_small() >= _MOST_SMALL):
            try:
                self._merge()
            except StoreError as error:
                warnings.warn(f"the memo was not merged: {error}", StoreWarning, stacklevel=2)

    def _count_small(self) -> int:
        small = 0
        for path in files(space_folder(self._store.path, _SPACE), SEGMENT):
            with suppress(FileNotFoundError):  # merged by another job just now
                small += path.stat().st_size < _SEGMENT_BYTES // 2
        return small

    def _merge(self) -> None:
        """Merge the segments, unless somebody rearranges the store: that merges them, too.

        Those that another job has open stay for the next one: it may be on another machine, where a
        file that is removed here cannot be read any more.
        """
        folder = space_folder(self._store.path, _SPACE)
        with ExitStack() as held:
            for lock in (take_administration(self._root), take(folder / SPACE, exclusive=True)):
                if lock is None:
                    return
                held.callback(lock.close)
            remove_leftovers(self._store.path)
            compact_folder(folder, _SPACE, _SEGMENT_BYTES)

    def __enter__(self) -> Memo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
