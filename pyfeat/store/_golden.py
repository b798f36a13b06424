"""One row of a space that can be computed again anywhere, for `verify --recompute`."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat import _core
from pyfeat._identity import Space, canonical_json
from pyfeat._model_file import replace_file
from pyfeat.errors import CorruptStoreError
from pyfeat.store._layout import create_space, space_folder

GOLDEN = "golden.json"
FORMAT = "pyfeat-golden"


@dataclass(frozen=True)
class Golden:
    """A row, and the name of the input that it is of.

    Parameters
    ----------
    name : str
        Of an input that pyfeat makes itself, the same everywhere.
    row : ndarray of shape (dim,), float32
        As a store of the space gives it back.
    """

    name: str
    row: NDArray[np.float32]


def write_golden(path: str | os.PathLike[str], space: Space, golden: Golden) -> None:
    """Keep a row with a space of a store; an earlier one is replaced.

    Parameters
    ----------
    path : path-like
        Folder of the store, which is there.
    space : Space
    golden : Golden
    """
    row = np.ascontiguousarray(golden.row, "<f4").tobytes()
    value = {
        "format": FORMAT,
        "version": 1,
        "input": golden.name,
        "row": base64.b64encode(row).decode(),
        "space": json.loads(space.to_json()),
    }
    value["crc32c"] = _checksum(value)
    replace_file(create_space(Path(path), space) / GOLDEN, canonical_json(value).encode())


def read_golden(path: str | os.PathLike[str], space: Space) -> Golden | None:
    """Return the row that is kept with a space; None where there is none.

    Raises
    ------
    CorruptStoreError
        If its file is damaged.
    """
    file = space_folder(Path(path), space) / GOLDEN
    if not file.is_file():
        return None
    value = check_golden(file)
    row = np.frombuffer(base64.b64decode(value["row"]), "<f4")
    return Golden(value["input"], row.astype(np.float32))


def check_golden(file: Path) -> dict[str, Any]:
    """Return what the file of a golden row holds.

    Raises
    ------
    CorruptStoreError
        If it is damaged.
    """
    try:
        value: dict[str, Any] = json.loads(file.read_text())
        is_whole = value.pop("crc32c") == _checksum(value) and value["format"] == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptStoreError(f"{file}: not a golden row ({error})") from None
    if not is_whole:
        raise CorruptStoreError(f"{file}: the golden row fails its checksum")
    return value


def has_golden(path: str | os.PathLike[str], space: Space) -> bool:
    """Return whether a row is kept with a space."""
    return (space_folder(Path(path), space) / GOLDEN).is_file()


def _checksum(value: dict[str, Any]) -> str:
    return f"{_core.crc32c(canonical_json(value).encode()):08x}"
