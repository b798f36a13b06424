"""What a memo knows of files, and when it must not be believed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat.store import Memo, _memo, compact, marks_of
from pyfeat.store._lock import administration
from pyfeat.store._memo import joined

from .conftest import some_keys

LONG_AGO = time.time_ns() - 3600 * 10**9


def make_file(path: Path, content: bytes = b"content", mtime_ns: int = LONG_AGO) -> str:
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return str(path)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    folder = tmp_path / "files"
    folder.mkdir()
    return [make_file(folder / f"{i}.jpg") for i in range(5)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_unchanged_files_are_known_with_their_keys(
    paths: list[str], store: Path, space: Space
) -> None:
    keys = some_keys(5)
    with Memo(store, space) as memo:
        memo.note(marks_of(paths), keys)
    found, known = Memo(store, space).find(marks_of(paths))
    assert known.all()
    np.testing.assert_array_equal(found, keys)


def test_files_that_were_never_noted_are_not_known(
    paths: list[str], store: Path, space: Space
) -> None:
    assert not Memo(store, space).find(marks_of(paths))[1].any()


def test_a_file_of_another_size_is_not_known(paths: list[str], store: Path, space: Space) -> None:
    with Memo(store, space) as memo:
        memo.note(marks_of(paths), some_keys(5))
        make_file(Path(paths[2]), b"longer content")
        assert memo.find(marks_of(paths))[1].tolist() == [True, True, False, True, True]


def test_a_file_of_another_time_is_not_known(paths: list[str], store: Path, space: Space) -> None:
    with Memo(store, space) as memo:
        memo.note(marks_of(paths), some_keys(5))
        make_file(Path(paths[2]), mtime_ns=LONG_AGO + 1)
        assert memo.find(marks_of(paths))[1].tolist() == [True, True, False, True, True]


def test_a_file_changed_just_now_is_not_remembered(
    tmp_path: Path, store: Path, space: Space
) -> None:
    path = make_file(tmp_path / "new.jpg", mtime_ns=time.time_ns())
    with Memo(store, space) as memo:
        memo.note(marks_of([path]), some_keys(1))
        assert not memo.find(marks_of([path]))[1].any()


def test_a_file_without_a_row_is_not_known(paths: list[str], store: Path, space: Space) -> None:
    with Memo(store, space) as memo:
        memo.note(marks_of(paths), some_keys(5))
        memo.note(marks_of(paths[1:2]), np.zeros((1, 16), np.uint8))
        assert memo.find(marks_of(paths))[1].tolist() == [True, False, True, True, True]


def test_what_is_no_file_is_not_known(tmp_path: Path, store: Path, space: Space) -> None:
    names = [str(tmp_path), str(tmp_path / "missing"), "with\0zero", ""]
    marks = marks_of(names)
    with Memo(store, space) as memo:
        memo.note(marks, some_keys(4))
        assert marks.size.tolist() == [-1] * 4
        assert not memo.find(marks)[1].any()


def test_a_relative_path_is_the_same_file(
    paths: list[str], store: Path, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(paths[0]).parent)
    np.testing.assert_array_equal(marks_of(["0.jpg"]).names, marks_of(paths[:1]).names)


def test_a_link_is_as_old_as_what_it_points_to(
    paths: list[str], tmp_path: Path, store: Path, space: Space
) -> None:
    link = tmp_path / "link.jpg"
    link.symlink_to(paths[0])
    assert marks_of([str(link)]).mtime_ns.tolist() == [LONG_AGO]


def test_names_that_are_no_utf8_are_files_too(tmp_path: Path, store: Path, space: Space) -> None:
    path = make_file(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")))
    with Memo(store, space) as memo:
        memo.note(marks_of([path]), some_keys(1))
        assert memo.find(marks_of([path]))[1].all()


def test_each_space_has_a_memo_of_its_own(paths: list[str], store: Path, space: Space) -> None:
    with Memo(store, space) as memo:
        memo.note(marks_of(paths), some_keys(5))
    assert not Memo(store, Space(7)).find(marks_of(paths))[1].any()


def test_what_was_flushed_is_known_to_others_at_once(
    paths: list[str], store: Path, space: Space
) -> None:
    memo = Memo(store, space)
    memo.note(marks_of(paths), some_keys(5))
    memo.flush()
    assert Memo(store, space).find(marks_of(paths))[1].all()


def test_a_damaged_note_is_not_known(paths: list[str], store: Path, space: Space) -> None:
    with Memo(store, space) as memo:
        memo.note(marks_of(paths), some_keys(5))
    (segment,) = store.rglob("*.safetensors")
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    with pytest.warns(match="checksum"):
        assert Memo(store, space).find(marks_of(paths))[1].sum() == 4


def test_joined_marks_lie_in_order(paths: list[str]) -> None:
    whole = joined([marks_of(paths[:2]), marks_of(paths[2:])])
    np.testing.assert_array_equal(whole.names, marks_of(paths).names)
    assert len(joined([])) == 0


RUNS = 20


def note_again_and_again(paths: list[str], store: Path, space: Space) -> list[int]:
    """Note files that change before each of many jobs; return the size of the memo after each."""
    sizes = []
    for run in range(RUNS):
        for path in paths:
            make_file(Path(path), mtime_ns=LONG_AGO + run)
        with Memo(store, space) as memo:
            memo.note(marks_of(paths), some_keys(len(paths), run))
        segments = store.glob("spaces/*/memo/**/*.safetensors")
        sizes.append(sum(p.stat().st_size for p in segments))
    return sizes


@pytest.mark.parametrize("segment_bytes", [_memo._SEGMENT_BYTES, 200])
def test_memo_does_not_grow_with_jobs_over_files_that_change(
    paths: list[str],
    store: Path,
    space: Space,
    monkeypatch: pytest.MonkeyPatch,
    segment_bytes: int,
) -> None:
    monkeypatch.setattr(_memo, "_SEGMENT_BYTES", segment_bytes)
    FeatureStore(store, space).close()
    sizes = note_again_and_again(paths, store, space)
    assert max(sizes) <= _memo._MOST_SMALL * sizes[0]
    found, known = Memo(store, space).find(marks_of(paths))
    assert known.all()
    np.testing.assert_array_equal(found, some_keys(5, RUNS - 1))


def test_memo_is_not_merged_while_somebody_rearranges_the_store(
    paths: list[str], store: Path, space: Space
) -> None:
    FeatureStore(store, space).close()
    with administration(store):
        note_again_and_again(paths, store, space)
    assert len(list(store.glob("spaces/*/memo/**/*.safetensors"))) == RUNS


def test_memo_is_not_merged_while_another_job_has_it_open(
    paths: list[str], store: Path, space: Space
) -> None:
    FeatureStore(store, space).close()
    with Memo(store, space):
        note_again_and_again(paths, store, space)
    assert len(list(store.glob("spaces/*/memo/**/*.safetensors"))) == RUNS


def test_memo_is_merged_with_its_store(paths: list[str], store: Path, space: Space) -> None:
    FeatureStore(store, space).close()
    for key in range(2):
        with Memo(store, space) as memo:
            memo.note(marks_of(paths), some_keys(5, key))
    compact(store)
    assert len(list(store.glob("spaces/*/memo/**/*.safetensors"))) == 1
    np.testing.assert_array_equal(Memo(store, space).find(marks_of(paths))[0], some_keys(5, 1))


def test_memo_closes_while_another_job_merges_it(
    paths: list[str], store: Path, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureStore(store, space).close()
    with Memo(store, space) as memo:
        memo.note(marks_of(paths), some_keys(5, 0))
    listing = _memo.files

    def files_that_are_merged(folder: Path, suffix: str) -> list[Path]:
        listed = listing(folder, suffix)
        compact(store)
        return listed

    monkeypatch.setattr(_memo, "files", files_that_are_merged)
    with Memo(store, space) as memo:
        memo.note(marks_of(paths), some_keys(5, 1))
    np.testing.assert_array_equal(Memo(store, space).find(marks_of(paths))[0], some_keys(5, 1))
