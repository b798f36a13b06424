"""Many lists of items become few."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from pyfeat._model_file import replace_file
from pyfeat.errors import StoreWarning
from pyfeat.store._items import parse_item, parse_items
from pyfeat.store._layout import ITEMS, TEMPORARY, as_store_error, files
from pyfeat.store._merge import give_way, name_after, settled_files

# Of a merged list: its lines are held in memory while it is made.
MAX_BYTES = 64 << 20


def compact_items(folder: Path) -> tuple[int, int]:
    """Merge the lists of a space, oldest first; return how many there were and are.

    Of several words on one name in a merged list only the latest is kept. A list with a damaged
    line is left alone, and so is the order of all lists.
    """
    before = after = len(files(folder, ITEMS))
    for group in _groups(settled_files(folder, ITEMS, ITEMS + TEMPORARY)[::-1]):
        lines: dict[str, bytes] = {}
        for line in (line for file in group for line in file.read_bytes().splitlines()):
            if (item := parse_item(line)) is not None:  # `_groups` has seen to it
                lines.pop(item.name, None)
                lines[item.name] = line
        with as_store_error("merge lists of inputs", folder):
            replace_file(name_after(group[-1]), b"\n".join(lines.values()) + b"\n")
        give_way(group)
        after -= len(group) - 1
    return before, after


def _groups(lists: list[Path]) -> Iterator[list[Path]]:
    """Yield neighbours that become one list each."""
    group: list[Path] = []
    size = 0
    for file in lists:
        whole = _is_whole(file)
        if group and (not whole or size + file.stat().st_size > MAX_BYTES):
            yield from [group] if len(group) > 1 else []
            group, size = [], 0
        if whole:
            group.append(file)
            size += file.stat().st_size
    yield from [group] if len(group) > 1 else []


def _is_whole(file: Path) -> bool:
    for number, item in parse_items(file):
        if item is None:
            message = f"{file}, line {number}: not an item; the list is not merged before a repair"
            warnings.warn(message, StoreWarning, stacklevel=6)
            return False
    return True
