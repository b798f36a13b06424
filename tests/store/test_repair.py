"""A damaged store keeps every good row, says what is lost, and is clean afterwards."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat import _core as core
from pyfeat.errors import CorruptStoreError, StoreError, StoreWarning
from pyfeat.store import (
    Golden,
    Item,
    Repair,
    read_golden,
    read_items,
    repair,
    verify,
    write_golden,
    write_items,
)
from pyfeat.store._lock import administration
from pyfeat.store._memo import Memo, marks_of

from .conftest import DIM, some_keys, some_rows

N = 5
RECORD = 16 + 4 * DIM + 4


@pytest.fixture
def sealed(tmp_path: Path, space: Space) -> Path:
    root = tmp_path / "sealed"
    with FeatureStore(root, space) as store:
        store.put(some_keys(N), some_rows(N))
    write_items(root, space, [Item(f"{i}.png", bytes(k)) for i, k in enumerate(some_keys(N))])
    return root


def only_file(root: Path, suffix: str) -> Path:
    (path,) = root.glob(f"spaces/*/*{suffix}")
    return path


def flip(path: Path, offset: int, bits: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= bits
    path.write_bytes(content)


def tensors_of(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def kept(root: Path, space: Space) -> list[int]:
    """Return which rows are there, after checking that those are right and the store is clean."""
    assert verify(root) == []
    store = FeatureStore(root, space, mode="r")
    there = np.flatnonzero(store.contains(some_keys(N)))
    np.testing.assert_array_equal(store.get(some_keys(N)[there]), some_rows(N)[there])
    return there.tolist()


def lost(done: Repair) -> list[str]:
    return [name for loss in done.lost for name in loss.names]


def test_whole_store_is_left_as_it_is(sealed: Path) -> None:
    before = {p: p.read_bytes() for p in sealed.rglob("*") if p.is_file()}
    assert repair(sealed) == Repair([], [], [], [])
    assert {p: p.read_bytes() for p in sealed.rglob("*") if p.is_file()} == before


def test_any_flipped_byte_of_a_segment_costs_one_row_at_most(sealed: Path, space: Space) -> None:
    size = only_file(sealed, ".safetensors").stat().st_size
    copy = sealed.with_name("copy")
    for offset in range(0, size, 11):
        shutil.copytree(sealed, copy)
        flip(only_file(copy, ".safetensors"), offset, 0x10)
        done = repair(copy)
        there = kept(copy, space)
        assert len(there) >= N - 1, f"flipped {offset}"
        assert lost(done) == [f"{i}.png" for i in range(N) if i not in there], f"{offset}"
        shutil.rmtree(copy)


@pytest.mark.parametrize("tensor", ["keys", "order"])
def test_flipped_bit_of_keys_or_order_costs_nothing(
    sealed: Path, space: Space, tensor: str
) -> None:
    path = only_file(sealed, ".safetensors")
    flip(path, tensors_of(path) + (2 * 16 + 5 if tensor == "keys" else N * 16 + 2 * 8))
    done = repair(sealed)
    assert (done.lost, done.left) == ([], [])
    assert kept(sealed, space) == list(range(N))


def test_lost_row_is_named_with_path_offset_key_and_input(sealed: Path) -> None:
    path = only_file(sealed, ".safetensors")
    flip(path, path.stat().st_size - 1)
    (loss,) = repair(sealed).lost
    assert (loss.path, loss.offset) == (
        str(path),
        path.with_name(path.name + ".damaged").stat().st_size - 4 * DIM,
    )
    assert (loss.key, loss.names) == (some_keys(N)[-1].tobytes().hex(), (f"{N - 1}.png",))


def test_damaged_segment_is_set_aside_as_it_was(sealed: Path) -> None:
    path = only_file(sealed, ".safetensors")
    flip(path, path.stat().st_size - 1)
    content = path.read_bytes()
    done = repair(sealed)
    assert done.aside == [str(path) + ".damaged"]
    assert Path(done.aside[0]).read_bytes() == content
    assert not path.exists()


def test_row_that_another_segment_has_too_is_not_lost(sealed: Path, space: Space) -> None:
    with FeatureStore(sealed, space) as store:
        store.put(some_keys(N)[-1:], some_rows(N)[-1:])
    path = sorted(sealed.glob("spaces/*/*.safetensors"))[0]
    flip(path, path.stat().st_size - 1)
    assert repair(sealed).lost == []
    assert kept(sealed, space) == list(range(N))


def test_older_good_row_comes_back_for_a_damaged_newer_one(sealed: Path, space: Space) -> None:
    with FeatureStore(sealed, space) as store:
        store.put(some_keys(N)[-1:], some_rows(N)[-1:])
    path = sorted(sealed.glob("spaces/*/*.safetensors"))[1]
    flip(path, path.stat().st_size - 1)
    assert repair(sealed).lost == []
    assert kept(sealed, space) == list(range(N))


@pytest.mark.parametrize("rows_left", range(N))
def test_cut_segment_keeps_the_rows_it_still_has(
    sealed: Path, space: Space, rows_left: int
) -> None:
    path = only_file(sealed, ".safetensors")
    path.write_bytes(path.read_bytes()[: path.stat().st_size - 4 * DIM * (N - rows_left) + 3])
    done = repair(sealed)
    assert kept(sealed, space) == list(range(rows_left))
    assert lost(done) == [f"{i}.png" for i in range(rows_left, N)]


def test_segment_without_a_header_keeps_all_rows(sealed: Path, space: Space) -> None:
    path = only_file(sealed, ".safetensors")
    begin = tensors_of(path)
    path.write_bytes(bytes(begin) + path.read_bytes()[begin:])
    assert repair(sealed).lost == []
    assert kept(sealed, space) == list(range(N))


def test_file_of_noise_is_set_aside(sealed: Path, space: Space) -> None:
    path = only_file(sealed, ".safetensors")
    noise = path.with_name("0000000000000001-0123456789abcdef.safetensors")
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    (loss,) = repair(sealed).lost
    assert (loss.path, loss.key) == (str(noise), None)
    assert kept(sealed, space) == list(range(N))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_rows_of_every_dtype_are_kept(tmp_path: Path, dtype: str) -> None:
    space = Space(DIM, dtype)
    with FeatureStore(tmp_path, space) as store:
        store.put(some_keys(N), some_rows(N))
        store.flush()
        before = store.get(some_keys(N))
    path = only_file(tmp_path, ".safetensors")
    flip(path, 20)
    flip(path, path.stat().st_size - 1)
    assert len(repair(tmp_path).lost) == 1
    after = FeatureStore(tmp_path, space, mode="r").get(some_keys(N)[:-1])
    np.testing.assert_array_equal(after, before[:-1])


def test_damaged_record_of_a_dead_writer_is_named(tmp_path: Path, space: Space) -> None:
    writer = FeatureStore(tmp_path / "alive", space)
    writer.put(some_keys(N), some_rows(N))
    writer.flush()
    write_items(tmp_path / "alive", space, [Item("2.png", bytes(some_keys(N)[2]))])
    root = shutil.copytree(tmp_path / "alive", tmp_path / "dead")
    tail = only_file(root, ".tail")
    flip(tail, 64 + 2 * RECORD + 20)
    done = repair(root)
    (loss,) = done.lost
    assert (loss.path, loss.offset) == (str(tail), 64 + 2 * RECORD)
    assert (loss.key, loss.names) == (bytes(some_keys(N)[2]).hex(), ("2.png",))
    assert done.aside == [f"{tail}.damaged"]
    assert kept(root, space) == [0, 1, 3, 4]


def test_damage_in_the_log_of_a_living_writer_is_left(tmp_path: Path, space: Space) -> None:
    writer = FeatureStore(tmp_path, space)
    writer.put(some_keys(N), some_rows(N))
    writer.flush()
    tail = only_file(tmp_path, ".tail")
    with tail.open("r+b") as f:
        f.seek(64 + 20)
        f.write(b"x")
    done = repair(tmp_path)
    assert [(d.path, d.offset) for d in done.left] == [(str(tail), 64)]
    assert (done.lost, done.aside) == ([], [])


def test_damaged_line_of_a_list_costs_only_that_line(sealed: Path, space: Space) -> None:
    path = only_file(sealed, ".items.jsonl")
    flip(path, 0)
    done = repair(sealed)
    assert [(x.path, x.offset) for x in done.lost] == [(str(path), 0)]
    assert [i.name for i in read_items(sealed, space)] == [f"{i}.png" for i in range(1, N)]
    assert verify(sealed) == []


def test_description_with_one_wrong_byte_is_mended(sealed: Path, space: Space) -> None:
    path = only_file(sealed, "space.json")
    before = path.read_bytes()
    flip(path, len(before) // 2, 0xFF)
    assert repair(sealed).left == []
    assert path.read_bytes() == before
    assert kept(sealed, space) == list(range(N))


def test_lost_description_comes_from_the_golden_row(sealed: Path, space: Space) -> None:
    write_golden(sealed, space, Golden("image-1", some_rows(1)[0]))
    path = only_file(sealed, "space.json")
    before = path.read_bytes()
    path.write_bytes(b"")
    assert repair(sealed).left == []
    assert path.read_bytes() == before


def test_lost_description_without_a_copy_is_left_and_named(sealed: Path) -> None:
    path = only_file(sealed, "space.json")
    path.write_bytes(b"")
    done = repair(sealed)
    assert [d.path for d in done.left] == [str(path)]
    assert path.exists()


def test_damaged_golden_row_is_set_aside(sealed: Path, space: Space) -> None:
    write_golden(sealed, space, Golden("image-1", some_rows(1)[0]))
    path = only_file(sealed, "golden.json")
    flip(path, path.read_bytes().index(b'"row":') + 10)
    with pytest.raises(CorruptStoreError, match="fails its checksum"):
        read_golden(sealed, space)
    assert [d.path for d in verify(sealed)] == [str(path)]
    assert repair(sealed).left == []
    assert read_golden(sealed, space) is None


def test_damaged_marker_is_left_to_another_repair_at_work(sealed: Path) -> None:
    marker = sealed / "pyfeat-store.json"
    flip(marker, 3)
    damaged = marker.read_bytes()
    with administration(sealed), pytest.raises(StoreError, match="in the hands of another"):
        repair(sealed)
    assert marker.read_bytes() == damaged


def test_damaged_marker_is_written_anew(sealed: Path, space: Space) -> None:
    marker = sealed / "pyfeat-store.json"
    before = marker.read_bytes()
    flip(marker, 3)
    done = repair(sealed)
    assert (marker.read_bytes(), done.left) == (before, [])
    assert kept(sealed, space) == list(range(N))


def test_put_after_a_repair_fills_exactly_what_was_lost(sealed: Path, space: Space) -> None:
    path = only_file(sealed, ".safetensors")
    flip(path, path.stat().st_size - 1)
    repair(sealed)
    with FeatureStore(sealed, space) as store:
        missing = ~store.contains(some_keys(N))
        assert missing.tolist() == [False] * (N - 1) + [True]
        store.put(some_keys(N)[missing], some_rows(N)[missing])
    assert kept(sealed, space) == list(range(N))


def test_repair_that_fails_anywhere_loses_no_good_row_and_goes_on(
    sealed: Path, space: Space
) -> None:
    with FeatureStore(sealed, space) as store:
        store.put(some_keys(1, 7), some_rows(1, 7))
    for path in sealed.glob("spaces/*/*.safetensors"):
        flip(path, 20)
    path = sorted(sealed.glob("spaces/*/*.safetensors"))[0]
    flip(path, path.stat().st_size - 1)
    flip(only_file(sealed, ".items.jsonl"), 0)
    shutil.copytree(sealed, sealed.with_name("counted"))
    before = core.operation_count()
    repair(sealed.with_name("counted"))
    operations = core.operation_count() - before
    assert operations > 10
    for n in range(1, operations + 1):
        root = shutil.copytree(sealed, sealed.with_name(f"fail{n}"))
        core.fail_from_operation(n, errno.ENOSPC)
        try:
            with pytest.raises(OSError, match="No space left"):
                repair(root)
        finally:
            core.fail_from_operation(0, 0)
        done = repair(root)
        assert done.left == [], f"operation {n}"
        assert kept(root, space) == list(range(N - 1)), f"operation {n}"
        assert FeatureStore(root, space, mode="r").contains(some_keys(1, 7)).all()


def test_segment_that_is_damaged_does_not_stand_for_its_tail(tmp_path: Path, space: Space) -> None:
    # Recovery took it for a good copy of the tail, and removed the tail.
    writer = FeatureStore(tmp_path, space)
    writer.put(some_keys(N), some_rows(N))
    writer.flush()
    tail = only_file(tmp_path, ".tail")
    content = tail.read_bytes()
    writer.close()
    tail.write_bytes(content)
    path = only_file(tmp_path, ".safetensors")
    flip(path, path.stat().st_size - 1)
    FeatureStore(tmp_path, space).close()
    np.testing.assert_array_equal(
        FeatureStore(tmp_path, space, mode="r").get(some_keys(N)), some_rows(N)
    )


@pytest.mark.filterwarnings("error::pyfeat.errors.StoreWarning")
def test_repair_itself_warns_of_nothing(sealed: Path) -> None:
    path = only_file(sealed, ".safetensors")
    flip(path, 20)
    try:
        repair(sealed)
    except StoreWarning as warning:
        pytest.fail(str(warning))


def test_line_that_is_lost_is_forgotten_by_the_memo(sealed: Path, space: Space) -> None:
    # A job lists no input that the memo knows.
    file = sealed.with_name("a.png")
    file.write_bytes(b"content")
    os.utime(file, (1, 1))
    marks = marks_of([str(file)])
    with Memo(sealed, space) as memo:
        memo.note(marks, some_keys(1))
        assert memo.find(marks)[1].all()
    flip(only_file(sealed, ".items.jsonl"), 0)
    repair(sealed)
    with Memo(sealed, space) as memo:
        assert not memo.find(marks)[1].any()


def test_damaged_memo_is_mended(sealed: Path, space: Space) -> None:
    with Memo(sealed, space) as memo:
        memo.note(marks_of([str(sealed)] * N), some_keys(N))
        memo._store.put(some_keys(N), np.zeros((N, 8)))
    (path,) = sealed.glob("spaces/*/memo/spaces/*/*.safetensors")
    flip(path, path.stat().st_size - 1)
    assert [d.path for d in verify(sealed)] == [str(path)]
    assert repair(sealed).left == []
    assert kept(sealed, space) == list(range(N))
