"""Write rows of segments into a new segment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyfeat import _core
from pyfeat._core import Segment
from pyfeat._identity import Space
from pyfeat.store import _layout as layout
from pyfeat.store._sources import Located

# Of a segment that is being written; its writer holds the lock of the tail.
SEALING = layout.TAIL + ".seal" + layout.TEMPORARY
# Only who holds the lock of `administration` makes these: what is there is left of a crash.
MERGING = ".merge" + layout.TEMPORARY


def settled_files(folder: Path, suffix: str, hidden: str) -> list[Path]:
    """Return the files of one kind that no file in the making will come between, newest first.

    What is written gets its name once its hidden file is there, which begins with an earlier time.
    Between two equal listings the hidden files are listed: what is in neither of these gets a name
    that is later than the oldest of them, or than all that were listed.
    """
    while True:
        found = layout.files(folder, suffix)
        unwritten = [p.name.lstrip(".") for p in layout.files(folder, hidden)]
        if found == layout.files(folder, suffix):
            return [p for p in found if not unwritten or p.name < min(unwritten)]


def give_way(paths: Sequence[Path]) -> None:
    """Remove files of one folder: newer ones hold what they held."""
    if paths:
        layout.begin_generation(paths[0].parent)
    for path in paths:
        _core.remove_file(os.fsencode(path))


def name_after(path: Path) -> Path:
    """Return a name for a file that comes right after one, and before all that are newer.

    What was put since the merged rows were listed still wins over them.
    """
    time, suffix = path.name.partition("-")[0], path.name.partition(".")[2]
    token = layout.token_of(layout.new_id())
    return path.with_name(f"{int(time, 16) + 1:016x}-{token}.{suffix}")


def write_merged(
    newest: Path,
    space: Space,
    segments: Sequence[Segment],
    keys: NDArray[np.uint8],
    located: Located,
) -> None:
    """Write rows into a segment that takes the place of `newest` in the order of age.

    Raises
    ------
    StoreError
        If the disk refuses, or a row fails its checksum.
    """
    target = name_after(newest)
    _core.merge(
        list(segments),
        keys,
        located.source,
        located.row,
        os.fsencode(target.with_name(target.name + MERGING)),
        os.fsencode(target),
        layout.SAFETENSORS_DTYPE[space.dtype],
        space.dim,
        space.fingerprint,
    )
