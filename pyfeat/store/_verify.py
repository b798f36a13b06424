"""Read every byte of a store and say what is damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyfeat._core import Tail
from pyfeat._identity import Space
from pyfeat.errors import CorruptStoreError, StoreError
from pyfeat.store._choices import CHOICE, check_choice
from pyfeat.store._golden import GOLDEN, check_golden
from pyfeat.store._items import parse_item
from pyfeat.store._layout import (
    CHOICES,
    ITEMS,
    MEMO,
    SEGMENT,
    SPACE,
    TAIL,
    TAIL_HEADER_BYTES,
    VERSION,
    check_store,
    files,
    read_space,
    row_bytes,
    space_folders,
)
from pyfeat.store._segment_file import damaged_offsets, open_segment


@dataclass(frozen=True)
class Damage:
    """One place of a store whose bytes are not those that were written.

    Parameters
    ----------
    path : str
        File.
    offset : int
        Byte in it.
    reason : str
        What fails there.
    """

    path: str
    offset: int
    reason: str


def verify(path: str | os.PathLike[str]) -> list[Damage]:
    """Check every row and every table of a store against its checksums. Changes nothing.

    Parameters
    ----------
    path : path-like
        Folder of the store.

    Returns
    -------
    damage : list of Damage
        Empty when every byte is as it was written.

    Raises
    ------
    StoreError
        If `path` is no store.
    CorruptStoreError
        If the store's marker is damaged.
    """
    root = Path(path)
    check_store(root)
    choices = sorted((root / CHOICES).glob(f"[!.]*/{CHOICE}"))
    found = [damage for file in choices for damage in _check_json(file, check_choice)]
    return found + [damage for folder in space_folders(root) for damage in _check_folder(folder)]


def _check_folder(folder: Path) -> list[Damage]:
    found: list[Damage] = []
    if (folder / GOLDEN).is_file():
        found += _check_json(folder / GOLDEN, check_golden)
    try:
        space = read_space(folder)
    except CorruptStoreError as error:
        return [*found, Damage(str(folder / SPACE), 0, str(error))]
    found += [damage for memo in space_folders(folder / MEMO) for damage in _check_folder(memo)]
    checks = ((SEGMENT, check_segment), (TAIL, check_tail), (ITEMS, lambda p, _: check_items(p)))
    for suffix, check in checks:
        for file in files(folder, suffix):
            try:
                found += check(file, space)
            except OSError as error:
                if error.errno != errno.ENOENT:  # sealed, or merged into another one, just now
                    raise
    return found


def _check_json(path: Path, check: Callable[[Path], Any]) -> list[Damage]:
    try:
        check(path)
    except CorruptStoreError as error:
        return [Damage(str(path), 0, str(error))]
    return []


def check_tail(path: Path, space: Space) -> list[Damage]:
    """Return what is damaged in the log of a writer."""
    tail = Tail.open(os.fsencode(path), row_bytes(space))
    whole_header = tail.version() == VERSION or path.stat().st_size < TAIL_HEADER_BYTES
    header = [] if whole_header else [Damage(str(path), 0, f"no header of version {VERSION}")]
    reason = "a record fails its checksum"
    return header + [Damage(str(path), offset, reason) for offset in tail.damaged_offsets()]


def check_items(path: Path) -> list[Damage]:
    """Return the lines of a list that are no items."""
    offset, found = 0, []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if parse_item(line) is None:
                found.append(Damage(str(path), offset, f"line {number} is not an item of a store"))
            offset += len(line)
    return found


def check_segment(path: Path, space: Space) -> list[Damage]:
    """Return what is damaged in a segment."""
    try:
        segment = open_segment(path, space)
    except CorruptStoreError as error:
        return [Damage(str(path), 0, str(error))]
    except StoreError as error:
        if error.errno == errno.ENOENT:
            raise
        return [Damage(str(path), path.stat().st_size, str(error))]
    return [Damage(str(path), offset, why) for offset, why in damaged_offsets(path, segment)]
