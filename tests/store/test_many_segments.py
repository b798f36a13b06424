"""Look-ups in a store of many segments, before and after their keys are mapped in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pyfeat import FeatureStore, Space

from .conftest import some_keys

SEGMENTS, ROWS = 7, 300
Keys = NDArray[np.uint8]


def sequential(n: int) -> Keys:
    """Keys that are no hashes: 0, 1, 2 ... as big-endian numbers."""
    keys = np.zeros((n, 16), np.uint8)
    keys[:, 8:] = np.arange(n, dtype=">u8").view(np.uint8).reshape(n, 8)
    return keys


def alike(n: int) -> Keys:
    """Hashes in pairs that a map takes for one: equal but for a byte in the middle."""
    keys = some_keys(n)
    keys[1::2] = keys[::2][: len(keys[1::2])]
    keys[1::2, 10] ^= 1
    return keys


KINDS = {"hashes": some_keys, "sequential": sequential, "alike": alike}


@pytest.fixture(params=KINDS)
def keys(request: pytest.FixtureRequest) -> Keys:
    return KINDS[request.param](ROWS * (SEGMENTS + 1) // 2)


@pytest.fixture(params=[1, 200], ids=["asked once", "asked often"])
def store(tmp_path: Path, keys: Keys, request: pytest.FixtureRequest) -> FeatureStore:
    """Segments of 300 rows, each of which begins in the middle of the one before."""
    for i in range(SEGMENTS):
        with FeatureStore(tmp_path, Space(1)) as writing:
            part = keys[i * ROWS // 2 : i * ROWS // 2 + ROWS]
            writing.put(part, np.full((len(part), 1), i, np.float32))
    opened = FeatureStore(tmp_path, mode="r")
    for _ in range(request.param):
        opened.contains(keys[:64])
    return opened


def newest(n: int) -> NDArray[np.float32]:
    """Number of the last segment that holds each key."""
    return np.minimum(np.arange(n) // (ROWS // 2), SEGMENTS - 1).astype(np.float32)


def test_every_key_is_found_and_no_other(store: FeatureStore, keys: Keys) -> None:
    absent = keys.copy()
    absent[:, 9] ^= 0x80
    assert store.contains(keys).all()
    assert not store.contains(absent).any()


def test_the_newest_row_of_a_key_is_read(store: FeatureStore, keys: Keys) -> None:
    np.testing.assert_array_equal(store.get(keys)[:, 0], newest(len(keys)))


def test_keys_come_once_in_the_order_they_were_written(store: FeatureStore, keys: Keys) -> None:
    np.testing.assert_array_equal(store.keys(), keys)
    assert len(store) == len(keys)


def test_keys_of_a_tail_come_after_those_that_are_sealed(store: FeatureStore, keys: Keys) -> None:
    fresh = some_keys(5, seed=9)
    writing = FeatureStore(store.path, Space(1))
    writing.put(np.concatenate([keys[3:4], fresh]), np.zeros((6, 1), np.float32))
    np.testing.assert_array_equal(writing.keys(), np.concatenate([keys, fresh]))
    assert len(writing) == len(keys) + 5


def test_what_was_sealed_later_is_found(store: FeatureStore, keys: Keys) -> None:
    fresh = some_keys(5, seed=9)
    with FeatureStore(store.path, Space(1)) as writing:
        writing.put(fresh, np.zeros((5, 1), np.float32))
    assert not store.contains(fresh).any()
    store.refresh()
    assert store.contains(fresh).all()
    assert store.contains(keys).all()
