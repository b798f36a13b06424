"""The lists of items of a space, without an object for each of ten million names."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import KEY_BYTES, Space, canonical_json
from pyfeat.store._items import Item, parse_item, read_lists
from pyfeat.store._layout import space_folder
from pyfeat.store._sorted_items import iter_items

Where = str | Callable[[Item], bool]

# A line of an input with a row: the keys of its JSON are sorted, so all are where they always are.
_WITH_KEY = b'{"key":"'
_KEY = slice(8, 8 + 2 * KEY_BYTES)
_NAME = slice(8 + 2 * KEY_BYTES + 2, -2)  # up to the bracket and the end of the line


def count_items(folder: Path) -> tuple[int, list[Item]]:
    """Return how many inputs have a row, and those in quarantine in order of name.

    Notes
    -----
    Needs 8 bytes of memory for each input. Names are told apart by 64 bits of hash: among ten
    million the number is one too small once in 300,000 stores.
    """
    return read_lists(folder, _count)


def _count(lists: list[Path]) -> tuple[int, list[Item]]:
    with_row = array("q")
    bad: dict[int, Item] = {}
    for file in lists:
        with file.open("rb") as handle:
            for line in handle:
                if line.startswith(_WITH_KEY):
                    name = hash(line[_NAME])
                    with_row.append(name)
                    if bad:
                        bad.pop(name, None)
                elif (item := parse_item(line)) is not None:
                    bad[hash(b'"name":' + canonical_json(item.name).encode())] = item
    names = np.sort(np.frombuffer(with_row, np.int64))
    first = np.ones(len(names), bool)
    first[1:] = names[1:] != names[:-1]
    spoilt = np.isin(names, np.fromiter(bad, np.int64, len(bad)))
    return int((first & ~spoilt).sum()), sorted(bad.values(), key=lambda item: item.name)


def quarantined(path: str | os.PathLike[str], space: Space) -> list[Item]:
    """Return the inputs that have no row, with the reason, in order of name.

    Parameters
    ----------
    path : path-like
        Folder of the store.
    space : Space

    Returns
    -------
    items : list of Item
    """
    return count_items(space_folder(Path(path), space))[1]


def items_where(path: str | os.PathLike[str], space: Space, where: Where) -> Iterator[Item]:
    """Yield the inputs with a row that fit, in order of name.

    Parameters
    ----------
    path : path-like
        Folder of the store.
    space : Space
    where : str or callable
        A glob on the whole name, in which `*` matches slashes too; or what tells of an `Item`
        whether it is wanted.

    Returns
    -------
    items : iterator of Item
        As `iter_items`.

    Raises
    ------
    TypeError
        If `where` is neither.
    """
    wanted = fits(where)
    return (i for i in iter_items(path, space) if i.key is not None and wanted(i))


def keys_where(path: str | os.PathLike[str], space: Space, where: Where) -> NDArray[np.uint8]:
    """Return the keys of the inputs that `items_where` yields, of shape (n, 16)."""
    keys = bytearray()
    for item in items_where(path, space, where):
        keys += item.key or b""
    return np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES)


def fits(where: Where) -> Callable[[Item], bool]:
    """Return what tells of an item whether it fits.

    Raises
    ------
    TypeError
        If `where` is neither a glob nor a callable.
    """
    if isinstance(where, str):
        glob = where
        return lambda item: fnmatchcase(item.name, glob)
    if not callable(where):
        raise TypeError(f"where must be a glob or a callable on Item, got {where!r}")
    return where
