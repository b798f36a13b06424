"""Which files of a job need not be read: unchanged ones whose rows are there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyfeat.extract import Input
from pyfeat.store import FeatureStore, Marks, Memo, joined, marks_of

# Files asked about, and rows checked, at a time: what that needs of memory is small.
_FILES = 1 << 16
_ROWS = 1 << 13
_NOWHERE = "/\0"  # no file has such a name


@dataclass(frozen=True)
class Settled:
    """What a memo says of the inputs of a job.

    Parameters
    ----------
    hits : ndarray of shape (h,), int64
        Positions of inputs that have not changed and whose rows are in the store, ascending.
    keys : ndarray of shape (h, 16), uint8
        Their keys.
    rest : ndarray of shape (r,), int64
        Positions of all others, ascending.
    marks : Marks of r files
        How those looked before they were read.
    """

    hits: NDArray[np.int64]
    keys: NDArray[np.uint8]
    rest: NDArray[np.int64]
    marks: Marks

    def note(self, memo: Memo, positions: NDArray[np.int64], keys: NDArray[np.uint8]) -> None:
        """Note inputs of the rest, by their positions, whose rows and items are in the store."""
        memo.note(self.marks.take(np.searchsorted(self.rest, positions)), keys)


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
    hits, keys, rest, marks = [], [], [], []
    for begin in range(0, len(inputs), _FILES):
        part = marks_of([_path(item) for item in inputs[begin : begin + _FILES]])
        found, known = memo.find(part)
        known &= not rehash
        known[known] = _are_intact(store, found[known])
        hits.append(begin + np.flatnonzero(known))
        keys.append(found[known])
        left = np.flatnonzero(~known)
        rest.append(begin + left)
        marks.append(part.take(left))
    return Settled(
        np.concatenate([np.empty(0, np.int64), *hits]),
        np.concatenate([np.empty((0, 16), np.uint8), *keys]),
        np.concatenate([np.empty(0, np.int64), *rest]),
        joined(marks),
    )


def _path(item: Input) -> str:
    """Return the path of an input that is a local file."""
    value = item.value
    if isinstance(value, str):
        return value if value == item.name else _NOWHERE  # a text, else
    return os.fsdecode(value) if isinstance(value, os.PathLike) else _NOWHERE


def _are_intact(store: FeatureStore, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
    there = store.contains(keys)
    for begin in range(0, len(keys), _ROWS):
        part = slice(begin, begin + _ROWS)
        there[part][there[part]] = store.get_intact(keys[part][there[part]])[1]
    return there
