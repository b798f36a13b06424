"""The rows of a store that count, in the order they lie on disk: one block at a time."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._core import Segment
from pyfeat._identity import KEY_BYTES, Space
from pyfeat.errors import CorruptStoreError
from pyfeat.store import _sources as at
from pyfeat.store._sources import Located, Source, Sources

BLOCK = 8192
# Keys of one part of all keys, which are compared with each other at once.
_PART = 1 << 20


def live_keys(
    sources: Sources, max_rows: int = BLOCK
) -> Iterator[tuple[NDArray[np.uint8], Located]]:
    """Yield keys and places of all rows that no newer one of their key stands for.

    Parameters
    ----------
    sources : Sources
    max_rows : int, default=8192
        Most rows looked at for one block.

    Yields
    ------
    keys : ndarray of shape (b, 16), uint8
        Oldest file first, within a file in the order written.
    located : Located

    Raises
    ------
    CorruptStoreError
        If a table of a segment is damaged, so that a row of it cannot be found.
    """
    for number in reversed(range(len(sources))):
        keys = sources[number].keys()
        for start in range(0, len(keys), max_rows):
            block = keys[start : start + max_rows]
            located = at.locate(sources, block)
            # Each is in this file, and perhaps in newer ones, which come before it.
            if not (located.found & (located.source <= number)).all():
                raise CorruptStoreError(
                    f"{sources[number].path}: a table of its keys is damaged (see verify)"
                )
            live = located.source == number
            yield block[live], Located(located.source[live], located.row[live])


def live_rows(
    sources: Sources,
    space: Space,
    wanted: NDArray[np.void] | None = None,
    dtype: np.dtype[Any] | None = None,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[Any]]]:
    """Yield keys and rows, as `live_keys` does.

    Parameters
    ----------
    sources : Sources
    space : Space
    wanted : ndarray of shape (m,), V16, ascending, optional
        Keys to keep to.
    dtype : numpy dtype, optional
        As for `_sources.gather`.

    Raises
    ------
    CorruptStoreError
        If a row fails its checksum; names file and offset.
    """
    for block, located in live_keys(sources):
        kept = is_in(block, wanted)
        if kept.any():
            keys = block[kept]
            where = Located(located.source[kept], located.row[kept])
            yield keys, at.read_rows(sources, keys, where, space, dtype)


def is_in(keys: NDArray[np.uint8], wanted: NDArray[np.void] | None) -> NDArray[np.bool_]:
    """Return which keys are among the wanted ones (ascending, V16); all where those are None."""
    if wanted is None:
        return np.ones(len(keys), bool)
    if not len(wanted):
        return np.zeros(len(keys), bool)
    own = keys.view(f"V{KEY_BYTES}").ravel()
    at_most = np.minimum(np.searchsorted(wanted, own), len(wanted) - 1)
    found: NDArray[np.bool_] = wanted[at_most] == own
    return found


def count_rows(sources: Sequence[Source]) -> tuple[int, int]:
    """Return how many rows there are, and how many different keys.

    Holds a part of the keys in memory at a time.
    """
    tables = [_table(s) for s in sources]
    total = sum(n for n, _ in tables)
    if sum(n > 0 for n, _ in tables) < 2:
        return total, total
    parts = -(-total // _PART)
    bounds = [(i << 64) // parts for i in range(1, parts)]
    cuts = [[0, *(_first_not_below(t, bound) for bound in bounds), t[0]] for t in tables]
    counted = 0
    for i in range(parts):
        pieces = [read(c[i], c[i + 1]) for (_, read), c in zip(tables, cuts, strict=True)]
        counted += _distinct(np.concatenate(pieces))
    return total, counted


_Table = tuple[int, Callable[[int, int], NDArray[np.uint8]]]


def _table(source: Source) -> _Table:
    """Return the number of keys, and what reads a range of them in ascending order."""
    if isinstance(source, Segment):
        return len(source), source.sorted_keys
    keys = source.keys()
    high, low = _halves(keys)
    keys = keys[np.lexsort((low, high))]
    return len(keys), lambda begin, end: keys[begin:end]


def _first_not_below(table: _Table, bound: int) -> int:
    n, read = table
    first_half = lambda i: int.from_bytes(read(i, i + 1)[0, :8].tobytes(), "big")  # noqa: E731
    return bisect.bisect_left(range(n), bound, key=first_half)


def _halves(keys: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    halves = np.ascontiguousarray(keys).view(">u8").astype(np.uint64)
    return halves[:, 0], halves[:, 1]


def _distinct(keys: NDArray[np.uint8]) -> int:
    high, low = _halves(keys)
    # Keys are hashes: where no two begin alike, which is the rule, half of each is enough.
    ordered = np.sort(high)
    if (ordered[1:] != ordered[:-1]).all():
        return len(keys)
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    return 1 + int(((high[1:] != high[:-1]) | (low[1:] != low[:-1])).sum())
