"""The work of `transform`: rows of inputs in their order, from the store or computed now."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import Space, check_same_space
from pyfeat.backbones import Backbone
from pyfeat.errors import InputError
from pyfeat.extract._inputs import Input
from pyfeat.extract._progress import progress_of
from pyfeat.extract._run import RunOptions, run
from pyfeat.store import FeatureStore

Store = str | os.PathLike[str] | FeatureStore | None
Progress = bool | Callable[[int, int], None]


def rows_of(
    inputs: Sequence[Input],
    backbone: Backbone,
    store: tuple[Store, Space],
    options: RunOptions,
    *,
    raises: bool = True,
    progress: Progress = False,
) -> tuple[NDArray[Any], int]:
    """Return one row for each input, and how many inputs were cut.

    Parameters
    ----------
    inputs : sequence of Input
    backbone : Backbone
    store : tuple of path-like, FeatureStore or None, and Space
        Where rows are kept, and of which space they are.
    options : RunOptions
    raises : bool, default=True
        Whether an input that cannot be read raises; else its row is NaN.
    progress : bool or callable, default=False

    Raises
    ------
    InputError
        If an input cannot be read, and `raises`.
    SpaceError
        If the store is open and of another space.
    """
    rows = np.full((len(inputs), backbone.dim), np.nan, store[1].numpy_dtype)
    if not inputs:
        return rows, 0
    in_store: dict[int, bytes] = {}
    n_cut = 0
    with _opened(*store) as open_store:
        outcomes = run(inputs, backbone, open_store, options)
        with progress_of(progress, len(inputs)) as advance, closing(outcomes):
            for outcome in outcomes:
                if outcome.status == "bad" and raises:
                    raise InputError(inputs[outcome.position].name, outcome.reason)
                n_cut += outcome.cut
                if outcome.row is not None:
                    rows[outcome.position] = outcome.row
                elif outcome.key is not None:
                    in_store[outcome.position] = outcome.key
                advance(1)
        if open_store is not None and in_store:
            rows[list(in_store)] = open_store.get(list(in_store.values()))
    shaped = len(backbone.shapes) == 1
    return rows.reshape(-1, *backbone.shapes[0]) if shaped else rows, n_cut


@contextmanager
def _opened(store: Store, space: Space) -> Iterator[FeatureStore | None]:
    if store is None:
        yield None
    elif isinstance(store, FeatureStore):
        check_same_space(space, store.space, "store")
        yield store  # its owner closes it
    else:
        with FeatureStore(store, space) as opened:
            yield opened
