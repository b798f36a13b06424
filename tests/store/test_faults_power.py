"""Power fails after every operation: what was acknowledged is there, and nothing is wrong."""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat import _core as core
from pyfeat.errors import StoreError, StoreWarning
from pyfeat.store import Item, read_items, verify, write_items

from .conftest import DIM, put_one_by_one, some_keys, some_rows
from .power_loss import Contents, Disk, Record, contents_of, rebuild, recorded

N = 5
TWO_ROWS = 4 * DIM * 2
pytestmark = pytest.mark.filterwarnings("ignore::pyfeat.errors.StoreWarning")


def put_and_flush(root: Path, space: Space, record: Record) -> list[int]:
    """Write N rows, each flushed; return those that were."""

    def acknowledge(n_flushed: int) -> None:
        while len(record.acknowledged) < n_flushed:
            record.acknowledge()

    return put_one_by_one(root, space, N, on_flush=acknowledge)


def states(root: Path, before: Contents, record: Record) -> Iterator[tuple[int, Contents]]:
    """Yield (operations done, what is left) for a loss of power after every operation."""
    disk = Disk(root, before)
    seen: set[tuple[int, frozenset[tuple[str, bytes]]]] = set()
    for n in range(len(record.operations) + 1):
        for left in disk.survivors():
            # The same bytes with fewer promises show nothing more.
            key = (record.promised(n), frozenset(left.items()))
            if key not in seen:
                seen.add(key)
                yield n, left
        if n < len(record.operations):
            disk.do(record.operations[n])


def opened(root: Path, space: Space, mode: str) -> FeatureStore | StoreError:
    try:
        return FeatureStore(root, space, mode=mode)
    except StoreError as error:
        return error


def check_rows(root: Path, space: Space, promised: int) -> None:
    """Check what a reader sees, then what a writer does that goes on."""
    keys, rows = some_keys(N), some_rows(N)
    for mode in ("r", "a"):
        store = opened(root, space, mode)
        if isinstance(store, StoreError):
            assert promised == 0
            assert mode == "r"
            assert str(root) in str(store)
            continue
        got, intact = store.get_intact(keys)
        assert intact[:promised].all()
        np.testing.assert_array_equal(got[intact], rows[intact])
    store.put(keys, rows)
    store.close()
    np.testing.assert_array_equal(FeatureStore(root, mode="r").get(keys), rows)
    assert verify(root) == []


def check_every_state(
    root: Path,
    before: Contents,
    record: Record,
    elsewhere: Path,
    check: Callable[[Path, int], None],
) -> int:
    count = 0
    for n, left in states(root, before, record):
        rebuild(left, elsewhere / "disk")
        try:
            check(elsewhere / "disk", record.promised(n))
        except Exception as error:
            done = record.operations[max(0, n - 2) : n]
            raise AssertionError(f"lost after {n} operations, the last {done}: {left}") from error
        shutil.rmtree(elsewhere / "disk")
        count += 1
    return count


def test_rows_acknowledged_before_power_fails_anywhere_are_there(
    tmp_path: Path, space: Space, elsewhere: Path
) -> None:
    with recorded() as record:
        put_and_flush(tmp_path, space, record)
    assert len(record.acknowledged) == N
    states = check_every_state(
        tmp_path, {}, record, elsewhere, lambda root, n: check_rows(root, space, n)
    )
    assert states > len(record.operations)


@pytest.mark.parametrize("kind", ["sync", "sync_folder"])
def test_a_store_that_left_out_one_kind_of_sync_would_be_caught(
    tmp_path: Path, space: Space, elsewhere: Path, kind: str
) -> None:
    with recorded() as record:
        put_and_flush(tmp_path, space, record)
    record.operations = [("none", *o[1:]) if o[0] == kind else o for o in record.operations]
    with pytest.raises(AssertionError, match="lost after"):
        check_every_state(
            tmp_path, {}, record, elsewhere, lambda root, n: check_rows(root, space, n)
        )


def test_newest_row_of_a_key_stays_the_newest_wherever_power_fails(
    tmp_path: Path, space: Space, elsewhere: Path
) -> None:
    key = some_keys(1)
    with recorded() as record, FeatureStore(tmp_path, space, segment_bytes=TWO_ROWS) as store:
        for row in some_rows(N):
            store.put(key, row[None])
            store.flush()
            record.acknowledge()

    def check(root: Path, promised: int) -> None:
        if promised == 0:
            return
        for mode in ("r", "a"):
            got = FeatureStore(root, space, mode=mode).get(key)
            assert (got == some_rows(N)[promised - 1 :]).all(axis=1).any()

    check_every_state(tmp_path, {}, record, elsewhere, check)


def test_two_writers_at_once_keep_their_rows_wherever_power_fails(
    tmp_path: Path, space: Space, elsewhere: Path
) -> None:
    with recorded() as record:
        one, other = (FeatureStore(tmp_path, space, segment_bytes=TWO_ROWS) for _ in range(2))
        for i in range(3):
            store = other if i % 2 else one
            store.put(some_keys(N)[i : i + 1], some_rows(N)[i : i + 1])
            store.flush()
            record.acknowledge()
        one.close()
        other.close()

    check_every_state(tmp_path, {}, record, elsewhere, lambda root, n: check_rows(root, space, n))


def dead_store(root: Path, space: Space, damage: bool) -> Contents:
    """Return a store with N rows in the tail of a writer that died, the last one damaged."""
    writer = FeatureStore(root / "alive", space)
    writer.put(some_keys(N), some_rows(N))
    writer.flush()
    left = contents_of(root / "alive")
    writer.close()
    (tail,) = (path for path in left if path.endswith(".tail"))
    if damage:
        left[tail] = left[tail][:-1] + bytes([left[tail][-1] ^ 1])
    return left


@pytest.mark.parametrize("damage", [False, True])
def test_recovery_that_loses_power_anywhere_loses_no_row(
    tmp_path: Path, space: Space, elsewhere: Path, damage: bool
) -> None:
    before = dead_store(tmp_path, space, damage)
    root = tmp_path / "dead"
    rebuild(before, root)
    with recorded() as record:
        FeatureStore(root, space).close()
    assert len(record.operations) > 5

    def check(found: Path, _: int) -> None:
        check_rows(found, space, N - damage)

    assert check_every_state(root, before, record, elsewhere, check) > len(record.operations)


def test_items_acknowledged_before_power_fails_anywhere_are_there(
    tmp_path: Path, space: Space, elsewhere: Path
) -> None:
    items = [Item(f"{i}.jpg", bytes([i]) * 16) for i in range(3)]
    with recorded() as record:
        for item in items:
            write_items(tmp_path, space, [item])
            record.acknowledge()

    def check(root: Path, promised: int) -> None:
        found = read_items(root, space)
        assert items[:promised] == found[:promised]
        assert found == items[: len(found)]

    assert check_every_state(tmp_path, {}, record, elsewhere, check) > len(record.operations)


def count_operations(root: Path, space: Space) -> int:
    root.mkdir()
    with recorded() as record:
        put_and_flush(root, space, record)
    return len(record.operations)


def test_one_failed_operation_and_then_a_loss_of_power_keep_what_was_flushed(
    space: Space, elsewhere: Path
) -> None:
    for n in range(1, count_operations(elsewhere / "whole", space) + 1):
        root = elsewhere / str(n)
        root.mkdir()
        with recorded() as record:
            core.fail_operation(n, errno.EIO, 7)
            try:
                flushed = put_and_flush(root, space, record)
            finally:
                core.fail_operation(0, 0)
        disk = Disk(root)
        for i, operation in enumerate(record.operations):
            disk.do(operation)
            if i + 1 not in (*record.acknowledged, len(record.operations)):
                continue
            promised = flushed[: record.promised(i + 1)]
            for left in disk.survivors(kept_names=False):
                rebuild(left, elsewhere / "disk")
                check_some(elsewhere / "disk", space, promised, f"{n} failed, lost after {i + 1}")
                shutil.rmtree(elsewhere / "disk")


def check_some(root: Path, space: Space, promised: list[int], what: str) -> None:
    store = opened(root, space, "r")
    if isinstance(store, StoreError):
        assert not promised, what
        return
    rows, intact = store.get_intact(some_keys(N))
    assert intact[promised].all(), what
    np.testing.assert_array_equal(rows[intact], some_rows(N)[intact], err_msg=what)


def test_rows_that_a_failed_sync_has_lost_are_named_and_not_sealed(
    tmp_path: Path, space: Space
) -> None:
    # They were sealed under the keys that came back from the disk, and the tail was removed.
    store = FeatureStore(tmp_path, space)
    store.put(some_keys(N), some_rows(N))
    core.fail_operation(1, errno.EIO)
    try:
        with pytest.raises(StoreError, match="cannot sync"):
            store.flush()
    finally:
        core.fail_operation(0, 0)
    tail = Path(next(iter(store.files())))
    content = bytearray(tail.read_bytes())
    record = (len(content) - 64) // N
    content[-record:] = bytes(record)  # as some file systems give pages that they could not write
    with tail.open("r+b") as f:
        f.write(content)
    with pytest.warns(StoreWarning, match=f"{tail.name}, byte {len(content) - record}: a record"):
        store.flush()
    np.testing.assert_array_equal(store.contains(some_keys(N)), np.arange(N) < N - 1)
    np.testing.assert_array_equal(store.get(some_keys(N)[:-1]), some_rows(N)[:-1])
    assert tail.with_name(tail.name + ".damaged").read_bytes() == content
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verify(tmp_path) == []
