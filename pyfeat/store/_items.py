"""Which inputs a job has seen: name, and the key of its row or why it has none.

Rows are found by content, never by name; this list is for people (labels from folders, results
with paths) and for what was put into quarantine.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyfeat._identity import KEY_BYTES, Space, canonical_json
from pyfeat.errors import StoreWarning
from pyfeat.store._layout import ITEMS, files, space_folder


@dataclass(frozen=True)
class Item:
    """One input of a job.

    Parameters
    ----------
    name : str
        Absolute path of the file.
    key : bytes of length 16, optional
        Key of its row; None when it has none.
    reason : str, optional
        Why it has no row; None when it has one.
    """

    name: str
    key: bytes | None = None
    reason: str | None = None


def item_line(item: Item) -> str:
    """Return an item as the list has it, in one line."""
    if item.key is not None:
        return canonical_json({"name": item.name, "key": item.key.hex()})
    return canonical_json({"name": item.name, "reason": item.reason})


def read_items(path: str | os.PathLike[str], space: Space) -> list[Item]:
    """Return what is known of every input, the latest word on each, in order of name.

    Warns
    -----
    StoreWarning
        If a line is not what `ItemLog` writes: it is left out.
    """
    folder = space_folder(Path(path), space)
    while True:
        try:
            return _read_lists(reversed(files(folder, ITEMS)))
        except FileNotFoundError:  # merged into another list just now
            continue


def _read_lists(lists: Iterable[Path]) -> list[Item]:
    known: dict[str, Item] = {}
    for file in lists:
        for number, item in parse_items(file):
            if item is None:
                damaged_line(file, number)
            else:
                known[item.name] = item
    return [known[name] for name in sorted(known)]


def parse_items(file: Path) -> Iterator[tuple[int, Item | None]]:
    """Yield (line number, item) of a list; None for a line that is damaged."""
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        yield number, parse_item(line)


def parse_item(line: bytes) -> Item | None:
    """Return the item that a line of a list tells of; None if it is damaged."""
    try:
        value = json.loads(line)
        key = bytes.fromhex(value["key"]) if "key" in value else None
        name, reason = value["name"], value.get("reason")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    has_row = reason is None and key is not None and len(key) == KEY_BYTES
    has_none = isinstance(reason, str) and key is None
    return Item(name, key, reason) if isinstance(name, str) and (has_row or has_none) else None


def damaged_line(file: Path, number: int) -> None:
    """Warn that a line of a list is left out."""
    message = f"{file}, line {number}: not an item of a store; it is left out"
    warnings.warn(message, StoreWarning, stacklevel=4)
