"""Rows of a store, with keys and names, in formats that other programs read."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from pyfeat.store._export_arrays import NAMES, write_npy, write_safetensors
from pyfeat.store._export_tables import write_hf, write_parquet
from pyfeat.store._exported import Block, Exported
from pyfeat.store._feature_store import FeatureStore
from pyfeat.store._item_lists import Where, fits
from pyfeat.store._layout import space_folder
from pyfeat.store._live import is_in, live_keys, live_rows
from pyfeat.store._names import Names

FORMATS: Mapping[str, Callable[[Exported, Path], None]] = {
    "npy": write_npy,
    "parquet": write_parquet,
    "safetensors": write_safetensors,
    "hf": write_hf,
}


@dataclass(frozen=True)
class Export:
    """What `export` wrote.

    Parameters
    ----------
    path : str
        The file or folder.
    rows : int
    bytes : int
        Size of all its files.
    """

    path: str
    rows: int
    bytes: int


def export(
    store: FeatureStore,
    out: str | os.PathLike[str],
    *,
    format: str = "npy",
    where: Where | None = None,
    dtype: DTypeLike | None = None,
) -> Export:
    """Write the rows of a space, with their keys and names, for other programs.

    Parameters
    ----------
    store : FeatureStore
        Open in any mode; what it sees now is written.
    out : path-like
        File or folder to be made.
    format : {"npy", "parquet", "safetensors", "hf"}, default="npy"
        - "npy": a folder with `rows.npy` (n, dim), `keys.npy` (n, 16) uint8, `names.jsonl` (a list
          of names on each line) and `space.json`;
        - "parquet": a file with the columns `key` (16 bytes), `names` (list of strings) and `row`
          (list of `dim` numbers);
        - "safetensors": a file with the tensors `rows` and `keys`, and beside it
          `OUT.names.jsonl`;
        - "hf": a folder for `datasets.load_from_disk`, with the columns of "parquet".
    where : str or callable, optional
        Only rows of inputs that fit (see `items_where`).
    dtype : {"float32", "float16"}, optional
        As for `FeatureStore.get`.

    Returns
    -------
    export : Export

    Raises
    ------
    ValueError
        If `out` is there already, or the names beside it, or there is no such format or dtype.
    ImportError
        If a package that the format needs is missing; the message says what to install.
    CorruptStoreError
        If a row fails its checksum; names file and offset.

    Notes
    -----
    Rows come in the order they lie on disk, each key once. They are read in blocks: memory is
    needed for those, and less than 100 bytes for each input to find its name. An input is a line
    of the store's lists; a row has as many names as it had inputs with its content, or none.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from pyfeat import FeatureStore, Space
    >>> from pyfeat.store import export
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with FeatureStore(f"{folder}/feats", Space(2)) as store:
    ...         store.put([b"0123456789abcdef"], np.ones((1, 2), np.float32))
    ...     export(store, f"{folder}/out").rows
    ...     np.load(f"{folder}/out/rows.npy")
    1
    array([[1., 1.]], dtype=float32)
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {list(FORMATS)}, got {format!r}")
    target = Path(out)
    beside = target.with_name(f"{target.name}.{NAMES}")
    for path in (target, beside) if format == "safetensors" else (target,):
        if os.path.lexists(path):
            raise ValueError(f"out must not be there yet, got {str(path)!r}")
    exported = _exported(store, where, dtype)
    hidden = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        FORMATS[format](exported, hidden)
        made = sorted(_made(hidden), reverse=True)  # it comes last itself
        size = sum(p.stat().st_size for m in made for p in (m.rglob("*") if m.is_dir() else [m]))
        for path in made:
            path.rename(path.with_name(target.name + path.name.removeprefix(hidden.name)))
    finally:
        _remove(hidden)
    return Export(str(target), exported.n, size)


def _made(hidden: Path) -> list[Path]:
    """Return a file or folder, and those beside it whose names begin with its own."""
    return list(hidden.parent.glob(f"{escape(hidden.name)}*"))


def _remove(hidden: Path) -> None:
    for path in _made(hidden):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _exported(store: FeatureStore, where: Where | None, dtype: DTypeLike | None) -> Exported:
    store.refresh()
    sources = store._sources()
    # The dtype is checked where `get` does it.
    item = store.get([], dtype=dtype).dtype
    names = Names(space_folder(store.path, store.space), None if where is None else fits(where))
    wanted = None if where is None else names.keys()
    n = sum(int(is_in(keys, wanted).sum()) for keys, _ in live_keys(sources))

    def blocks() -> Iterator[Block]:
        for keys, rows in live_rows(sources, store.space, wanted, np.dtype(item)):
            yield Block(keys, rows, names.of(keys))

    return Exported(n, store.space, np.dtype(item), blocks)
