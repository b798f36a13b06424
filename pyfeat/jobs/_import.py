"""Rows in files become rows of a store."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import ROW_DTYPES, Space
from pyfeat.store import import_rows

PathLike = str | os.PathLike[str]


def import_files(
    store: PathLike,
    rows: PathLike,
    *,
    keys: PathLike | None = None,
    names: PathLike | None = None,
    name: str | None = None,
    dtype: str | None = None,
) -> tuple[Space, int]:
    """Put rows of a .npy file, or of a folder that `pyfeat.store.export` wrote, into a store.

    Parameters
    ----------
    store : path-like
        Folder of the store; made when it is not there.
    rows : path-like
        File of an array (n, dim), or folder with `rows.npy`, `keys.npy`, `names.jsonl` and
        `space.json`.
    keys : path-like, optional
        File of an array (n, 16) of uint8; by default the keys of the files that the names are.
    names : path-like, optional
        One line for each row; of a `.jsonl` file each line is a name, or a list of names, in JSON.
    name : str, optional
        What computed the rows: the part "name" of the space. A folder says it itself.
    dtype : {"float32", "float16", "bfloat16", "int8"}, optional
        Of the rows in the store; by default float16 where they are that, else float32.

    Returns
    -------
    space : Space
    n_rows : int

    Raises
    ------
    ValueError
        If a file is not as described, or `name` is missing.
    FileNotFoundError
        If a file is not there.
    """
    source = Path(rows)
    described = None
    if source.is_dir():
        described = Space.from_json((source / "space.json").read_text())
        keys = source / "keys.npy" if keys is None else keys
        names = source / "names.jsonl" if names is None else names
        source = source / "rows.npy"
    values = _array(source)
    if values.ndim != 2 or values.dtype.kind != "f":
        raise ValueError(
            f"rows must be floats of shape (n, dim), got {values.dtype} {values.shape} in {source}"
        )
    space = _space(values, described, name, dtype)
    known = None if keys is None else _array(Path(keys))
    called = None if names is None else _names(Path(names))
    return space, import_rows(store, space, values, keys=known, names=called)


def _array(path: Path) -> NDArray[Any]:
    try:
        loaded: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"an array must be a .npy file, got {str(path)!r}: {error}") from None
    if not isinstance(loaded, np.ndarray):
        raise ValueError(f"an array must be a .npy file, got the archive {str(path)!r}")
    return loaded


def _space(
    rows: NDArray[Any], described: Space | None, name: str | None, dtype: str | None
) -> Space:
    if described is not None and name is None and dtype is None:
        return described
    if name is None:
        raise ValueError("name must say what computed the rows, got none")
    kept = dtype or ("float16" if rows.dtype == np.float16 else "float32")
    if kept not in ROW_DTYPES:
        raise ValueError(f"dtype must be one of {list(ROW_DTYPES)}, got {kept!r}")
    return Space(rows.shape[1], kept, {"name": name, "source": "import"})


def _names(path: Path) -> list[str | list[str]]:
    # A name may hold what `splitlines` takes for the end of a line too.
    text = path.read_text("utf-8", errors="surrogateescape")
    lines = text.removesuffix("\n").split("\n") if text else []
    if path.suffix != ".jsonl":
        return list(lines)
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"names must be JSON on each line of {str(path)!r}: {error}") from None
