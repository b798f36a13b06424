"""Small files become large ones, and nothing that was acknowledged is lost on the way."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat import _core as core
from pyfeat.errors import StoreError, StoreWarning
from pyfeat.store import Item, compact, read_items, verify, write_items

from .conftest import DIM, some_keys, some_rows

PARTS = 4
N = 3


def fill(root: Path, space: Space) -> None:
    """Make a segment and a list for each part; the last one puts new rows under the first keys."""
    for seed in range(PARTS):
        with FeatureStore(root, space) as store:
            store.put(some_keys(N, seed), some_rows(N, seed))
        write_items(root, space, [Item(f"{seed}", bytes(some_keys(1, seed)[0]))])
    with FeatureStore(root, space) as store:
        store.put(some_keys(N, 0), some_rows(N, 99))
    write_items(root, space, [Item("0", bytes(some_keys(1, 7)[0]))])


def check(root: Path, space: Space) -> None:
    """Every key has its latest row, every name its latest key, and no byte is wrong."""
    store = FeatureStore(root, space, mode="r")
    for seed in range(PARTS):
        np.testing.assert_array_equal(store.get(some_keys(N, seed)), some_rows(N, seed or 99))
    assert len(store) == N * PARTS
    keys = {i.name: i.key for i in read_items(root, space)}
    assert keys == {f"{s}": bytes(some_keys(1, s or 7)[0]) for s in range(PARTS)}
    assert verify(root) == []


def segments(root: Path) -> list[Path]:
    return sorted(root.glob("spaces/*/*.safetensors"))


@pytest.fixture
def store(tmp_path: Path, space: Space) -> Path:
    fill(tmp_path / "feats", space)
    return tmp_path / "feats"


def test_small_segments_become_one_with_the_latest_rows(store: Path, space: Space) -> None:
    (done,) = compact(store)
    assert (done.segments, done.dropped) == ((PARTS + 1, 1), N)
    check(store, space)


def test_lists_become_one_with_the_latest_words(store: Path) -> None:
    (done,) = compact(store)
    assert done.lists == (PARTS + 1, 1)
    (only,) = store.glob("spaces/*/*.items.jsonl")
    assert len(only.read_bytes().splitlines()) == PARTS


def test_second_compact_changes_nothing(store: Path) -> None:
    compact(store)
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    (done,) = compact(store)
    assert {p: p.read_bytes() for p in store.rglob("*") if p.is_file()} == before
    assert (done.segments, done.dropped) == ((1, 1), 0)


def test_merged_segments_stay_below_the_limit(store: Path, space: Space) -> None:
    limit = 2 * segments(store)[0].stat().st_size + 1
    compact(store, segment_bytes=limit)
    assert 1 < len(segments(store)) < PARTS
    assert all(p.stat().st_size <= limit for p in segments(store))
    check(store, space)


def test_large_segment_without_overwritten_rows_is_left_alone(tmp_path: Path, space: Space) -> None:
    for seed in range(2):
        with FeatureStore(tmp_path, space) as store:
            store.put(some_keys(N, seed), some_rows(N, seed))
    before = segments(tmp_path)
    compact(tmp_path, segment_bytes=before[0].stat().st_size)
    assert segments(tmp_path) == before


def test_large_segment_with_overwritten_rows_is_written_anew(store: Path, space: Space) -> None:
    with FeatureStore(store, space) as opened:
        opened.put(some_keys(1, 1), some_rows(N, 1)[:1])
    (done,) = compact(store, segment_bytes=1)
    assert done.dropped == N + 1
    check(store, space)


def test_row_put_after_the_segments_were_listed_wins(store: Path, space: Space) -> None:
    # A merged segment that was newer than it would bring the old row back.
    newest = segments(store)[-1]
    compact(store)
    (merged,) = segments(store)
    assert newest.name < merged.name
    assert int(merged.name[:16], 16) == int(newest.name[:16], 16) + 1


def test_all_dtypes_are_merged(tmp_path: Path) -> None:
    for dtype in ("float32", "float16", "bfloat16", "int8"):
        root, space = tmp_path / dtype, Space(DIM, dtype)
        for seed in range(2):
            with FeatureStore(root, space) as store:
                store.put(some_keys(N, seed), some_rows(N, seed))
        keys = np.concatenate([some_keys(N, 0), some_keys(N, 1)])
        before = FeatureStore(root, mode="r").get(keys)
        assert compact(root)[0].segments == (2, 1)
        np.testing.assert_array_equal(FeatureStore(root, mode="r").get(keys), before)
        assert verify(root) == []


def test_compact_that_fails_anywhere_loses_nothing_and_goes_on(
    tmp_path: Path, space: Space
) -> None:
    fill(tmp_path / "whole", space)
    before = core.operation_count()
    shutil.copytree(tmp_path / "whole", tmp_path / "counted")
    compact(tmp_path / "counted")
    operations = core.operation_count() - before
    assert operations > PARTS
    for n in range(1, operations + 1):
        root = tmp_path / f"fail{n}"
        shutil.copytree(tmp_path / "whole", root)
        core.fail_from_operation(n, errno.ENOSPC)
        try:
            with pytest.raises(OSError, match="No space left") as raised:
                compact(root)
        finally:
            core.fail_from_operation(0, 0)
        assert raised.value.errno == errno.ENOSPC
        check(root, space)
        compact(root)
        check(root, space)
        assert len(segments(root)) == 1, f"operation {n}"
        assert not list(root.rglob("*.merge.tmp")), f"operation {n}"


KILLED = """
import os, signal, sys
from pyfeat import _core
from pyfeat.store import _compact, _compact_items, _gc, _repair, compact
n = int(sys.argv[2])
for name in ("merge", "remove_file", "sync_folder_of"):
    def counted(*a, _f=getattr(_core, name)):
        global n
        _f(*a)
        n -= 1
        if n == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(_core, name, counted)
compact(sys.argv[1])
"""


@pytest.mark.parametrize("n", [2, 4, 7])
def test_killed_compact_loses_nothing(store: Path, space: Space, n: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(store), str(n)], check=False)
    assert done.returncode == -9
    check(store, space)
    compact(store)
    check(store, space)
    assert len(segments(store)) == 1


def test_open_view_reads_on_when_its_segments_are_gone(store: Path, space: Space) -> None:
    view = FeatureStore(store, space, mode="r").view(some_keys(N, 1))
    compact(store)
    np.testing.assert_array_equal(np.asarray(view), some_rows(N, 1))


def test_open_reader_sees_the_merged_segment_after_refresh(store: Path, space: Space) -> None:
    reader = FeatureStore(store, space, mode="r")
    compact(store)
    reader.refresh()
    assert [str(p) for p in segments(store)] == list(reader.files())
    np.testing.assert_array_equal(reader.get(some_keys(N, 0)), some_rows(N, 99))


def test_reader_forgets_a_tail_whose_segment_was_merged(tmp_path: Path, space: Space) -> None:
    # Its token is in no name any more; the old rows would stand before all segments.
    writer = FeatureStore(tmp_path, space)
    writer.put(some_keys(N, 0), some_rows(N, 0))
    reader = FeatureStore(tmp_path, space, mode="r")
    writer.close()
    with FeatureStore(tmp_path, space) as other:
        other.put(some_keys(N, 0), some_rows(N, 99))
    compact(tmp_path)
    reader.refresh()
    np.testing.assert_array_equal(reader.get(some_keys(N, 0)), some_rows(N, 99))


def test_tail_of_a_living_writer_is_left_alone(store: Path, space: Space) -> None:
    writer = FeatureStore(store, space)
    writer.put(some_keys(N, 50), some_rows(N, 50))
    compact(store)
    writer.put(some_keys(N, 51), some_rows(N, 51))
    writer.close()
    opened = FeatureStore(store, space, mode="r")
    for seed in (50, 51):
        np.testing.assert_array_equal(opened.get(some_keys(N, seed)), some_rows(N, seed))


def test_segment_whose_tail_is_still_there_is_not_merged(tmp_path: Path, space: Space) -> None:
    # When that writer dies, recovery takes its tail for sealed because of the segment's name.
    writer = FeatureStore(tmp_path / "a", space)
    writer.put(some_keys(N, 0), some_rows(N, 0))
    writer.flush()
    (tail,) = (tmp_path / "a").glob("spaces/*/*.tail")
    content = tail.read_bytes()
    writer.close()
    with FeatureStore(tmp_path / "a", space) as other:
        other.put(some_keys(N, 0), some_rows(N, 99))
    (sealed, _) = segments(tmp_path / "a")
    tail.write_bytes(content)
    held = core.Tail.adopt(str(tail).encode(), 4 * DIM)
    assert held is not None
    compact(tmp_path / "a")
    assert sealed.exists()
    del held
    np.testing.assert_array_equal(
        FeatureStore(tmp_path / "a", space).get(some_keys(N, 0)), some_rows(N, 99)
    )


def test_damaged_segment_is_named_and_left_alone(store: Path) -> None:
    victim = segments(store)[1]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.warns(StoreWarning, match=f"{victim.name} is damaged"):
        (done,) = compact(store)
    assert done.skipped == (str(victim),)
    assert victim.read_bytes() == content


def test_rows_of_a_damaged_segment_stay_newer_than_older_ones(tmp_path: Path, space: Space) -> None:
    for keys, rows in [(1, 1), (1, 2), (3, 3)]:  # an old row, a newer one beside damage, another
        with FeatureStore(tmp_path, space) as store:
            store.put(some_keys(N, keys), some_rows(N, rows))
    victim = segments(tmp_path)[1]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.warns(StoreWarning, match="is damaged"):
        compact(tmp_path)
    got = FeatureStore(tmp_path, space, mode="r").get(some_keys(N, 1)[:1])
    np.testing.assert_array_equal(got, some_rows(N, 2)[:1])


def test_list_with_a_damaged_line_is_named_and_left_alone(store: Path) -> None:
    victim = sorted(store.glob("spaces/*/*.items.jsonl"))[1]
    victim.write_bytes(b"x" + victim.read_bytes())
    with pytest.warns(StoreWarning, match=f"{victim.name}, line 1: not an item"):
        (done,) = compact(store)
    assert done.lists == (PARTS + 1, 3)


def test_two_at_once_are_refused(store: Path) -> None:
    from pyfeat.store._lock import administration

    with (
        administration(store),
        pytest.raises(StoreError, match="in the hands of another compact, repair or gc"),
    ):
        compact(store)


def test_readers_and_a_writer_beside_compacts_see_every_row(tmp_path: Path, space: Space) -> None:
    stop = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        while not stop.is_set():
            reader = FeatureStore(tmp_path, space, mode="r")
            keys = reader.keys()
            if not np.array_equal(reader.get(keys)[:, 0], keys[:, 0].astype(np.float32)):
                wrong.append("another row")

    FeatureStore(tmp_path, space).close()
    readers = [threading.Thread(target=read) for _ in range(2)]
    for r in readers:
        r.start()
    put = []
    for seed in range(30):
        keys = some_keys(N, seed)
        with FeatureStore(tmp_path, space) as writer:
            writer.put(keys, np.repeat(keys[:, :1], DIM, 1).astype(np.float32))
        put.append(keys)
        if seed % 5 == 4:
            compact(tmp_path)
    stop.set()
    for r in readers:
        r.join()
    assert wrong == []
    assert FeatureStore(tmp_path, space, mode="r").contains(np.concatenate(put)).all()
