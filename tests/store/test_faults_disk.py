"""A disk that is full, and one that takes nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat.errors import StoreError, StoreWarning
from pyfeat.store import Item, read_items, verify, write_items
from tests.small_disk import mount_small_disk

from .conftest import some_keys, some_rows

NOBODY = 65534
BATCH = 1000
FULL = r"\(No space left on device\): '.*"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mount_small_disk(tmp_path / "disk", "1m") as path:
        yield path


def fill(disk: Path) -> Path:
    """Take every free byte of a disk; return the file that has them."""
    path = disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        path.write_bytes(bytes(2 << 20))
    return path


def put_until_full(store: FeatureStore) -> int:
    """Put batches and flush each; return how many were flushed when the disk was full."""
    flushed: list[int] = []

    def put_batches() -> None:
        for n in range(1000):
            store.put(some_keys(BATCH, n), some_rows(BATCH, n))
            store.flush()
            flushed.append(n)

    with pytest.raises(StoreError, match=FULL) as full:
        put_batches()
    assert full.value.errno == errno.ENOSPC
    return len(flushed)


def check_batches(root: Path, batches: range | list[int], mode: str = "r") -> None:
    store = FeatureStore(root, mode=mode)
    for n in batches:
        np.testing.assert_array_equal(store.get(some_keys(BATCH, n)), some_rows(BATCH, n))


@pytest.mark.filterwarnings("ignore::pyfeat.errors.StoreWarning")
@pytest.mark.parametrize("segment_bytes", [1 << 20, 3 * BATCH * 12])
def test_full_disk_is_an_error_and_what_was_flushed_stays(
    disk: Path, space: Space, segment_bytes: int
) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(600_000))
    store = FeatureStore(disk / "store", space, segment_bytes=segment_bytes)
    n = put_until_full(store)
    assert n > 1
    check_batches(disk / "store", range(n))
    assert verify(disk / "store") == []
    ballast.unlink()
    store.put(some_keys(BATCH, n), some_rows(BATCH, n))
    store.close()
    check_batches(disk / "store", range(n + 1))
    assert verify(disk / "store") == []


def test_closing_on_a_full_disk_is_an_error_and_can_be_done_again(disk: Path, space: Space) -> None:
    store = FeatureStore(disk / "store", space)
    store.put(some_keys(BATCH, 0), some_rows(BATCH, 0))
    store.flush()
    ballast = fill(disk)
    with pytest.raises(StoreError, match=FULL):
        store.close()
    check_batches(disk / "store", [0])
    ballast.unlink()
    store.close()
    check_batches(disk / "store", [0])
    assert [Path(p).suffix for p in store.files()] == [".safetensors"]


def test_full_disk_keeps_no_writer_from_the_rows_of_a_dead_one(disk: Path, space: Space) -> None:
    # The store did not open: there was no room for the segment.
    with FeatureStore(disk / "alive", space) as writer:
        writer.put(some_keys(BATCH, 0), some_rows(BATCH, 0))
        writer.flush()
        shutil.copytree(disk / "alive", disk / "dead")
    ballast = fill(disk)
    with pytest.warns(StoreWarning, match="a tail was not sealed: .*" + FULL):
        store = FeatureStore(disk / "dead", space)
    np.testing.assert_array_equal(store.get(some_keys(BATCH, 0)), some_rows(BATCH, 0))
    with pytest.raises(StoreError, match=FULL):
        store.put(some_keys(BATCH, 1), some_rows(BATCH, 1))
    ballast.unlink()
    store.put(some_keys(BATCH, 1), some_rows(BATCH, 1))
    store.close()
    check_batches(disk / "dead", [0, 1], "a")
    assert not list((disk / "dead").glob("spaces/*/*.tail*"))


def test_store_cannot_be_made_on_a_full_disk(disk: Path, space: Space) -> None:
    fill(disk)
    with pytest.raises(StoreError, match="cannot (make a store|write to the store) " + FULL):
        FeatureStore(disk / "store", space)


def test_items_that_find_no_room_are_an_error_and_change_nothing(disk: Path, space: Space) -> None:
    one, more = [Item("a", None, "broken")], [Item(f"{i}", None, "b" * 100) for i in range(100)]
    write_items(disk / "store", space, one)
    fill(disk)
    with pytest.raises(StoreError, match="cannot write the list of inputs " + FULL):
        write_items(disk / "store", space, more)
    assert read_items(disk / "store", space) == one
    assert not list(disk.glob("store/spaces/*/.*"))


@pytest.fixture
def read_only(disk: Path, space: Space) -> Path:
    """A store on a disk that takes nothing: a segment, and the tail of a dead writer."""
    with FeatureStore(disk / "store", space) as store:
        store.put(some_keys(BATCH, 0), some_rows(BATCH, 0))
    store = FeatureStore(disk / "store", space)
    store.put(some_keys(BATCH, 1), some_rows(BATCH, 1))
    store.flush()
    shutil.copytree(disk / "store", disk / "dead")
    write_items(disk / "dead", space, [Item("a", None, "broken")])
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    return disk / "dead"


def test_read_only_disk_can_be_read(read_only: Path, space: Space) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_batches(read_only, [0, 1])
        assert len(FeatureStore(read_only, mode="r").view()) == 2 * BATCH
        assert verify(read_only) == []
        assert [i.name for i in read_items(read_only, space)] == ["a"]


def test_read_only_disk_refuses_rows_with_a_reason(read_only: Path, space: Space) -> None:
    # It did not open: the tail of the dead writer could not be locked.
    store = FeatureStore(read_only, space)
    np.testing.assert_array_equal(store.get(some_keys(BATCH, 1)), some_rows(BATCH, 1))
    reason = rf"\(Read-only file system\): '{re.escape(str(read_only))}"
    with pytest.raises(StoreError, match=reason):
        store.put(some_keys(BATCH, 2), some_rows(BATCH, 2))
    with pytest.raises(StoreError, match=reason):
        FeatureStore(read_only, Space(7))
    with pytest.raises(StoreError, match=reason):
        write_items(read_only, space, [Item("b", None, "broken")])
    with pytest.raises(StoreError, match=r"cannot make a store \(Read-only file system\)"):
        FeatureStore(read_only.parent / "new", space)


@contextmanager
def as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def shared_store(folder: Path, space: Space, mode: int) -> Path:
    """Return a store of root's with a dead writer's tail, in folders of that mode."""
    folder.chmod(0o755)
    writer = FeatureStore(folder / "alive", space)
    writer.put(some_keys(BATCH, 0), some_rows(BATCH, 0))
    writer.flush()
    shutil.copytree(folder / "alive", folder / "shared")
    for path in [folder / "shared", *(folder / "shared").rglob("*")]:
        if path.is_dir():
            path.chmod(mode)
    return folder / "shared"


def test_folder_of_another_user_can_be_read_and_refuses_rows(elsewhere: Path, space: Space) -> None:
    root = shared_store(elsewhere, space, 0o755)
    with as_nobody():
        check_batches(root, [0])
        with pytest.raises(StoreError, match=r"\(Permission denied\): '"):
            FeatureStore(root, space).put(some_keys(1), some_rows(1))
        with pytest.raises(StoreError, match=r"cannot make a store \(Permission denied\)"):
            FeatureStore(elsewhere / "new", space)


def test_tail_of_another_user_keeps_nobody_from_writing(elsewhere: Path, space: Space) -> None:
    # Its lock could not be tried, and the store did not open.
    root = shared_store(elsewhere, space, 0o777)
    with as_nobody():
        with FeatureStore(root, space) as store:
            store.put(some_keys(BATCH, 1), some_rows(BATCH, 1))
        check_batches(root, [0, 1])


def test_tail_that_may_not_be_read_is_left_out_by_name(elsewhere: Path, space: Space) -> None:
    root = shared_store(elsewhere, space, 0o777)
    (tail,) = root.glob("spaces/*/*.tail")
    tail.chmod(0o600)
    with as_nobody():
        with pytest.warns(StoreWarning, match=rf"a tail is left out: .*{tail.name}"):
            store = FeatureStore(root, space)
        store.put(some_keys(BATCH, 1), some_rows(BATCH, 1))
        assert len(store) == BATCH
