"""Which inputs a job has seen: name, and the key of its row or why it has none.

Rows are found by content, never by name; this list is for people (labels from folders, results
with paths) and for what was put into quarantine.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as json_text
from pathlib import Path
from typing import TypeVar

from pyfeat._identity import KEY_BYTES
from pyfeat.errors import StoreWarning
from pyfeat.store._layout import ITEMS, files

T = TypeVar("T")


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
    # Canonical JSON, at a third of the time: a job writes a line for every input.
    name = json_text(item.name)
    if item.key is not None:
        return f'{{"key":"{item.key.hex()}","name":{name}}}'
    return f'{{"name":{name},"reason":{json_text(item.reason or "")}}}'


def read_lists(folder: Path, read: Callable[[list[Path]], T]) -> T:
    """Return what `read` makes of the lists of a space, which it is given oldest first.

    It is called again where one was merged into another before it was opened.
    """
    while True:
        try:
            return read(list(reversed(files(folder, ITEMS))))
        except FileNotFoundError:
            continue


def parse_items(file: Path) -> Iterator[tuple[int, Item | None]]:
    """Yield (line number, item) of a list; None for a line that is damaged."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            yield number, parse_item(line)


def parse_item(line: bytes) -> Item | None:
    """Return the item that a line of a list tells of; None if it is damaged."""
    try:
        value = json.loads(line)
        key = bytes.fromhex(value["key"]) if "key" in value else None
        item = Item(value["name"], key, value.get("reason"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return item if _is_whole(item) else None


def _is_whole(item: Item) -> bool:
    name: object = item.name  # whatever the JSON had
    if item.key is None:
        return isinstance(name, str) and isinstance(item.reason, str)
    return isinstance(name, str) and item.reason is None and len(item.key) == KEY_BYTES


def damaged_line(file: Path, number: int) -> None:
    """Warn that a line of a list is left out."""
    message = f"{file}, line {number}: not an item of a store; it is left out"
    warnings.warn(message, StoreWarning, stacklevel=4)
