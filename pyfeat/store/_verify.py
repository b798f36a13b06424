"""Read every byte of a store and say what is damaged."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pyfeat._core import Tail
from pyfeat._identity import Space
from pyfeat.errors import CorruptStoreError, StoreError
from pyfeat.store._items import parse_items
from pyfeat.store._layout import (
    ITEMS,
    SEGMENT,
    SPACE,
    TAIL,
    TAIL_HEADER_BYTES,
    VERSION,
    check_store,
    files,
    read_space,
    row_bytes,
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
    found: list[Damage] = []
    for folder in sorted((root / "spaces").glob("*")):
        if not (folder / SPACE).is_file():
            continue
        try:
            space = read_space(folder)
        except CorruptStoreError as error:
            found.append(Damage(str(folder / SPACE), 0, str(error)))
            continue
        for file in files(folder, SEGMENT):
            found += _check_segment(file, space)
        for file in files(folder, TAIL):
            found += _check_tail(file, space)
        for file in files(folder, ITEMS):
            found += _check_items(file)
    return found


def _check_tail(path: Path, space: Space) -> list[Damage]:
    tail = Tail.open(os.fsencode(path), row_bytes(space))
    whole_header = tail.version() == VERSION or path.stat().st_size < TAIL_HEADER_BYTES
    header = [] if whole_header else [Damage(str(path), 0, f"no header of version {VERSION}")]
    reason = "a record fails its checksum"
    return header + [Damage(str(path), offset, reason) for offset in tail.damaged_offsets()]


def _check_items(path: Path) -> list[Damage]:
    bad = {number for number, item in parse_items(path) if item is None}
    offset, found = 0, []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if number in bad:
            found.append(Damage(str(path), offset, f"line {number} is not an item of a store"))
        offset += len(line)
    return found


def _check_segment(path: Path, space: Space) -> list[Damage]:
    try:
        segment = open_segment(path, space)
    except CorruptStoreError as error:
        return [Damage(str(path), 0, str(error))]
    except StoreError as error:
        return [Damage(str(path), path.stat().st_size, str(error))]
    return [Damage(str(path), offset, why) for offset, why in damaged_offsets(path, segment)]
