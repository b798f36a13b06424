"""Many small files of a store become few large ones; rows that newer ones stand for are dropped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyfeat import _core
from pyfeat._core import Segment
from pyfeat._identity import Space
from pyfeat.errors import StoreError, StoreWarning
from pyfeat.store import _layout as layout
from pyfeat.store import _sources as at
from pyfeat.store._compact_items import compact_items
from pyfeat.store._leftovers import remove_leftovers
from pyfeat.store._live import count_rows
from pyfeat.store._lock import administration
from pyfeat.store._merge import SEALING, give_way, settled_files, write_merged
from pyfeat.store._segment_file import damaged_offsets, open_segment
from pyfeat.store._sources import Located, Sources
from pyfeat.store._writer import Writer

# A large segment is written anew when more than this share of its rows is overwritten.
WASTE = 0.1


@dataclass(frozen=True)
class Compacted:
    """What `compact` did with one space.

    Parameters
    ----------
    space : str
        Its fingerprint.
    segments : tuple of (int, int)
        Segments before and after.
    lists : tuple of (int, int)
        Lists of items before and after.
    dropped : int
        Overwritten rows that are gone.
    bytes : tuple of (int, int)
        Size of the segments before and after.
    skipped : tuple of str
        Segments left alone because they are damaged: `repair` comes first.
    """

    space: str
    segments: tuple[int, int]
    lists: tuple[int, int]
    dropped: int
    bytes: tuple[int, int]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    """A segment, and how many of its rows no newer one stands for.

    `run` counts the segments left alone that are newer: where one lies between two others, these
    must not become one, or rows of the older would become newer than its own.
    """

    path: Path
    segment: Segment
    live: int
    run: int

    @property
    def size(self) -> int:
        return self.path.stat().st_size


def compact(
    path: str | os.PathLike[str], *, space: Space | None = None, segment_bytes: int = 256 << 20
) -> list[Compacted]:
    """Merge small segments and lists of items, and drop overwritten rows.

    Readers and writers go on meanwhile. Rows of dead writers are sealed before.

    Parameters
    ----------
    path : path-like
        Folder of the store.
    space : Space, optional
        Only this one; by default all.
    segment_bytes : int, default=268435456
        Most bytes of a merged segment. Segments of less than half of it are merged; a larger one is
        written anew where more than a tenth of its rows are overwritten.

    Returns
    -------
    compacted : list of Compacted
        One for each space.

    Raises
    ------
    StoreError
        If `path` is no store, cannot be written, or is rearranged by somebody else. What was merged
        until then stays merged; nothing is lost.
    ValueError
        If `segment_bytes` is not positive.

    Warns
    -----
    StoreWarning
        If a segment or list is damaged: it is left alone.

    Notes
    -----
    A merged segment is on the disk under its name before what it was made of is removed. A crash
    between the two leaves rows twice, and the next `compact` drops them. Needs disk space for one
    merged segment, and some 100 bytes of memory for each of its rows.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pyfeat import FeatureStore, Space
    >>> from pyfeat.store import compact
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for key in (b"0123456789abcdef", b"0123456789ABCDEF"):
    ...         with FeatureStore(folder, Space(2)) as store:
    ...             store.put([key], np.ones((1, 2), np.float32))
    ...     [done.segments for done in compact(folder)]
    [(2, 1)]
    """
    if segment_bytes < 1:
        raise ValueError(f"segment_bytes must be at least 1, got {segment_bytes}")
    root = Path(path)
    layout.check_store(root)
    with administration(root):
        remove_leftovers(root)
        spaces = layout.read_spaces(root) if space is None else [space]
        return [compact_folder(layout.space_folder(root, s), s, segment_bytes) for s in spaces]


def compact_folder(folder: Path, space: Space, segment_bytes: int) -> Compacted:
    """Compact the files of one folder; the caller holds the lock of the store."""
    Writer(folder, space, segment_bytes).recover()
    before = [p.stat().st_size for p in layout.files(folder, layout.SEGMENT)]
    parts, skipped = _settled(folder, space)
    dropped = sum(len(p.segment) - p.live for p in parts)
    give_way([p.path for p in parts if p.live == 0])
    rest = [p for p in parts if p.live > 0]
    for group in _groups(rest, segment_bytes):
        _merge(group, rest, space)
    _core.sync_folder_of(os.fsencode(folder / layout.SPACE))
    lists = compact_items(folder)
    for memo in layout.read_spaces(folder / layout.MEMO):
        compact_folder(layout.space_folder(folder / layout.MEMO, memo), memo, segment_bytes)
    after = [p.stat().st_size for p in layout.files(folder, layout.SEGMENT)]
    dropped -= sum(len(p.segment) - p.live for p in rest if p.path.exists())
    return Compacted(
        space.fingerprint,
        (len(before), len(after)),
        lists,
        dropped,
        (sum(before), sum(after)),
        tuple(skipped),
    )


def _settled(folder: Path, space: Space) -> tuple[list[_Part], list[str]]:
    """Return the segments that may be merged, newest first; and those that are damaged."""
    paths = settled_files(folder, layout.SEGMENT, SEALING)
    # A segment whose tail is still there may not be on the disk for good; and when its writer dies,
    # its tail is known by it to be sealed. The tails are listed last: none of them comes back.
    sealing = {layout.token_of(p.name) for p in layout.files(folder, layout.TAIL)}
    found, skipped, run = [], [], 0
    for path in paths:
        if layout.token_of(path.name) in sealing:
            run += 1
            continue
        try:
            segment = open_segment(path, space)
            damage = [f"byte {o}: {why}" for o, why in damaged_offsets(path, segment)]
        except StoreError as error:
            damage = [str(error)]
        if damage:
            skipped.append(str(path))
            run += 1
            message = f"{path} is damaged, and is not merged before a repair: {damage[0]}"
            warnings.warn(message, StoreWarning, stacklevel=5)
        else:
            found.append(_Part(path, segment, len(segment), run))
    # Every name is on the disk now, before an older row is dropped for the sake of a newer one.
    _core.sync_folder_of(os.fsencode(folder / layout.SPACE))
    segments = [p.segment for p in found]
    stored, distinct = count_rows(segments)
    if stored == distinct:
        return found, skipped
    sources = Sources.of_segments(segments)
    live = [len(_live_rows(sources, i)[0]) for i in range(len(found))]
    return [replace(p, live=n) for p, n in zip(found, live, strict=True)], skipped


def _live_rows(sources: Sources, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return keys and row numbers of the rows of a segment that no newer one stands for."""
    keys = sources.segments[number].keys()
    located = at.locate(sources, keys)
    live = located.source == number
    return keys[live], located.row[live]


def _groups(parts: Sequence[_Part], segment_bytes: int) -> Iterator[list[_Part]]:
    """Yield what is to become one segment each, oldest first."""
    group: list[_Part] = []
    size = 0
    for part in reversed(parts):
        live = part.size * part.live // len(part.segment)
        if 2 * part.size >= segment_bytes and part.live >= (1 - WASTE) * len(part.segment):
            continue
        if group and (size + live > segment_bytes or group[-1].run != part.run):
            yield from _worthwhile(group)
            group, size = [], 0
        group.append(part)
        size += live
    yield from _worthwhile(group)


def _worthwhile(group: list[_Part]) -> Iterator[list[_Part]]:
    if len(group) > 1 or any(p.live < len(p.segment) for p in group):
        yield group


def _merge(group: Sequence[_Part], parts: Sequence[_Part], space: Space) -> None:
    segments = [p.segment for p in parts]
    numbers = [parts.index(p) for p in group]
    sources = Sources.of_segments(segments)
    picked = [
        # Nothing is to be looked up where every row counts.
        (p.segment.keys(), np.arange(p.live))
        if p.live == len(p.segment)
        else _live_rows(sources, number)
        for p, number in zip(group, numbers, strict=True)
    ]
    source = np.repeat(numbers, [len(rows) for _, rows in picked])
    keys = np.concatenate([keys for keys, _ in picked])
    located = Located(source, np.concatenate([rows for _, rows in picked]))
    write_merged(group[-1].path, space, segments, keys, located)
    give_way([p.path for p in group])
