"""Make a damaged store whole again: what is good is kept, what is not is named and set aside."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyfeat import _core
from pyfeat._core import Tail
from pyfeat._identity import Space, canonical_json
from pyfeat._model_file import replace_file
from pyfeat.errors import CorruptStoreError, StoreWarning
from pyfeat.store import _layout as layout
from pyfeat.store import _sources as at
from pyfeat.store._choices import CHOICE, set_choice_aside
from pyfeat.store._golden import GOLDEN, check_golden
from pyfeat.store._items import parse_item
from pyfeat.store._leftovers import remove_leftovers
from pyfeat.store._lock import administration
from pyfeat.store._memo import Memo
from pyfeat.store._merge import name_after, write_merged
from pyfeat.store._reader import Reader
from pyfeat.store._salvage import mend_description, salvage_segment
from pyfeat.store._sorted_items import iter_items
from pyfeat.store._sources import Located
from pyfeat.store._verify import Damage, check_items, check_segment, verify
from pyfeat.store._writer import Writer


@dataclass(frozen=True)
class Loss:
    """A row, or a line of a list, that is gone.

    Parameters
    ----------
    path : str
        The damaged file, as it was called.
    offset : int
        Where in it.
    key : str or None
        Key of the row in hexadecimal digits, where it can be told.
    names : tuple of str
        Inputs that had that row.
    reason : str
    """

    path: str
    offset: int
    key: str | None
    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Repair:
    """What `repair` did.

    Parameters
    ----------
    found : list of Damage
        What was damaged before.
    aside : list of str
        Where the damaged files are now, for whoever wants to try more. No store reads them.
    lost : list of Loss
        What is in no file any more. A job that is run again computes these rows, and no others.
    left : list of Damage
        What is damaged still, because nothing here says what it was, or because its writer lives.
    """

    found: list[Damage]
    aside: list[str]
    lost: list[Loss]
    left: list[Damage]


class _Gone(NamedTuple):
    loss: Loss
    key_is_sure: bool


def repair(path: str | os.PathLike[str]) -> Repair:
    """Keep every good row of a store, and take damaged rows and tables out of it.

    Readers and writers go on meanwhile. Files of living writers are left alone.

    Parameters
    ----------
    path : path-like
        Folder of the store.

    Returns
    -------
    repair : Repair

    Raises
    ------
    StoreError
        If `path` is no store, cannot be written, or is rearranged by somebody else. What was mended
        until then stays mended.

    Notes
    -----
    - A segment is written anew from the rows whose checksum fits, under whatever damage of its
      header and tables, also when it was cut off; then it is called `.damaged`.
    - A tail of a dead writer is sealed as always.
    - Of a list the good lines are kept.
    - A description of a space is mended where one byte of it is wrong, or the golden row has a
      copy; else the next job that writes into the space mends it.
    - Of a choice of engine and precision nothing is kept: the next job chooses.

    A crash on the way leaves rows twice at most, which `compact` drops; run it again.

    Examples
    --------
    >>> import tempfile
    >>> from pyfeat import FeatureStore, Space
    >>> from pyfeat.store import repair
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     FeatureStore(folder, Space(2)).close()
    ...     repair(folder).found
    []
    """
    root = Path(path)
    aside: list[str] = []
    lost: list[Loss] = []
    try:
        layout.check_store(root)
    except CorruptStoreError:
        with administration(root):
            marker = _mended_marker(root)
    else:
        marker = None
    if marker is not None:
        aside.append(marker)
    with administration(root):  # of the new marker, where there is one
        remove_leftovers(root)
        found = verify(root)
        if marker is not None:
            found.insert(0, Damage(str(root / layout.MARKER), 0, "not the marker of a store"))
        damaged = {Path(d.path) for d in found}
        choices = {p for p in damaged if p.name == CHOICE}
        aside += [set_choice_aside(path) for path in sorted(choices)]
        for folder in sorted({p.parent for p in damaged - choices if p.parent != root}):
            _repair_folder(folder, sorted(p for p in damaged if p.parent == folder), aside, lost)
    return Repair(found, aside, lost, verify(root))


def _mended_marker(root: Path) -> str | None:
    """Write the marker of a store anew where it is damaged; return where the old one is now."""
    marker = root / layout.MARKER
    try:
        layout.check_store(root)
    except CorruptStoreError:
        # Which version it is, all its other files say too.
        if not any((root / "spaces").glob(f"*/{layout.SPACE}")):
            raise
        content = canonical_json({"format": layout.FORMAT, "version": layout.VERSION}).encode()
        return _rewrite(marker, content)
    return None


def _rewrite(path: Path, content: bytes) -> str:
    """Replace a file whose name must not be missing for a moment; keep what was in it."""
    damaged = path.with_name(path.name + layout.DAMAGED)
    replace_file(damaged, path.read_bytes())
    replace_file(path, content)
    return str(damaged)


def _set_aside(path: Path) -> str:
    layout.begin_generation(path.parent)
    damaged = path.with_name(path.name + layout.DAMAGED)
    _core.rename_file(os.fsencode(path), os.fsencode(damaged))
    _core.sync_folder_of(os.fsencode(damaged))
    return str(damaged)


def _repair_folder(folder: Path, damaged: list[Path], aside: list[str], lost: list[Loss]) -> None:
    if folder / GOLDEN in damaged:
        aside.append(_set_aside(folder / GOLDEN))
    space = _mended_space(folder, aside)
    if space is None:
        return
    gone = _recover(folder, space, aside)
    sealing = {layout.token_of(p.name) for p in layout.files(folder, layout.TAIL)}
    for path in layout.files(folder, layout.SEGMENT):
        if layout.token_of(path.name) not in sealing and (damage := check_segment(path, space)):
            gone += _repair_segment(path, space, damage)
            aside.append(_set_aside(path))
    for path in layout.files(folder, layout.ITEMS):
        if check_items(path):
            # What a memo knows is in the list: no job would write the line again.
            with Memo(folder.parents[1], space) as memo:
                memo.forget()
            lost += _repair_items(path)
            aside.append(_set_aside(path))
    lost += _told(folder, space, gone)


def _mended_space(folder: Path, aside: list[str]) -> Space | None:
    """Return the space of a folder, its description mended where that is possible."""
    try:
        return layout.read_space(folder)
    except CorruptStoreError:
        pass
    path = folder / layout.SPACE
    content = mend_description(path.read_bytes(), folder.name)
    if content is None and (folder / GOLDEN).is_file():
        content = canonical_json(check_golden(folder / GOLDEN)["space"]).encode()
    if content is None:
        return None
    aside.append(_rewrite(path, content))
    return layout.read_space(folder)


def _recover(folder: Path, space: Space, aside: list[str]) -> list[_Gone]:
    """Seal the tails of dead writers; return what of them is lost."""
    tails = {p: _lost_of_tail(p, space) for p in layout.files(folder, layout.TAIL)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)  # all that it warns of is among the losses
        Writer(folder, space, 1).recover()
    for path in tails:
        if (damaged := path.with_name(path.name + layout.DAMAGED)).is_file():
            aside.append(str(damaged))
    return [gone for path, lost in tails.items() if not path.exists() for gone in lost]


def _lost_of_tail(path: Path, space: Space) -> list[_Gone]:
    tail = Tail.open(os.fsencode(path), layout.row_bytes(space))
    content = path.read_bytes()
    # The checksum is of key and row together: which of them is wrong, it does not say.
    return [
        _Gone(
            Loss(str(path), o, content[o : o + 16].hex(), (), "a record fails its checksum"), False
        )
        for o in tail.damaged_offsets()
    ]


def _repair_segment(path: Path, space: Space, damage: list[Damage]) -> list[_Gone]:
    """Write the good rows of a segment into a new one; return the others."""
    segment = salvage_segment(path, space)
    if segment is None:
        reason = f"nothing of it can be read: {damage[0].reason}"
        return [_Gone(Loss(str(path), 0, None, (), reason), False)]
    keys, rows, claimed = segment.intact()
    write_merged(path, space, [segment], keys, Located(np.zeros(len(rows), np.int64), rows))
    good = np.zeros(len(segment), bool)
    good[rows] = True
    saved = set(map(bytes, keys))
    reason = "the row fails its checksum"
    sure = not any("tensor" in d.reason or "header" in d.reason for d in damage)
    return [
        # A key that belongs to another row is none of this one.
        _Gone(
            Loss(str(path), segment.offset(row), None if key in saved else key.hex(), (), reason),
            sure,
        )
        for row, key in ((int(r), bytes(claimed[r])) for r in np.flatnonzero(~good))
    ]


def _repair_items(path: Path) -> list[Loss]:
    lines = path.read_bytes().splitlines(keepends=True)
    good = [line.rstrip(b"\n") for line in lines if parse_item(line) is not None]
    if good:
        replace_file(name_after(path), b"\n".join(good) + b"\n")
    return [Loss(d.path, d.offset, None, (), d.reason) for d in check_items(path)]


def _told(folder: Path, space: Space, gone: list[_Gone]) -> list[Loss]:
    """Return the losses that no other file makes good, with the names of their inputs."""
    if not gone:
        return []
    reader = Reader(folder, space)
    reader.refresh([])
    sources = reader.sources([])
    names: dict[str, list[str]] = {}
    lost = {loss.key for loss, _ in gone}
    for item in iter_items(folder.parents[1], space):
        if item.key is not None and item.key.hex() in lost:
            names.setdefault(item.key.hex(), []).append(item.name)
    told = []
    for loss, sure in gone:
        key = loss.key if sure or loss.key in names else None
        if key is not None and at.locate(sources, at.as_keys([bytes.fromhex(key)])).found[0]:
            continue
        told.append(replace(loss, key=key, names=tuple(names.get(key or "", ()))))
    return told
