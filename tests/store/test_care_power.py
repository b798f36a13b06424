"""Power fails after every operation of compact, repair and gc: nothing that was there is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat.store import Item, compact, gc, read_items, repair, verify, write_items

from .conftest import DIM, some_keys, some_rows
from .power_loss import Disk, contents_of, rebuild, recorded

N = 2
OTHER = Space(DIM, parts={"name": "other"})
pytestmark = pytest.mark.filterwarnings("ignore::pyfeat.errors.StoreWarning")


@pytest.fixture
def store(tmp_path: Path, space: Space) -> Path:
    """Three segments, the last with new rows under the keys of the first; two lists."""
    for seed, row_seed in ((0, 0), (1, 1), (0, 99)):
        with FeatureStore(tmp_path / "feats", space) as opened:
            opened.put(some_keys(N, seed), some_rows(N, row_seed))
    for name in ("a", "b"):
        write_items(tmp_path / "feats", space, [Item(name, bytes(some_keys(1)[0]))])
    return tmp_path / "feats"


def check(root: Path, space: Space) -> None:
    opened = FeatureStore(root, space, mode="r")
    np.testing.assert_array_equal(opened.get(some_keys(N, 0)), some_rows(N, 99))
    np.testing.assert_array_equal(opened.get(some_keys(N, 1)), some_rows(N, 1))
    assert [i.name for i in read_items(root, space)] == ["a", "b"]


def after_every_operation(
    root: Path, do: Callable[[Path], object], check: Callable[[Path], None]
) -> None:
    """Do something; check what is left when the power fails, and that it can be done again."""
    before = contents_of(root)
    with recorded() as record:
        do(root)
    disk = Disk(root, before)
    seen: set[frozenset[tuple[str, bytes]]] = set()
    shutil.rmtree(root)
    for operation in [None, *record.operations]:
        if operation is not None:
            disk.do(operation)
        for left in disk.survivors():
            if (key := frozenset(left.items())) in seen:
                continue
            seen.add(key)
            rebuild(left, root)
            try:
                check(root)
                do(root)
                check(root)
            except Exception as error:
                raise AssertionError(f"lost after {operation}: {sorted(left)}") from error
            assert verify(root) == []
            shutil.rmtree(root)
    assert len(seen) > 1


def test_compact_loses_nothing_when_power_fails(store: Path, space: Space) -> None:
    after_every_operation(store, compact, lambda root: check(root, space))


def test_repair_loses_nothing_when_power_fails(store: Path, space: Space) -> None:
    path = sorted(store.glob("spaces/*/*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[30] ^= 1  # of the header: its rows are good, and no reader finds them
    path.write_bytes(content)

    def check_kept(root: Path) -> None:
        opened = FeatureStore(root, space, mode="r")
        np.testing.assert_array_equal(opened.get(some_keys(N, 0)), some_rows(N, 99))
        assert [i.name for i in read_items(root, space)] == ["a", "b"]
        if verify(root) == []:
            check(root, space)

    after_every_operation(store, repair, check_kept)


def test_gc_leaves_a_whole_space_or_none_when_power_fails(store: Path, space: Space) -> None:
    with FeatureStore(store, OTHER) as opened:
        opened.put(some_keys(N, 5), some_rows(N, 5))

    def check_both(root: Path) -> None:
        check(root, space)
        if OTHER in FeatureStore.spaces(root):
            opened = FeatureStore(root, OTHER, mode="r")
            np.testing.assert_array_equal(opened.get(some_keys(N, 5)), some_rows(N, 5))

    after_every_operation(store, lambda root: gc(root, [space.fingerprint]), check_both)
