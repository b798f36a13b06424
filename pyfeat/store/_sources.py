"""Where rows lie: sealed segments and tails, newest first, asked one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._config import num_threads
from pyfeat._core import Segment, Tail
from pyfeat._identity import Space

Source = Segment | Tail


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


def locate(sources: Sequence[Source], keys: NDArray[np.uint8]) -> Located:
    """Return the newest place of every key; `sources` are newest first."""
    source = np.full(len(keys), -1, np.int64)
    row = np.full(len(keys), -1, np.int64)
    open_positions = np.arange(len(keys))
    for number, candidate in enumerate(sources):
        if not len(open_positions):
            break
        rows = candidate.find(keys[open_positions])
        hit = rows >= 0
        source[open_positions[hit]] = number
        row[open_positions[hit]] = rows[hit]
        open_positions = open_positions[~hit]
    return Located(source, row)


def gather(
    sources: Sequence[Source], keys: NDArray[np.uint8], located: Located, space: Space
) -> tuple[NDArray[Any], list[tuple[int, Source, int]]]:
    """Read the rows of located keys.

    Returns
    -------
    rows : ndarray of shape (n, dim)
        Rows of keys that are nowhere are not written.
    damaged : list of (position, source, row)
        Rows that fail their checksum.
    """
    rows = np.empty((len(keys), space.dim), space.dtype)
    out = rows.view(np.uint8).reshape(len(keys), space.dim * rows.itemsize)
    damaged: list[tuple[int, Source, int]] = []
    for number in np.unique(located.source[located.found]):
        positions = np.flatnonzero(located.source == number)
        where = located.row[positions]
        source = sources[number]
        bad = source.gather(keys[positions], where, positions, out, num_threads())
        damaged += [(int(positions[i]), source, int(where[i])) for i in bad]
    return rows, damaged


def as_keys(keys: Any) -> NDArray[np.uint8]:
    """Return keys as a contiguous array of shape (n, 16), uint8.

    Raises
    ------
    ValueError
        If they are neither that nor a sequence of 16-byte `bytes`.
    """
    if not isinstance(keys, np.ndarray):
        keys = list(keys)
        if any(not isinstance(k, bytes) or len(k) != 16 for k in keys):
            bad = next(k for k in keys if not isinstance(k, bytes) or len(k) != 16)
            raise ValueError(f"keys must be 16 bytes each, got {bad!r}")
        keys = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != 16:
        raise ValueError(
            f"keys must have shape (n, 16) and dtype uint8, got {keys.shape} {keys.dtype}"
        )
    return np.ascontiguousarray(keys)
