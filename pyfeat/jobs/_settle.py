"""Which files of a job need not be read: unchanged ones whose rows are there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyfeat.extract import Input, Outcome
from pyfeat.jobs._collected import Collected, Files
from pyfeat.store import FeatureStore, Marks, Memo, joined, marks_of

# Files asked about, and rows checked, at a time: what that needs of memory is small.
_FILES = 1 << 16
_ROWS = 1 << 13


@dataclass(frozen=True)
class Settled:
    """What a memo says of the inputs of a job.

    Parameters
    ----------
    hits : ndarray of shape (h,), int64
        Positions of files that have not changed and whose rows are in the store, ascending.
    keys : ndarray of shape (h, 16), uint8
        Their keys.
    rest : ndarray of shape (r,), int64
        Positions of all others, ascending.
    files : ndarray of shape (f,), int64
        Which of the rest are files: positions in `rest`, ascending.
    marks : Marks of f files
        How those looked before they were read.
    """

    hits: NDArray[np.int64]
    keys: NDArray[np.uint8]
    rest: NDArray[np.int64]
    files: NDArray[np.int64]
    marks: Marks


def settle(
    inputs: Sequence[Input], store: FeatureStore, memo: Memo, *, rehash: bool = False
) -> Settled:
    """Find the inputs that need not be read.

    Parameters
    ----------
    inputs : sequence of Input
    store : FeatureStore
        Rows that fail their checksum are not there: their inputs are among the rest.
    memo : Memo
    rehash : bool, default=False
        Take nothing from the memo: all inputs are the rest.
    """
    hits, keys, marks = [], [], []
    is_hit = np.zeros(len(inputs), bool)
    is_file = np.zeros(len(inputs), bool)
    for positions, paths in _files_among(inputs):
        part = marks_of(paths)
        found, known = memo.find(part)
        known &= not rehash
        known[known] = _are_intact(store, found[known])
        is_file[positions] = True
        is_hit[positions] = known
        hits.append(positions[known])
        keys.append(found[known])
        marks.append(part.take(np.flatnonzero(~known)))
    return Settled(
        np.concatenate([np.empty(0, np.int64), *hits]),
        np.concatenate([np.empty((0, 16), np.uint8), *keys]),
        np.flatnonzero(~is_hit),
        np.flatnonzero(is_file[~is_hit]),
        joined(marks),
    )


def _files_among(inputs: Sequence[Input]) -> Iterator[tuple[NDArray[np.int64], list[str]]]:
    """Yield positions and paths of the inputs that may be local files, some at a time."""
    parts = inputs.parts if isinstance(inputs, Collected) else [inputs]
    first = 0
    for part in parts:
        for begin in range(0, len(part), _FILES):
            end = min(len(part), begin + _FILES)
            if isinstance(part, Files):
                yield np.arange(first + begin, first + end), list(part.places[begin:end])
            else:
                get = part.__getitem__ if isinstance(part, Sequence) else part.input
                paths = [_path(get(i)) for i in range(begin, end)]
                at = [i for i, path in enumerate(paths) if path is not None]
                if at:
                    yield first + begin + np.array(at), [p for p in paths if p is not None]
        first += len(part)


def _path(item: Input) -> str | None:
    """Return the path of an input, if it may be a local file."""
    value = item.value
    if isinstance(value, str):
        return value if value == item.name else None  # a text
    return os.fsdecode(value) if isinstance(value, os.PathLike) else None


def _are_intact(store: FeatureStore, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
    there = store.contains(keys)
    for begin in range(0, len(keys), _ROWS):
        part = slice(begin, begin + _ROWS)
        there[part][there[part]] = store.get_intact(keys[part][there[part]])[1]
    return there


class Notes:
    """Tells a memo what became of the rest, once the store's list of inputs says it, too.

    Parameters
    ----------
    settled : Settled
    memo : Memo
    """

    def __init__(self, settled: Settled, memo: Memo) -> None:
        self._settled = settled
        self._memo = memo
        self._positions: list[int] = []
        self._keys: list[bytes] = []

    def add(self, outcome: Outcome) -> None:
        """Keep the key of one of the rest until `write`."""
        self._positions.append(outcome.position)
        self._keys.append(outcome.key or bytes(16))

    def write(self) -> None:
        """Note what was added. Its rows and its lines in the list are written."""
        positions = np.array(self._positions, np.int64)
        keys = np.frombuffer(b"".join(self._keys), np.uint8).reshape(-1, 16)
        self._positions.clear()
        self._keys.clear()
        files = self._settled.files
        if not len(files) or not len(positions):
            return
        at = np.minimum(np.searchsorted(files, positions), len(files) - 1)
        noted = files[at] == positions
        self._memo.note(self._settled.marks.take(at[noted]), keys[noted])
