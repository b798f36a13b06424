"""What is left after a crash, a full disk or a flipped bit.

Every test asks the same: is each acknowledged row there and right, and is damage named?
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat import _core as core
from pyfeat.errors import CorruptStoreError, StoreError, StoreWarning
from pyfeat.store import Item, as_kept, read_items, verify, write_items
from pyfeat.store._layout import row_bytes

from .conftest import DIM, some_keys, some_rows

N = 3
HEADER = 64
RECORD = 16 + 4 * DIM + 4
# Rows as they are, and rows of codes behind a scale.
BOTH_KINDS = pytest.mark.parametrize(
    "space", [Space(DIM), Space(DIM, "int8")], ids=["float32", "int8"]
)


@pytest.fixture
def dead_writer(tmp_path: Path, space: Space) -> Path:
    """A store as a killed writer leaves it: three flushed rows in a tail nobody holds."""
    writer = FeatureStore(tmp_path / "alive", space)
    writer.put(some_keys(N), some_rows(N))
    writer.flush()
    shutil.copytree(tmp_path / "alive", tmp_path / "dead")
    return tmp_path / "dead"


@pytest.fixture
def sealed(tmp_path: Path, space: Space) -> Path:
    with FeatureStore(tmp_path / "sealed", space) as store:
        store.put(some_keys(N), some_rows(N))
    return tmp_path / "sealed"


def only_file(root: Path, suffix: str) -> Path:
    (path,) = root.glob(f"spaces/*/*{suffix}")
    return path


def checked_rows(root: Path, mode: str = "a") -> list[int]:
    """Return which of the N rows are there, after checking that those are right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)
        store = FeatureStore(root, mode=mode)
        rows, intact = store.get_intact(some_keys(N))
    kept = as_kept(some_rows(N), store.space.dtype)
    np.testing.assert_array_equal(rows[intact], kept[intact])
    return np.flatnonzero(intact).tolist()


def record_bytes(space: Space) -> int:
    return 16 + row_bytes(space) + 4


@BOTH_KINDS
@pytest.mark.parametrize("mode", ["a", "r"])
def test_tail_cut_at_any_byte_keeps_every_whole_row(
    dead_writer: Path, space: Space, mode: str
) -> None:
    content = only_file(dead_writer, ".tail").read_bytes()
    record = record_bytes(space)
    assert len(content) == HEADER + N * record
    for size in range(len(content) + 1):
        copy = dead_writer.parent / "copy"
        shutil.copytree(dead_writer, copy)
        only_file(copy, ".tail").write_bytes(content[:size])
        whole = max(0, size - HEADER) // record
        assert checked_rows(copy, mode) == list(range(whole)), f"cut at {size}"
        shutil.rmtree(copy)


@BOTH_KINDS
@pytest.mark.parametrize("mode", ["a", "r"])
def test_flipped_byte_in_tail_costs_only_its_row(
    dead_writer: Path, space: Space, mode: str
) -> None:
    content = bytearray(only_file(dead_writer, ".tail").read_bytes())
    for offset in range(len(content)):
        copy = dead_writer.parent / "copy"
        shutil.copytree(dead_writer, copy)
        content[offset] ^= 0xFF
        only_file(copy, ".tail").write_bytes(content)
        content[offset] ^= 0xFF
        lost = [(offset - HEADER) // record_bytes(space)] if offset >= HEADER else []
        kept = [i for i in range(N) if i not in lost]
        assert checked_rows(copy, mode) == kept, f"flipped {offset}"
        shutil.rmtree(copy)


def test_flipped_byte_in_tail_is_named_with_its_offset(dead_writer: Path) -> None:
    tail = only_file(dead_writer, ".tail")
    content = bytearray(tail.read_bytes())
    content[HEADER + RECORD + 20] ^= 1
    tail.write_bytes(content)
    with pytest.warns(StoreWarning, match=f"{tail.name}, byte {HEADER + RECORD}: "):
        FeatureStore(dead_writer)


@BOTH_KINDS
@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_flipped_byte_in_segment_never_gives_a_wrong_row(sealed: Path, flip: int) -> None:
    path = only_file(sealed, ".safetensors")
    content = bytearray(path.read_bytes())
    for offset in range(len(content)):
        content[offset] ^= flip
        path.write_bytes(content)
        content[offset] ^= flip
        checked_rows(sealed, "r")  # what it returns, it has compared


@BOTH_KINDS
@pytest.mark.parametrize("flip", [0x01, 0xFF])
def test_verify_finds_every_flipped_byte_of_a_segment(sealed: Path, flip: int) -> None:
    path = only_file(sealed, ".safetensors")
    content = bytearray(path.read_bytes())
    for offset in range(len(content)):
        content[offset] ^= flip
        path.write_bytes(content)
        content[offset] ^= flip
        assert verify(sealed), f"flipped {offset}"


def test_flipped_byte_of_a_row_costs_only_that_row(sealed: Path) -> None:
    path = only_file(sealed, ".safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert checked_rows(sealed, "r") == [0, 1]


def test_get_of_damaged_row_names_file_and_offset(sealed: Path) -> None:
    path = only_file(sealed, ".safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    offset = len(content) - 4 * DIM
    with pytest.raises(CorruptStoreError, match=f"{path}, byte {offset}: the row fails"):
        FeatureStore(sealed, mode="r").get(some_keys(N))


def test_damaged_row_put_again_is_whole_again(sealed: Path) -> None:
    path = only_file(sealed, ".safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with FeatureStore(sealed) as store:
        store.put(some_keys(N)[2:], some_rows(N)[2:])
    assert checked_rows(sealed, "r") == [0, 1, 2]


def test_verify_of_untouched_store_is_empty(sealed: Path, dead_writer: Path) -> None:
    assert verify(sealed) == []
    assert verify(dead_writer) == []


def test_cut_segment_is_named_and_left_out(sealed: Path, space: Space) -> None:
    with FeatureStore(sealed, space) as store:
        store.put(some_keys(2, 7), some_rows(2, 7))
    path = sorted(sealed.glob("spaces/*/*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(StoreWarning, match=f"is shorter than its header says .*{path.name}"):
        store = FeatureStore(sealed, mode="r")
    np.testing.assert_array_equal(store.get(some_keys(2, 7)), some_rows(2, 7))
    assert [d.path for d in verify(sealed)] == [str(path)]


def test_damaged_header_of_one_segment_costs_only_that_segment(sealed: Path, space: Space) -> None:
    with FeatureStore(sealed, space) as store:
        store.put(some_keys(2, 7), some_rows(2, 7))
    path = sorted(sealed.glob("spaces/*/*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF
    path.write_bytes(content)
    with pytest.warns(StoreWarning, match="a segment is left out"):
        store = FeatureStore(sealed, mode="r")
    assert store.contains(np.concatenate([some_keys(N), some_keys(2, 7)])).sum() == 2


def test_damaged_space_is_named_and_mended_by_its_writer(sealed: Path, space: Space) -> None:
    other = Space(7)
    FeatureStore(sealed, other)
    path = next(p for p in sealed.glob("spaces/*/space.json") if space.to_json() in p.read_text())
    path.write_text("{")
    with pytest.warns(StoreWarning, match="not the description of a space"):
        assert FeatureStore.spaces(sealed) == [other]
    assert [d.path for d in verify(sealed)] == [str(path)]
    assert FeatureStore(sealed, space).contains(some_keys(N)).all()
    assert verify(sealed) == []


def test_damaged_line_of_items_costs_only_that_item(sealed: Path, space: Space) -> None:
    write_items(sealed, space, [Item("a", b"k" * 16), Item("b", None, "broken")])
    path = only_file(sealed, ".items.jsonl")
    path.write_bytes(path.read_bytes()[1:])
    with pytest.warns(StoreWarning, match="line 1: not an item"):
        assert [i.name for i in read_items(sealed, space)] == ["b"]
    assert [(d.path, d.offset) for d in verify(sealed)] == [(str(path), 0)]


def test_damaged_tail_is_kept_beside_its_segment(dead_writer: Path) -> None:
    tail = only_file(dead_writer, ".tail")
    content = bytearray(tail.read_bytes())
    content[HEADER + RECORD + 20] ^= 1
    tail.write_bytes(content)
    assert checked_rows(dead_writer) == [0, 2]
    assert only_file(dead_writer, ".tail.damaged").read_bytes() == content


def test_tail_of_another_version_is_left_alone(dead_writer: Path, space: Space) -> None:
    tail = only_file(dead_writer, ".tail")
    content = bytearray(tail.read_bytes())
    content[8] = 2
    content[60:64] = core.crc32c(bytes(content[:60])).to_bytes(4, "little")
    tail.write_bytes(content)
    with pytest.warns(StoreWarning, match="must have version 1, got 2"):
        FeatureStore(dead_writer, space)
    assert tail.read_bytes() == content


def test_verify_finds_a_damaged_tail_header(dead_writer: Path) -> None:
    tail = only_file(dead_writer, ".tail")
    content = bytearray(tail.read_bytes())
    content[40] ^= 1
    tail.write_bytes(content)
    assert [(d.path, d.offset) for d in verify(dead_writer)] == [(str(tail), 0)]


def test_hidden_tail_of_a_dead_writer_is_removed(dead_writer: Path) -> None:
    tail = only_file(dead_writer, ".tail")
    hidden = tail.rename(tail.with_name(tail.name + ".tmp"))
    FeatureStore(dead_writer).close()
    assert hidden.exists()  # it may be in the making
    os.utime(hidden, (0, 0))
    FeatureStore(dead_writer).close()
    assert not hidden.exists()


def test_cut_tail_under_an_open_reader_is_an_error_not_a_crash(dead_writer: Path) -> None:
    # A mapped page beyond the end of its file kills the process that touches it.
    reader = FeatureStore(dead_writer, mode="r")
    only_file(dead_writer, ".tail").write_bytes(b"")
    with pytest.raises(StoreError, match="is shorter than it was"):
        reader.get(some_keys(N))


@pytest.mark.filterwarnings("ignore::pyfeat.errors.StoreWarning")
def test_put_whose_seal_fails_keeps_every_row_in_sight(tmp_path: Path, space: Space) -> None:
    # Sealing used to drop the tail first: its rows were on disk, and invisible.
    store = FeatureStore(tmp_path, space, segment_bytes=4 * DIM * 2)
    store.put(some_keys(1), some_rows(1))
    core.fail_from_operation(2, errno.ENOSPC)
    try:
        store.put(some_keys(1, 2), some_rows(1, 2))
    finally:
        core.fail_from_operation(0, 0)
    both = np.concatenate([some_keys(1), some_keys(1, 2)])
    assert store.contains(both).all()
    store.close()
    assert [Path(p).suffix for p in store.files()] == [".safetensors"]
    assert store.contains(both).all()


@pytest.mark.filterwarnings("ignore::pyfeat.errors.StoreWarning")
@pytest.mark.parametrize("n", range(1, 16))
def test_rows_put_after_a_seal_that_failed_anywhere_survive_a_crash(
    tmp_path: Path, space: Space, n: int
) -> None:
    # When only the removal of the tail had failed, later rows went into it, and recovery took
    # it for a copy of its segment.
    store = FeatureStore(tmp_path / "alive", space, segment_bytes=4 * DIM * 2)
    store.put(some_keys(1), some_rows(1))
    core.fail_from_operation(n, errno.EIO)
    try:
        store.put(some_keys(1, 2), some_rows(1, 2))  # begins a seal
    except StoreError:
        pass
    finally:
        core.fail_from_operation(0, 0)
    store.put(some_keys(1, 3), some_rows(1, 3))
    store.flush()
    shutil.copytree(tmp_path / "alive", tmp_path / "dead")
    again = FeatureStore(tmp_path / "dead", space)
    for seed in (0, 3) if n == 1 else (0, 2, 3):
        np.testing.assert_array_equal(again.get(some_keys(1, seed)), some_rows(1, seed or 1))
        np.testing.assert_array_equal(store.get(some_keys(1, seed)), some_rows(1, seed or 1))
    assert verify(tmp_path / "dead") == []


def test_close_that_failed_can_be_called_again(tmp_path: Path, space: Space) -> None:
    store = FeatureStore(tmp_path, space)
    store.put(some_keys(1), some_rows(1))
    core.fail_from_operation(1, errno.ENOSPC)
    try:
        with pytest.raises(StoreError):
            store.close()
    finally:
        core.fail_from_operation(0, 0)
    store.close()
    assert [Path(p).suffix for p in store.files()] == [".safetensors"]


def write_and_count_acknowledged(root: Path, space: Space) -> int:
    """Put N batches of one row with a flush after each; return how many flushes came back."""
    acknowledged = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StoreWarning)
            with FeatureStore(root, space, segment_bytes=4 * DIM * 2) as store:
                for i in range(N):
                    store.put(some_keys(N)[i : i + 1], some_rows(N)[i : i + 1])
                    store.flush()
                    acknowledged += 1
    except StoreError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017  only the injected failure is expected
    return acknowledged


def test_disk_that_fails_at_any_operation_loses_no_acknowledged_row(
    tmp_path: Path, space: Space
) -> None:
    before = core.operation_count()
    assert write_and_count_acknowledged(tmp_path / "all", space) == N
    operations = core.operation_count() - before
    assert operations > 3 * N
    for n in range(1, operations + 1):
        root = tmp_path / f"fail{n}"
        core.fail_from_operation(n, errno.ENOSPC)
        try:
            acknowledged = write_and_count_acknowledged(root, space)
        finally:
            core.fail_from_operation(0, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", StoreWarning)
            store = FeatureStore(root, space)
        kept = store.contains(some_keys(N))
        assert kept[:acknowledged].all(), f"failure at operation {n}"
        np.testing.assert_array_equal(
            store.get(some_keys(N)[kept]), some_rows(N)[kept], err_msg=f"operation {n}"
        )
        assert verify(root) == []


def test_put_that_failed_halfway_leaves_room_for_the_next(tmp_path: Path, space: Space) -> None:
    store = FeatureStore(tmp_path, space)
    store.put(some_keys(1), some_rows(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER + RECORD + RECORD // 2, hard))
    try:
        with pytest.raises(StoreError, match="cannot write"):
            store.put(some_keys(2, 7), some_rows(2, 7))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.put(some_keys(2, 8), some_rows(2, 8))
    store.close()
    keys = np.concatenate([some_keys(1), some_keys(2, 8)])
    rows = np.concatenate([some_rows(1), some_rows(2, 8)])
    np.testing.assert_array_equal(FeatureStore(tmp_path, mode="r").get(keys), rows)


def test_half_sealed_segment_is_sealed_again(dead_writer: Path) -> None:
    tail = only_file(dead_writer, ".tail")
    hidden = tail.with_name(tail.name + ".seal.tmp")
    hidden.write_bytes(b"half of a segment")
    assert checked_rows(dead_writer) == [0, 1, 2]
    assert not hidden.exists()


def test_tail_that_was_sealed_but_not_removed_does_no_harm(dead_writer: Path) -> None:
    tail = only_file(dead_writer, ".tail")
    content = tail.read_bytes()
    FeatureStore(dead_writer).close()
    tail.write_bytes(content)
    store = FeatureStore(dead_writer)
    assert len(store) == N
    assert not tail.exists()


def test_tail_of_a_living_writer_is_left_alone(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path, space) as writer:
        writer.put(some_keys(1), some_rows(1))
        FeatureStore(tmp_path, space).close()
        writer.put(some_keys(1, 2), some_rows(1, 2))
    assert len(FeatureStore(tmp_path, mode="r")) == 2


WRITER = """
import sys, numpy as np
from pyfeat import FeatureStore, Space
rng = np.random.default_rng(0)
store = FeatureStore(sys.argv[1], Space(3), segment_bytes=4096)
while True:
    keys = rng.integers(0, 256, (5, 16), dtype=np.uint8)
    rows = keys[:, :3].astype(np.float32)
    store.put(keys, rows)
    store.flush()
    print(keys.tobytes().hex(), flush=True)
"""


@pytest.mark.parametrize("lines", [1, 2, 17, 60, 150])
def test_killed_writer_loses_no_acknowledged_row(tmp_path: Path, lines: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    acknowledged = [child.stdout.readline().strip() for _ in range(lines)]
    os.kill(child.pid, signal.SIGKILL)
    rest = child.stdout.read().splitlines()
    child.wait()
    child.stdout.close()
    whole = [h for h in [*acknowledged, *rest] if len(h) == 5 * 32]
    keys = np.frombuffer(bytes.fromhex("".join(whole)), np.uint8).reshape(-1, 16)
    store = FeatureStore(tmp_path)
    np.testing.assert_array_equal(store.get(keys), keys[:, :3].astype(np.float32))
    assert verify(tmp_path) == []
