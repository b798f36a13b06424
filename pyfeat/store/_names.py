"""The names of keys, for whoever writes rows out."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import Space
from pyfeat.store._items import Item, parse_item, read_lists
from pyfeat.store._layout import space_folder

# A place is the number of a list, and 40 bits of offset in it.
_OFFSET_BITS = 40
# A process may have some thousand files open, and a job of ten million inputs writes as many lists.
_MOST_OPEN = 128

T = TypeVar("T")


class Names:
    """Which inputs have a key, found in the lists of a space without holding these.

    Parameters
    ----------
    folder : Path
        Folder of the space.
    wanted : callable, optional
        Tells of an `Item` whether it counts.

    Notes
    -----
    Needs less than 100 bytes of memory for each input. Names are told apart by 64 bits of hash.
    """

    def __init__(self, folder: Path, wanted: Callable[[Item], bool] | None = None) -> None:
        self._folder = folder
        self._wanted = wanted
        self._read()

    def _read(self) -> None:
        read_lists(self._folder, self._read_lists)

    def _read_lists(self, lists: list[Path]) -> None:
        self._files = lists
        names, keys, places = array("q"), array("Q"), array("Q")
        for number, file in enumerate(self._files):
            offset = 0
            for line in _lines(file):
                if (item := parse_item(line)) is not None:
                    names.append(hash(item.name))
                    keys.append(int.from_bytes((item.key or b"")[:8], "big"))
                    places.append(number << _OFFSET_BITS | offset)
                offset += len(line)
        # What a list says of a name is overruled by what comes after it.
        _, last = np.unique(np.frombuffer(names, np.int64)[::-1], return_index=True)
        latest = len(names) - 1 - last
        order = latest[np.lexsort((latest, np.frombuffer(keys, np.uint64)[latest]))]
        self._keys = np.frombuffer(keys, np.uint64)[order]
        self._places = np.frombuffer(places, np.uint64)[order]

    def of(self, keys: NDArray[np.uint8]) -> list[list[str]]:
        """Return for each key the names of the inputs that have it.

        Parameters
        ----------
        keys : ndarray of shape (n, 16), uint8

        Returns
        -------
        names : list of list of str
            In the order of the lists; of a key without an input none.
        """
        return self._again_where_merged(lambda: self._find(keys))

    def keys(self) -> NDArray[np.void]:
        """Return the keys of all inputs that count, ascending, as V16."""
        found = self._again_where_merged(self._find_keys)
        return np.frombuffer(b"".join(sorted(found)), "V16")

    def _find_keys(self) -> set[bytes]:
        with closing(_Opened(self._files)) as opened:
            items = map(opened.item, np.sort(self._places))  # list after list
            return {item.key for item in items if self._counts(item) and item.key}

    def sample(self, n: int, random: np.random.Generator) -> list[Item]:
        """Return up to `n` inputs that count, each once, picked at random."""
        return self._again_where_merged(lambda: self._pick(n, random))

    def _again_where_merged(self, read: Callable[[], T]) -> T:
        while True:
            try:
                return read()
            except FileNotFoundError:  # a list was merged into another one just now
                self._read()

    def _pick(self, n: int, random: np.random.Generator) -> list[Item]:
        with closing(_Opened(self._files)) as opened:
            items = map(opened.item, random.permutation(self._places))
            return list(islice(filter(self._counts, items), n))

    def _counts(self, item: Item) -> bool:
        return item.key is not None and (self._wanted is None or self._wanted(item))

    def _find(self, keys: NDArray[np.uint8]) -> list[list[str]]:
        high = np.ascontiguousarray(keys[:, :8]).view(">u8").ravel().astype(np.uint64)
        begin = np.searchsorted(self._keys, high, "left")
        end = np.searchsorted(self._keys, high, "right")
        with closing(_Opened(self._files)) as opened:
            return [
                [
                    item.name
                    for item in map(opened.item, self._places[b:e])
                    if item.key == key and self._counts(item)
                ]
                for b, e, key in zip(begin, end, map(bytes, keys), strict=True)
            ]


class _Opened:
    """Lists that are opened when one of their lines is asked for, some at a time."""

    def __init__(self, lists: list[Path]) -> None:
        self._lists = lists
        self._handles: dict[int, BinaryIO] = {}

    def close(self) -> None:
        for handle in self._handles.values():
            handle.close()

    def item(self, place: np.uint64) -> Item:
        """Return the item at a place."""
        number, offset = divmod(int(place), 1 << _OFFSET_BITS)
        if number not in self._handles:
            if len(self._handles) == _MOST_OPEN:
                self._handles.pop(next(iter(self._handles))).close()
            self._handles[number] = self._lists[number].open("rb")
        handle = self._handles[number]
        handle.seek(offset)
        item = parse_item(handle.readline())
        if item is None:  # it was one when the list was read
            raise FileNotFoundError(str(self._lists[number]))
        return item


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        yield from lines


def sample_items(
    path: str | os.PathLike[str], space: Space, n: int, random: np.random.Generator
) -> list[Item]:
    """Return inputs that have a row, picked at random.

    Parameters
    ----------
    path : path-like
        Folder of the store.
    space : Space
    n : int
        How many; all where there are fewer.
    random : numpy Generator

    Returns
    -------
    items : list of Item
        Each once, in no order.
    """
    return Names(space_folder(Path(path), space)).sample(n, random)
