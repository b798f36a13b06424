"""What a store holds, told without reading its rows."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyfeat._identity import Space
from pyfeat.errors import StoreError
from pyfeat.store import _layout as layout
from pyfeat.store._item_lists import count_items
from pyfeat.store._items import Item
from pyfeat.store._live import count_rows
from pyfeat.store._lock import take
from pyfeat.store._reader import Reader


@dataclass(frozen=True)
class SpaceInfo:
    """What a store holds of one space.

    Parameters
    ----------
    space : str
        Its fingerprint.
    backbone : str or None
        Name of what computed the rows.
    layer : str
        Names of the layers, with their pooling where it is known.
    engine, precision : str or None
        What ran the network, and in which numbers.
    dim : int
    dtype : str
    rows : int
        Rows with different keys: what a view of all has.
    images : int
        Inputs that have a row, of whatever kind.
    quarantined : list of Item
        Inputs that have none, with the reason.
    segments, tails : int
        Files of sealed rows, and logs of writers.
    writers : int
        Logs whose writer lives; those of the others are recovered by the next writer.
    overwritten : int
        Rows that a newer one stands for: `compact` drops them.
    bytes : int
        Size of all files of the space.
    """

    space: str
    backbone: str | None
    layer: str
    engine: str | None
    precision: str | None
    dim: int
    dtype: str
    rows: int
    images: int
    quarantined: list[Item]
    segments: int
    tails: int
    writers: int
    overwritten: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON values."""
        bad = [{"path": i.name, "reason": i.reason} for i in self.quarantined]
        return asdict(self) | {"quarantined": bad}


def info(path: str | os.PathLike[str]) -> list[SpaceInfo]:
    """Say what a store holds.

    Parameters
    ----------
    path : path-like
        Folder of the store.

    Returns
    -------
    spaces : list of SpaceInfo
        In order of fingerprint.

    Raises
    ------
    StoreError
        If `path` is no store.

    Warns
    -----
    StoreWarning
        If the description of a space or a segment is damaged: it is left out.

    Notes
    -----
    Reads the keys of the segments, a part at a time, where there are several of them; the tails,
    which have no table of keys; and the lists of items.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pyfeat import FeatureStore, Space
    >>> from pyfeat.store import info
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with FeatureStore(folder, Space(2)) as store:
    ...         store.put([b"0123456789abcdef"], np.ones((1, 2), np.float32))
    ...     [(s.rows, s.segments, s.tails) for s in info(folder)]
    [(1, 1, 0)]
    """
    root = Path(path)
    layout.check_store(root)
    return [_info_of(layout.space_folder(root, space), space) for space in layout.read_spaces(root)]


def _info_of(folder: Path, space: Space) -> SpaceInfo:
    reader = Reader(folder, space)
    reader.refresh([])
    sources = reader.sources([])
    stored, rows = count_rows(sources)
    tails = layout.files(folder, layout.TAIL)
    images, bad = count_items(folder)
    parts = space.parts
    layer = parts.get("layer")
    return SpaceInfo(
        space=space.fingerprint,
        backbone=parts.get("name"),
        layer=", ".join(map(str, layer)) if isinstance(layer, list) else str(layer or "-"),
        engine=str(parts.get("engine", "torch")) if "precision" in parts else None,
        precision=parts.get("precision"),
        dim=space.dim,
        dtype=space.dtype,
        rows=rows,
        images=images,
        quarantined=bad,
        segments=len(layout.files(folder, layout.SEGMENT)),
        tails=len(tails),
        writers=sum(map(_is_alive, tails)),
        overwritten=stored - rows,
        bytes=layout.bytes_below(folder),
    )


def _is_alive(tail: Path) -> bool:
    try:
        held = take(tail, exclusive=False)
    except StoreError:  # sealed just now
        return False
    if held is None:
        return True
    held.close()
    return False
