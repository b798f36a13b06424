"""The reading half of a store: every segment, and every tail of another writer."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from pyfeat._core import Segment, SegmentIndex, Tail
from pyfeat._identity import Space
from pyfeat.errors import StoreError, StoreWarning
from pyfeat.store import _layout as layout
from pyfeat.store._segment_file import open_segment
from pyfeat.store._sources import Sources


class Reader:
    """Keeps the files of one space open.

    Parameters
    ----------
    folder : Path
        Folder of the space.
    space : Space
    """

    def __init__(self, folder: Path, space: Space) -> None:
        self._folder = folder
        self._space = space
        self._segments: dict[str, Segment] = {}
        self._index = SegmentIndex([])
        self._tails: dict[str, Tail] = {}
        self._damaged: set[str] = set()

    def sources(self, own: Sequence[Tail]) -> Sources:
        """Return where rows lie, newest first; `own` are the tails this process wrote."""
        tails = [self._tails[name] for name in sorted(self._tails, reverse=True)]
        return Sources([*own, *tails], list(self._segments.values()), self._index)

    def refresh(self, own: Sequence[Tail]) -> None:
        """See what was flushed and sealed since.

        Warns
        -----
        StoreWarning
            If a file cannot be opened: it is left out.
        """
        # Tails first: one that is sealed while we look is then found as a segment.
        listed = layout.files(self._folder, layout.TAIL)
        for path in listed:
            if all(str(path) != tail.path for tail in own):
                self._refresh_tail(path)
        while not self._refresh_segments():
            pass
        sealed = {layout.token_of(name) for name in self._segments}
        there = {path.name for path in listed}
        self._tails = {
            name: tail
            for name, tail in self._tails.items()
            if name in there and layout.token_of(name) not in sealed
        }

    def _refresh_segments(self) -> bool:
        """Open what is new; False where a file was merged into another one meanwhile."""
        segments = {}
        for path in layout.files(self._folder, layout.SEGMENT):
            try:
                known = self._segments.get(path.name) or self._open_segment(path)
            except FileNotFoundError:
                return False
            if known is not None:
                segments[path.name] = known
        if segments != self._segments:
            self._index = SegmentIndex(list(segments.values()))
        self._segments = segments
        return True

    def _open_segment(self, path: Path) -> Segment | None:
        """Return a segment, or None when its header is damaged: the others are still good.

        Raises
        ------
        FileNotFoundError
            If it is not there any more.
        """
        if path.name in self._damaged:
            return None
        try:
            return open_segment(path, self._space)
        except StoreError as error:
            if error.errno == errno.ENOENT:
                raise FileNotFoundError(str(path)) from None
            self._damaged.add(path.name)
            warnings.warn(f"a segment is left out: {error}", StoreWarning, stacklevel=6)
            return None

    def _refresh_tail(self, path: Path) -> None:
        if (known := self._tails.get(path.name)) is not None:
            known.refresh()
            return
        try:
            self._tails[path.name] = Tail.open(os.fsencode(path), layout.row_bytes(self._space))
        except StoreError as error:
            # Sealed just now: its segment is found next.
            if error.errno != errno.ENOENT and path.name not in self._damaged:
                self._damaged.add(path.name)
                warnings.warn(f"a tail is left out: {error}", StoreWarning, stacklevel=5)
