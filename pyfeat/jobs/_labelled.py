"""Rows of a store with their labels or names, without an object for each of them."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import KEY_BYTES, Space
from pyfeat.store import FeatureStore, View, items_where

# Names that are objects at a time.
_BLOCK = 1 << 13


@dataclass(frozen=True)
class Labelled:
    """Rows of the inputs that have a label, in order of name.

    Parameters
    ----------
    view : View of n rows
    y : ndarray of shape (n,), str
    counts : dict of str to int
        Rows of each class, in order of class.
    unlabelled : int
        Inputs with a row and without a label.
    """

    view: View
    y: NDArray[Any]
    counts: dict[str, int]
    unlabelled: int


def labelled_rows(
    store: str | os.PathLike[str], space: Space, label_of: Callable[[str], str]
) -> Labelled:
    """Return the rows of inputs that have a label.

    Parameters
    ----------
    store : path-like
    space : Space
    label_of : callable
        Gives the label of an input by its name; "" where it has none.

    Notes
    -----
    Holds key and place of each row and the number of its class, 40 bytes, and `y`, which is 4 bytes
    for each letter of the longest label.
    """
    keys, numbers, unlabelled = bytearray(), array("q"), 0
    classes: dict[str, int] = {}
    for item in items_where(store, space, "*"):
        label = label_of(item.name)
        if label and item.key:
            keys += item.key
            numbers.append(classes.setdefault(label, len(classes)))
        else:
            unlabelled += 1
    codes = np.frombuffer(numbers, np.int64)
    counts = np.bincount(codes, minlength=len(classes)).tolist()
    return Labelled(
        _view(store, space, keys),
        np.array(list(classes), str)[codes],
        dict(sorted(zip(classes, counts, strict=True))),
        unlabelled,
    )


def named_rows(store: str | os.PathLike[str], space: Space) -> tuple[View, NDArray[Any]]:
    """Return the rows of all inputs, and their names.

    Returns
    -------
    view : View of n rows, in order of name
    names : ndarray of shape (n,), str

    Notes
    -----
    Names are an array, 4 bytes for each letter of the longest; for a moment there are two of it.
    """
    keys, block = bytearray(), []
    parts: list[NDArray[Any]] = [np.empty(0, "U1")]
    for item in items_where(store, space, "*"):
        keys += item.key or b""
        block.append(item.name)
        if len(block) == _BLOCK:
            parts.append(np.array(block))
            block.clear()
    if block:
        parts.append(np.array(block))
    return _view(store, space, keys), np.concatenate(parts)


def _view(store: str | os.PathLike[str], space: Space, keys: bytearray) -> View:
    found = np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES)
    return FeatureStore(store, space, mode="r").view(found)
