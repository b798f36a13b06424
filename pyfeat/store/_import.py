"""Rows from other programs become rows of a store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from pyfeat._identity import Space, content_key
from pyfeat.store._feature_store import FeatureStore
from pyfeat.store._item_log import write_items
from pyfeat.store._items import Item
from pyfeat.store._reading import Keys
from pyfeat.store._sources import as_keys

BLOCK = 8192


def import_rows(
    path: str | os.PathLike[str],
    space: Space,
    rows: ArrayLike,
    *,
    keys: Keys | None = None,
    names: Sequence[str | Sequence[str]] | None = None,
) -> int:
    """Put rows that were computed elsewhere into a store.

    Parameters
    ----------
    path : path-like
        Folder of the store; made when it is not there.
    space : Space
        What makes these rows comparable: their width, their dtype in the store, and in `parts` all
        that changed the numbers. Rows of other origin must get another space.
    rows : array-like of shape (n, dim)
        May be a memory map: blocks of it are read.
    keys : ndarray of shape (n, 16), uint8, or sequence of bytes of length 16, optional
        By default the keys of the contents of the files that `names` are.
    names : sequence of str, or of sequences of str, optional
        What the inputs were called, for labels and results.

    Returns
    -------
    n_rows : int

    Raises
    ------
    ValueError
        If neither keys nor names are given, their number or the shape of the rows does not fit, or
        without keys a name is no file.
    StoreError
        If the store cannot be written.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pyfeat import Space
    >>> from pyfeat.store import import_rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     keys = [b"0123456789abcdef", b"0123456789ABCDEF"]
    ...     import_rows(folder, Space(3, parts={"name": "mine"}), np.ones((2, 3)), keys=keys)
    2
    """
    values = rows if isinstance(rows, np.ndarray) else np.asarray(rows)
    if values.ndim != 2 or values.shape[1] != space.dim:
        raise ValueError(f"rows must have shape (n, {space.dim}), got {values.shape}")
    if keys is None and names is None:
        raise ValueError("keys or names must be given, got neither")
    called = None if names is None else [[n] if isinstance(n, str) else list(n) for n in names]
    found = as_keys(_keys_of(called or [])) if keys is None else as_keys(keys)
    for name, given in (("keys", found), ("names", called)):
        if given is not None and len(given) != len(values):
            raise ValueError(f"{name} must be one for each of {len(values)} rows, got {len(given)}")
    with FeatureStore(path, space) as store:
        for start in range(0, len(values), BLOCK):
            part = slice(start, start + BLOCK)
            store.put(found[part], np.asarray(values[part]))
    if called is not None:
        pairs = zip(called, map(bytes, found), strict=True)
        write_items(path, space, (Item(n, key) for of_one, key in pairs for n in of_one))
    return len(values)


def _keys_of(names: Sequence[Sequence[str]]) -> list[bytes]:
    """Return the keys of the contents of files."""
    missing = [n for of_one in names for n in (of_one or ["(no name)"]) if not Path(n).is_file()]
    if missing:
        raise ValueError(
            f"names must be files where keys are not given, got {missing[0]!r} and "
            f"{len(missing) - 1} more that are none"
        )
    return [content_key(Path(next(islice(of_one, 1))).read_bytes()) for of_one in names]
