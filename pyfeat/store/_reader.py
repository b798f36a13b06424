"""The reading half of a store: every segment, and every tail of another writer."""

from __future__ import annotations

import errno
from pathlib import Path

from pyfeat._core import Segment, Tail
from pyfeat._identity import Space
from pyfeat.errors import StoreError
from pyfeat.store import _layout as layout
from pyfeat.store._segment_file import open_segment
from pyfeat.store._sources import Source


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
        self._tails: dict[str, Tail] = {}

    def sources(self, own: Tail | None) -> list[Source]:
        """Return where rows lie, newest first; `own` is the tail this process writes."""
        return [
            *([own] if own is not None else []),
            *self._tails.values(),
            *self._segments.values(),
        ]

    def refresh(self, own: Tail | None) -> None:
        """See what was flushed and sealed since.

        Raises
        ------
        CorruptStoreError
            If the header of a segment is damaged.
        """
        # Tails first: one that is sealed while we look is then found as a segment.
        for path in layout.files(self._folder, layout.TAIL):
            if own is None or str(path) != own.path:
                self._refresh_tail(path)
        segments = {}
        for path in layout.files(self._folder, layout.SEGMENT):
            known = self._segments.get(path.name)
            segments[path.name] = known or open_segment(path, self._space)
        self._segments = segments
        self._tails = {
            name: tail
            for name, tail in self._tails.items()
            if name.removesuffix(layout.TAIL) + layout.SEGMENT not in segments
        }

    def _refresh_tail(self, path: Path) -> None:
        if (known := self._tails.get(path.name)) is not None:
            known.refresh()
            return
        try:
            self._tails[path.name] = Tail.open(str(path), layout.row_bytes(self._space))
        except StoreError as error:
            if error.errno != errno.ENOENT:  # it was sealed just now: its segment is found next
                raise
