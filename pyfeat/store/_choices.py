"""What was chosen for a store before it had a row, so that all who begin at once choose alike."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from blake3 import blake3

from pyfeat import _core
from pyfeat._identity import canonical_json
from pyfeat._model_file import make_folder, replace_file
from pyfeat.errors import CorruptStoreError, StoreError
from pyfeat.store import _layout as layout

CHOICE = "choice.json"
FORMAT = "pyfeat-choice"


def choice_file(path: str | os.PathLike[str], question: Mapping[str, Any]) -> Path:
    """Return the file that answers a question: it is there once somebody has chosen."""
    name = blake3(canonical_json(dict(question)).encode()).hexdigest()[:32]
    return Path(path) / layout.CHOICES / name / CHOICE


def read_choice(
    path: str | os.PathLike[str], question: Mapping[str, Any]
) -> tuple[str, ...] | None:
    """Return what was chosen; None where nothing was.

    Parameters
    ----------
    path : path-like
        Folder of a store, or of none yet.
    question : mapping
        JSON values: all that two must agree in for one choice to be that of both.

    Raises
    ------
    CorruptStoreError
        If its file is damaged.
    """
    file = choice_file(path, question)
    return tuple(check_choice(file)["choice"]) if file.is_file() else None


def claim_choice(
    path: str | os.PathLike[str], question: Mapping[str, Any], choice: tuple[str, ...]
) -> tuple[str, ...]:
    """Record a choice, unless another one is; return the one that holds for everybody.

    Parameters
    ----------
    path : path-like
        Folder of the store; made when it is not there.
    question : mapping
    choice : tuple of str

    Returns
    -------
    choice : tuple of str

    Raises
    ------
    StoreError
        If the store cannot be written.
    CorruptStoreError
        If the file of the other one is damaged.

    Notes
    -----
    A folder that holds the file is renamed to its final name, which fails where a folder with
    something in it has that name: of any number of processes one succeeds.
    """
    layout.create_store(Path(path))
    folder = choice_file(path, question).parent
    hidden = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}{layout.TEMPORARY}")
    value = {"format": FORMAT, "version": 1, "question": dict(question), "choice": list(choice)}
    value["crc32c"] = _checksum(value)
    with layout.as_store_error("record a choice", folder):
        make_folder(hidden)
        replace_file(hidden / CHOICE, canonical_json(value).encode())
        try:
            _core.rename_file(os.fsencode(hidden), os.fsencode(folder))
            _core.sync_folder_of(os.fsencode(folder))
        except StoreError as error:
            with suppress(StoreError):
                _core.remove_file(os.fsencode(hidden / CHOICE))
                _core.remove_folder(os.fsencode(hidden))
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    return read_choice(path, question) or choice


def set_choice_aside(file: Path) -> str:
    """Rename the folder of a damaged choice, so that the next job chooses; return the file."""
    folder = file.parent
    hidden = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}{layout.DAMAGED}")
    _core.rename_file(os.fsencode(folder), os.fsencode(hidden))
    _core.sync_folder_of(os.fsencode(hidden))
    return str(hidden / file.name)


def check_choice(file: Path) -> dict[str, Any]:
    """Return what the file of a choice holds.

    Raises
    ------
    CorruptStoreError
        If it is damaged.
    """
    try:
        value: dict[str, Any] = json.loads(file.read_text())
        is_whole = value.pop("crc32c") == _checksum(value) and value["format"] == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptStoreError(f"{file}: not a choice ({error}); without it one is made") from None
    if not is_whole:
        raise CorruptStoreError(f"{file}: the choice fails its checksum; without it one is made")
    return value


def _checksum(value: dict[str, Any]) -> str:
    return f"{_core.crc32c(canonical_json(value).encode()):08x}"
