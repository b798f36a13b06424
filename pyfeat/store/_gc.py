"""Remove the spaces of a store that nobody needs any more."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyfeat import _core
from pyfeat.errors import CorruptStoreError, StoreError
from pyfeat.store import _layout as layout
from pyfeat.store._lock import administration, take

REMOVED = ".removed" + layout.TEMPORARY


@dataclass(frozen=True)
class Removal:
    """What `gc` did with one space.

    Parameters
    ----------
    space : str
        Its fingerprint; of a damaged space the name of its folder.
    backbone : str or None
    bytes : int
        Size of its files.
    removed : bool
        Whether they are gone; with `dry_run` whether they would be.
    reason : str
        Why it was kept, or removed.
    """

    space: str
    backbone: str | None
    bytes: int
    removed: bool
    reason: str


def gc(
    path: str | os.PathLike[str],
    keep: Sequence[str],
    *,
    dry_run: bool = False,
    everything: bool = False,
) -> list[Removal]:
    """Remove every space of a store but those to keep.

    A space whose writer lives is kept, and so is one whose description is damaged: nobody can say
    which it is. Rows that a reader or a view has open stay readable to it.

    Parameters
    ----------
    path : path-like
        Folder of the store.
    keep : sequence of str
        First digits of fingerprints.
    dry_run : bool, default=False
        Only say what would be removed.
    everything : bool, default=False
        That nothing is to be kept is meant so.

    Returns
    -------
    removals : list of Removal
        One for each space, in order of fingerprint.

    Raises
    ------
    ValueError
        If `keep` is empty without `everything`, or one of it is the beginning of no fingerprint.
    StoreError
        If `path` is no store, cannot be written, or is rearranged by somebody else.

    Notes
    -----
    A space goes in one step: its folder is renamed, and then emptied. What a crash leaves of it is
    removed by the next `gc`.

    Examples
    --------
    >>> import tempfile
    >>> from pyfeat import FeatureStore, Space
    >>> from pyfeat.store import gc
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for dim in (2, 3):
    ...         FeatureStore(folder, Space(dim)).close()
    ...     removed = [r.removed for r in gc(folder, [Space(2).fingerprint])]
    ...     FeatureStore.spaces(folder) == [Space(2)], sorted(removed)
    (True, [False, True])
    """
    root = Path(path)
    layout.check_store(root)
    if not keep and not everything:
        raise ValueError("keep must name a space, got none: everything=True removes all of them")
    if isinstance(keep, str):
        raise ValueError(f"keep must be a list of spaces, got {keep!r}: write [{keep!r}]")
    with administration(root):
        folders = layout.space_folders(root)
        _check_keep(keep, [name for name, _ in map(_identify, folders)])
        removals = [_collect(folder, keep, dry_run) for folder in folders]
        if not dry_run:
            for leftover in sorted((root / "spaces").glob(f"*{REMOVED}")):
                _empty(leftover)
    return removals


def _check_keep(keep: Sequence[str], names: Sequence[str]) -> None:
    for wanted in keep:
        if not wanted or not any(name.startswith(wanted) for name in names):
            have = [name[:12] for name in names]
            raise ValueError(f"keep must be first digits of spaces of {have}, got {wanted!r}")


def _identify(folder: Path) -> tuple[str, str | None]:
    """Return fingerprint and backbone of a space."""
    try:
        space = layout.read_space(folder)
    except CorruptStoreError:
        return folder.name, None
    return space.fingerprint, space.parts.get("name")


def _collect(folder: Path, keep: Sequence[str], dry_run: bool) -> Removal:
    name, backbone = _identify(folder)
    size = layout.bytes_below(folder)

    def kept(reason: str) -> Removal:
        return Removal(name, backbone, size, False, reason)

    if any(name.startswith(wanted) for wanted in keep):
        return kept("it is one to keep")
    try:
        layout.read_space(folder)
    except CorruptStoreError:
        return kept("its description is damaged")
    held = take(folder / layout.SPACE, exclusive=True)
    if held is None:
        return kept("its writer lives")
    try:
        if _has_living_tail(folder):
            return kept("its writer lives")
        if not dry_run:
            hidden = folder.with_name(folder.name + "-" + layout.new_id() + REMOVED)
            _core.rename_file(os.fsencode(folder), os.fsencode(hidden))
            _core.sync_folder_of(os.fsencode(hidden))
            _empty(hidden)
    finally:
        held.close()
    return Removal(name, backbone, size, True, "it is none of those to keep")


def _has_living_tail(folder: Path) -> bool:
    """Return whether a tail is locked: by a writer that did not say it was one."""
    for path in layout.files(folder, layout.TAIL):
        try:
            held = take(path, exclusive=True)
        except StoreError as error:
            if error.errno == errno.ENOENT:
                return True  # sealed just now
            raise
        if held is None:
            return True
        held.close()
    return False


def _empty(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            _empty(path)
        else:
            _core.remove_file(os.fsencode(path))
    _core.remove_folder(os.fsencode(folder))
    _core.sync_folder_of(os.fsencode(folder))
