"""Where rows lie: sealed segments and tails, newest first, asked one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat import _core
from pyfeat._config import num_threads
from pyfeat._core import Segment, SegmentIndex, Tail
from pyfeat._identity import KEY_BYTES, Space
from pyfeat.errors import CorruptStoreError
from pyfeat.store._encoding import ITEM, decode
from pyfeat.store._layout import row_bytes

Source = Segment | Tail

_KEY = np.dtype(f"V{KEY_BYTES}")


class Sources(list[Source]):
    """Files that rows lie in, newest first, tails before segments.

    Parameters
    ----------
    tails : sequence of Tail
    segments : sequence of Segment
    index : SegmentIndex
        Of those segments, in that order.
    """

    def __init__(
        self, tails: Sequence[Tail], segments: Sequence[Segment], index: SegmentIndex
    ) -> None:
        super().__init__([*tails, *segments])
        self.tails = list(tails)
        self.segments = list(segments)
        self.lookups = index

    @classmethod
    def of_segments(cls, segments: Sequence[Segment]) -> Sources:
        """Return segments, newest first, without tails."""
        return cls([], segments, SegmentIndex(list(segments)))


@dataclass(frozen=True)
class Located:
    """Where the rows of some keys lie.

    Parameters
    ----------
    source : ndarray of shape (n,), int64
        Position in the list of sources; -1 for a key that is nowhere.
    row : ndarray of shape (n,), int64
        Row in that source.
    """

    source: NDArray[np.int64]
    row: NDArray[np.int64]

    @property
    def found(self) -> NDArray[np.bool_]:
        return self.source >= 0


def locate(sources: Sources, keys: NDArray[np.uint8]) -> Located:
    """Return the newest place of every key."""
    tails = sources.tails
    if not tails:
        return Located(*sources.lookups.locate(keys, num_threads()))
    source = np.full(len(keys), -1, np.int64)
    row = np.full(len(keys), -1, np.int64)
    open_positions = np.arange(len(keys))
    for number, tail in enumerate(tails):
        rows = tail.find(keys[open_positions])
        hit = rows >= 0
        source[open_positions[hit]] = number
        row[open_positions[hit]] = rows[hit]
        open_positions = open_positions[~hit]
    if sources.segments and len(open_positions):
        numbers, rows = sources.lookups.locate(keys[open_positions], num_threads())
        source[open_positions] = np.where(numbers < 0, -1, numbers + len(tails))
        row[open_positions] = rows
    return Located(source, row)


def gather(
    sources: Sources,
    keys: NDArray[np.uint8],
    located: Located,
    space: Space,
    dtype: np.dtype[Any] | None = None,
) -> tuple[NDArray[Any], list[tuple[int, Source, int]]]:
    """Read the rows of located keys.

    Returns
    -------
    rows : ndarray of shape (n, dim), `dtype`, or float32, or float16 where the space says so
        Rows of keys that are nowhere hold anything.
    damaged : list of (position, source, row)
        Rows that fail their checksum.
    """
    rows = np.empty((len(keys), space.dim), space.numpy_dtype if dtype is None else dtype)
    out = rows.view(np.uint8).reshape(len(keys), space.dim * rows.itemsize)
    as_they_are = rows.dtype.name == space.dtype
    return rows, _gather(sources, keys, located, space, None if as_they_are else rows, out)


def gather_raw(
    sources: Sources, keys: NDArray[np.uint8], located: Located, space: Space
) -> tuple[NDArray[np.uint8], list[tuple[int, Source, int]]]:
    """Read the rows of located keys as a tail has them: what `Writer.append` takes.

    Returns
    -------
    raw : ndarray of shape (n, row bytes), uint8
        Rows of keys that are nowhere hold anything.
    damaged : list of (position, source, row)
        Rows that fail their checksum.
    """
    raw = np.empty((len(keys), row_bytes(space)), np.uint8)
    return raw, _gather(sources, keys, located, space, None, raw)


def _gather(
    sources: Sources,
    keys: NDArray[np.uint8],
    located: Located,
    space: Space,
    decoded: NDArray[Any] | None,
    out: NDArray[np.uint8],
) -> list[tuple[int, Source, int]]:
    """Fill `out`, the bytes of `decoded` where rows are to be decoded; return what is damaged."""
    tails, segments = sources.tails, sources.segments
    damaged: list[tuple[int, Source, int]] = []
    if segments:
        numbers = located.source - len(tails) if tails else located.source
        item, decodes = ITEM[space.dtype], decoded is not None
        bad = _core.gather(segments, keys, numbers, located.row, out, item, decodes, num_threads())
        damaged += [(int(i), segments[numbers[i]], int(located.row[i])) for i in bad]
    for number, tail in enumerate(tails):
        positions = np.flatnonzero(located.source == number)
        if not len(positions):
            continue
        where = located.row[positions]
        raw = np.empty((len(positions), row_bytes(space)), np.uint8)
        bad = tail.gather(keys[positions], where, np.arange(len(positions)), raw, num_threads())
        if decoded is None:
            out[positions] = raw
        else:
            decoded[positions] = decode(raw, space.dtype)
        damaged += [(int(positions[i]), tail, int(where[i])) for i in bad]
    return damaged


def locate_all(sources: Sources, keys: NDArray[np.uint8]) -> Located:
    """Return the newest place of every key.

    Raises
    ------
    KeyError
        If a key is nowhere.
    """
    located = locate(sources, keys)
    if not located.found.all():
        first = keys[np.argmin(located.found)].tobytes().hex()
        n = int((~located.found).sum())
        raise KeyError(f"keys must be in the store, got {n} that are not, the first {first}")
    return located


def read_rows(
    sources: Sources,
    keys: NDArray[np.uint8],
    located: Located,
    space: Space,
    dtype: np.dtype[Any] | None = None,
) -> NDArray[Any]:
    """Return the rows of located keys, as `gather` does.

    Raises
    ------
    CorruptStoreError
        If a row fails its checksum; names file and offset.
    """
    rows, damaged = gather(sources, keys, located, space, dtype)
    if damaged:
        raise CorruptStoreError(damage(*damaged[0][1:]))
    return rows


def damage(source: Source, row: int) -> str:
    """Return where a damaged row lies, as a sentence."""
    return f"{source.path}, byte {source.offset(row)}: the row fails its checksum"


def as_keys(keys: Any) -> NDArray[np.uint8]:
    """Return keys as a contiguous array of shape (n, 16), uint8.

    Raises
    ------
    ValueError
        If they are neither that, nor an array of shape (n,) and dtype V16, nor a sequence of
        16-byte `bytes`.
    """
    if not isinstance(keys, np.ndarray):
        keys = list(keys)
        if not (set(map(type, keys)) <= {bytes} and set(map(len, keys)) <= {KEY_BYTES}):
            _refuse_items(keys)
        keys = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
    elif keys.dtype == _KEY and keys.ndim == 1:
        keys = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, KEY_BYTES)
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
        raise ValueError(
            f"keys must have shape (n, 16) and dtype uint8, got {keys.shape} {keys.dtype}"
        )
    return np.ascontiguousarray(keys)


def _refuse_items(keys: list[Any]) -> None:
    for key in keys:  # a subclass of bytes is as good as bytes
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise ValueError(f"keys must be 16 bytes each, got {key!r}")
