"""Remove what writers that died have left half written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pyfeat import _core
from pyfeat.errors import StoreError
from pyfeat.store import _layout as layout
from pyfeat.store._golden import GOLDEN
from pyfeat.store._lock import take
from pyfeat.store._merge import MERGING, SEALING

_REPLACED = (layout.MARKER, layout.SPACE, layout.GENERATION, GOLDEN)


def remove_leftovers(root: Path) -> None:
    """Remove the hidden files of a store whose writers are dead.

    The caller holds its lock. Hidden tails are left to `Writer.recover`, removed spaces to `gc`.
    """
    _remove_from(root)
    for folder in (root / "spaces").glob("*"):
        if not folder.name.endswith(layout.TEMPORARY):
            _remove_from(folder)
            if (folder / layout.MEMO).is_dir():
                remove_leftovers(folder / layout.MEMO)


def _remove_from(folder: Path) -> None:
    for path in layout.files(folder, layout.TEMPORARY):
        if path.name.endswith(MERGING):
            _core.remove_file(os.fsencode(path))
        elif path.name.endswith(SEALING):
            # Its tail goes last; where that is there, its writer or the next one goes on.
            if not path.with_name(path.name.removesuffix(SEALING) + layout.TAIL).exists():
                _core.remove_file(os.fsencode(path))
        elif _is_replacement(path.name):
            _remove_unless_locked(path)


def _is_replacement(name: str) -> bool:
    """Return whether a hidden file was to become one of a store, and is none of somebody else's."""
    return name.startswith(tuple(f".{file}." for file in _REPLACED)) or (
        name.startswith(".") and layout.ITEMS in name
    )


def _remove_unless_locked(path: Path) -> None:
    held = None
    with suppress(StoreError):  # it got its name just now, or is another user's
        held = take(path, exclusive=True)
    if held is not None:
        try:
            _core.remove_file(os.fsencode(path))
        finally:
            held.close()
