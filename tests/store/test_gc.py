"""Spaces that nobody needs go in one step; those somebody writes into stay."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat import _core as core
from pyfeat.store import Item, _layout, gc, verify, write_items
from pyfeat.store._memo import Memo

from .conftest import DIM, some_keys, some_rows

N = 3
OTHER = Space(DIM, parts={"name": "other"})


@pytest.fixture
def two(tmp_path: Path, space: Space) -> Path:
    for one in (space, OTHER):
        with FeatureStore(tmp_path / "two", one) as store:
            store.put(some_keys(N), some_rows(N))
        write_items(tmp_path / "two", one, [Item("a", bytes(some_keys(N)[0]))])
        Memo(tmp_path / "two", one).close()
    return tmp_path / "two"


def test_only_the_space_to_keep_is_left(two: Path, space: Space) -> None:
    size = sum(
        p.stat().st_size for p in two.glob(f"spaces/{OTHER.fingerprint[:32]}/**/*") if p.is_file()
    )
    removals = {r.space: r for r in gc(two, [space.fingerprint[:8]])}
    assert FeatureStore.spaces(two) == [space]
    assert [p.name for p in (two / "spaces").iterdir()] == [space.fingerprint[:32]]
    assert removals[OTHER.fingerprint].removed
    assert removals[OTHER.fingerprint].bytes == size
    np.testing.assert_array_equal(FeatureStore(two, mode="r").get(some_keys(N)), some_rows(N))


def test_dry_run_says_the_same_and_removes_nothing(two: Path, space: Space) -> None:
    said = gc(two, [space.fingerprint], dry_run=True)
    assert len(FeatureStore.spaces(two)) == 2
    assert gc(two, [space.fingerprint]) == said


def test_space_that_is_removed_while_they_are_listed_is_left_out(
    two: Path, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = _layout.space_folders

    def removed_meanwhile(root: Path) -> list[Path]:
        monkeypatch.setattr(_layout, "space_folders", listing)
        folders = listing(root)
        gc(root, [space.fingerprint])
        return folders

    monkeypatch.setattr(_layout, "space_folders", removed_meanwhile)
    assert FeatureStore.spaces(two) == [space]


def test_keeping_nothing_must_be_said(two: Path) -> None:
    with pytest.raises(ValueError, match="keep must name a space, got none"):
        gc(two, [])
    assert len(FeatureStore.spaces(two)) == 2
    assert [r.removed for r in gc(two, [], everything=True)] == [True, True]
    assert FeatureStore.spaces(two) == []


@pytest.mark.parametrize("wrong", ["zz", ""])
def test_keep_that_names_no_space_is_refused(two: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"keep must be first digits .*, got {wrong!r}"):
        gc(two, [wrong])


def test_keep_as_one_string_is_refused(two: Path, space: Space) -> None:
    with pytest.raises(ValueError, match="keep must be a list of spaces"):
        gc(two, space.fingerprint)


def test_space_of_a_writer_that_has_put_nothing_yet_is_kept(two: Path, space: Space) -> None:
    writer = FeatureStore(two, OTHER)
    (kept,) = [r for r in gc(two, [space.fingerprint]) if r.space == OTHER.fingerprint]
    assert (kept.removed, kept.reason) == (False, "its writer lives")
    writer.put(some_keys(N, 5), some_rows(N, 5))
    writer.close()
    assert [r.removed for r in gc(two, [space.fingerprint])].count(True) == 1


def test_space_of_a_tail_that_is_locked_is_kept(two: Path, space: Space) -> None:
    tail = core.Tail.create(
        str(two / "spaces" / OTHER.fingerprint[:32] / "0-0.tail").encode(),
        4 * DIM,
        np.zeros(32, np.uint8),
    )
    assert not any(r.removed for r in gc(two, [space.fingerprint]))
    del tail


def test_space_of_a_killed_writer_is_removed(two: Path, space: Space) -> None:
    code = (
        "import os, sys, numpy as np; from pyfeat import FeatureStore, Space\n"
        "s = FeatureStore(sys.argv[1], Space(3, parts={'name': 'other'}))\n"
        "s.put(np.zeros((1, 16), np.uint8), np.ones((1, 3), np.float32)); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(two)], check=False)
    gc(two, [space.fingerprint])
    assert FeatureStore.spaces(two) == [space]


def test_space_with_a_damaged_description_is_kept(two: Path, space: Space) -> None:
    folder = two / "spaces" / OTHER.fingerprint[:32]
    (folder / "space.json").write_text("{")
    (kept,) = [r for r in gc(two, [space.fingerprint]) if r.space == folder.name]
    assert (kept.removed, kept.reason) == (False, "its description is damaged")


def test_open_reader_reads_on(two: Path, space: Space) -> None:
    view = FeatureStore(two, OTHER, mode="r").view()
    gc(two, [space.fingerprint])
    assert np.asarray(view).shape == (N, DIM)


def test_writer_that_comes_back_begins_anew(two: Path, space: Space) -> None:
    gc(two, [space.fingerprint])
    with FeatureStore(two, OTHER) as store:
        assert len(store) == 0
        store.put(some_keys(N, 8), some_rows(N, 8))
    assert verify(two) == []


def test_gc_that_fails_anywhere_leaves_a_whole_space_or_none(two: Path, space: Space) -> None:
    shutil.copytree(two, two.with_name("counted"))
    before = core.operation_count()
    gc(two.with_name("counted"), [space.fingerprint])
    operations = core.operation_count() - before
    assert operations > 4
    for n in range(1, operations + 1):
        root = shutil.copytree(two, two.with_name(f"fail{n}"))
        core.fail_from_operation(n, errno.EIO)
        try:
            with pytest.raises(OSError, match="Input/output error"):
                gc(root, [space.fingerprint])
        finally:
            core.fail_from_operation(0, 0)
        there = OTHER in FeatureStore.spaces(root)
        if there:
            assert FeatureStore(root, OTHER, mode="r").contains(some_keys(N)).all()
        assert verify(root) == []
        gc(root, [space.fingerprint])
        assert [p.name for p in (root / "spaces").iterdir()] == [space.fingerprint[:32]]
