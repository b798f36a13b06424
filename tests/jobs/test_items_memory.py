"""What of a long list of inputs is in memory: keys and places, and no object for each input.

A block of lines is sorted at a time, here a twentieth of all: 30 bytes for each input.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat.jobs import _labelled
from pyfeat.jobs._labelled import labelled_rows, named_rows
from pyfeat.jobs._labels import folder_of
from pyfeat.store import ItemLog, _sorted_items, items_where

SPACE = Space(1)
LETTERS = len("/data/photos/000/000000.jpg")


@pytest.fixture(scope="module", params=[40_000, pytest.param(300_000, marks=pytest.mark.slow)])
def n(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, n: int) -> Path:
    root = tmp_path_factory.mktemp("long") / "feats"
    keys = np.random.default_rng(0).integers(0, 256, (n, 16), dtype=np.uint8)
    with FeatureStore(root, SPACE) as rows:
        rows.put(keys, np.zeros((n, 1), np.float32))
    order = np.random.default_rng(1).permutation(n)
    log = ItemLog(root, SPACE)
    log.add_rows([f"/data/photos/{i % 1000:03}/{i:06}.jpg" for i in order], keys[order])
    log.flush()
    return root


READS: dict[str, tuple[Callable[[Path], Any], float]] = {
    "items_where": (lambda root: sum(1 for _ in items_where(root, SPACE, "*")), 0),
    "view": (lambda root: len(FeatureStore(root, SPACE, mode="r").view(where="*")), 40),
    # Beyond key, place and class: labels of three letters.
    "fit": (lambda root: len(labelled_rows(root, SPACE, folder_of).y), 40 + 3 * 4 + 8),
    # An index holds the names; while they are put together there are two of them.
    "index": (lambda root: len(named_rows(root, SPACE)[1]), 40 + 2 * 4 * LETTERS),
}


@pytest.mark.parametrize("read", READS)
def test_an_input_of_a_long_list_takes_few_bytes(
    store: Path, n: int, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sorted_items, "BLOCK", n // 20)
    monkeypatch.setattr(_labelled, "_BLOCK", n // 40)
    call, most = READS[read]
    # The least of three: what happens once in a process is not of the list.
    assert min(peak_of(call, store, n) for _ in range(3)) / n < 30 + most


def peak_of(call: Callable[[Path], Any], store: Path, n: int) -> int:
    """Return the most bytes that were in use at a time."""
    tracemalloc.start()
    try:
        assert call(store) == n
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
