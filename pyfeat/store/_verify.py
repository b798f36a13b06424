"""Read every byte of a store and say what is damaged."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pyfeat._core import Tail
from pyfeat._identity import Space
from pyfeat.errors import CorruptStoreError, StoreError
from pyfeat.store._layout import (
    SEGMENT,
    TAIL,
    check_store,
    files,
    read_spaces,
    row_bytes,
    space_folder,
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
        If the store's marker or the description of a space is damaged.
    """
    root = Path(path)
    check_store(root)
    found: list[Damage] = []
    for space in read_spaces(root):
        folder = space_folder(root, space)
        for file in files(folder, SEGMENT):
            found += _check_segment(file, space)
        for file in files(folder, TAIL):
            tail = Tail.open(str(file), row_bytes(space))
            reason = "a record fails its checksum"
            found += [Damage(str(file), offset, reason) for offset in tail.damaged_offsets()]
    return found


def _check_segment(path: Path, space: Space) -> list[Damage]:
    try:
        segment = open_segment(path, space)
    except CorruptStoreError as error:
        return [Damage(str(path), 0, str(error))]
    except StoreError as error:
        return [Damage(str(path), path.stat().st_size, str(error))]
    return [Damage(str(path), offset, why) for offset, why in damaged_offsets(path, segment)]
