"""A small space and rows for it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pyfeat import FeatureStore, Space
from pyfeat.errors import StoreError

DIM = 3


@pytest.fixture
def space() -> Space:
    return Space(DIM, parts={"name": "test"})


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """Return a folder in memory, where a sync costs nothing."""
    has_memory = Path("/dev/shm").is_dir()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if has_memory else None) as folder:
        yield Path(folder)


def some_keys(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)


def some_rows(n: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def put_one_by_one(
    root: Path,
    space: Space,
    n: int,
    *,
    goes_on: bool = True,
    on_flush: Callable[[int], None] = lambda n_flushed: None,
) -> list[int]:
    """Put n rows and flush each, into tails of two rows; return the rows that were flushed.

    After an error it stops, or it goes on with the next row. An error must have a number.
    """
    store, flushed, waiting = None, [], []
    for i in range(n + 1):
        try:
            store = store or FeatureStore(root, space, segment_bytes=2 * 4 * DIM)
            if i == n:
                store.close()
                break
            store.put(some_keys(n)[i : i + 1], some_rows(n)[i : i + 1])
            waiting.append(i)
            store.flush()
        except StoreError as error:
            assert error.errno is not None, error  # noqa: PT017
            if not goes_on:
                break
        else:
            flushed += waiting
            waiting = []
            on_flush(len(flushed))
    return flushed
