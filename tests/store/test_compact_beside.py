"""Files are merged while others are being written, listed or left behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat._model_file import publish_file
from pyfeat.store import Item, _item_log, _layout, compact, read_items, repair, write_items
from pyfeat.store._layout import new_id
from pyfeat.store._lock import administration, take

from .conftest import some_keys, some_rows

N = 3


def put(root: Path, space: Space, keys: int, rows: int) -> None:
    with FeatureStore(root, space) as store:
        store.put(some_keys(N, keys), some_rows(N, rows))


def on_call(n: int, do: Callable[[], None], of: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does something else, too, when it is called for the n-th time."""
    left = n

    def called(*args: Any) -> Any:
        nonlocal left
        left -= 1
        result = of(*args)
        if left == 0:
            do()
        return result

    return called


# --- written meanwhile ---------------------------------------------------------------------


def test_rows_that_are_being_sealed_win_over_older_ones_that_are_merged(
    tmp_path: Path, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, space, keys=0, rows=1)
    writer = FeatureStore(tmp_path, space)

    def merge() -> None:
        put(tmp_path, space, keys=5, rows=5)  # under a later name
        compact(tmp_path)

    # For its tail a writer asks once for a name, for its segment once more.
    monkeypatch.setattr(_layout, "new_id", on_call(2, merge, new_id))
    writer.put(some_keys(N), some_rows(N, 2))
    writer.close()
    got = FeatureStore(tmp_path, space, mode="r").get(some_keys(N))
    np.testing.assert_array_equal(got, some_rows(N, 2))


@pytest.mark.parametrize("n", [1, 2])
def test_words_that_are_being_written_win_over_older_ones_that_are_merged(
    tmp_path: Path, space: Space, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    FeatureStore(tmp_path, space).close()
    old, new = (Item("a", bytes([i]) * 16) for i in range(2))
    write_items(tmp_path, space, [old])

    def merge() -> None:
        write_items(tmp_path, space, [Item("b", b"b" * 16)])
        compact(tmp_path)

    monkeypatch.setattr(_item_log, "new_id", on_call(n, merge, new_id))
    write_items(tmp_path, space, [new])
    assert read_items(tmp_path, space)[0] == new


# --- listed meanwhile ----------------------------------------------------------------------


class Listing:
    """A listing in which all changes happen after it has begun, and before it sees a file.

    What is made meanwhile may be missing in it, and what is removed is.
    """

    def __init__(self, folder: Path, change: Callable[[], None]) -> None:
        with os.scandir(folder) as entries:
            before = list(entries)
        change()
        self.entries = [e for e in before if Path(e.path).exists()]

    def __enter__(self) -> Iterator[os.DirEntry[str]]:
        return iter(self.entries)

    def __exit__(self, *_: object) -> None:
        pass


def merged_while_listed(root: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Have the n-th listing from now miss what is merged, and what it is merged into."""
    real = os.scandir

    def scandir(folder: Path) -> Any:
        nonlocal n
        n -= 1
        if n:
            return real(folder)
        monkeypatch.setattr(_layout, "os", os)
        return Listing(folder, lambda: compact(root) and None)

    monkeypatch.setattr(_layout, "os", SimpleNamespace(**vars(os) | {"scandir": scandir}))


@pytest.mark.parametrize("n", [1, 2])
def test_reader_that_lists_while_segments_are_merged_finds_every_row(
    tmp_path: Path, space: Space, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    for seed in range(3):
        put(tmp_path, space, seed, seed)
    merged_while_listed(tmp_path, monkeypatch, n)
    store = FeatureStore(tmp_path, space, mode="r")
    assert _layout.os is os  # it was merged
    assert len(store) == 3 * N


def test_items_are_read_whole_while_lists_are_merged(
    tmp_path: Path, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureStore(tmp_path, space).close()
    for name in "abc":
        write_items(tmp_path, space, [Item(name, b"k" * 16)])
    merged_while_listed(tmp_path, monkeypatch, 1)
    assert [item.name for item in read_items(tmp_path, space)] == ["a", "b", "c"]


# --- left behind ---------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, space: Space) -> Path:
    put(tmp_path / "f", space, 0, 1)
    FeatureStore(next((tmp_path / "f").glob("spaces/*")) / "memo", Space(2)).close()
    return tmp_path / "f"


ID = "18ea336e0abd4d18-83e8390c11c88564"
LEFT = [
    ".pyfeat-store.json.0123456789abcdef.tmp",
    "spaces/*/.space.json.0123456789abcdef.tmp",
    f"spaces/*/.{ID}.items.jsonl.tmp",
    f"spaces/*/{ID}.tail.seal.tmp",
    f"spaces/*/{ID}.safetensors.merge.tmp",
    "spaces/*/memo/.pyfeat-store.json.0123456789abcdef.tmp",
    "spaces/*/memo/spaces/*/.space.json.0123456789abcdef.tmp",
]


@pytest.mark.parametrize("care", [compact, repair])
@pytest.mark.parametrize("pattern", LEFT)
def test_hidden_file_of_a_dead_writer_is_removed(
    store: Path, pattern: str, care: Callable[[Path], Any]
) -> None:
    folder, _, name = pattern.rpartition("/")
    hidden = next(store.glob(folder)) / name if folder else store / name
    hidden.write_bytes(b"half of it")
    care(store)
    assert not hidden.exists()


def test_hidden_file_of_somebody_else_stays(store: Path) -> None:
    other = store / ".rows.parquet.0123456789abcdef.tmp"
    other.write_bytes(b"half of an export")
    compact(store)
    assert other.exists()


@pytest.mark.parametrize("care", [compact, repair])
def test_hidden_file_of_a_living_writer_stays(store: Path, care: Callable[[Path], Any]) -> None:
    (folder,) = store.glob("spaces/*")
    hidden, target = folder / ".golden.json.0123456789abcdef.tmp", store / "file"

    def name() -> Path:
        assert hidden.exists()
        care(store)
        return target

    publish_file(hidden, name, b"content")
    assert target.read_bytes() == b"content"


def test_hidden_segment_stays_where_its_tail_is(store: Path) -> None:
    writer = FeatureStore(store)
    writer.put(some_keys(N), some_rows(N))
    (tail,) = store.glob("spaces/*/*.tail")
    hidden = tail.with_name(tail.name + ".seal.tmp")
    hidden.write_bytes(b"half of it")
    compact(store)
    assert hidden.exists()


# --- forked meanwhile ----------------------------------------------------------------------


@pytest.fixture
def fork() -> Iterator[Callable[[], None]]:
    """Return what forks a child that has open what this process has, until the test ends."""
    waits, ends = os.pipe()
    children = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os.close(ends)
            os.read(waits, 1)
            os._exit(0)
        children.append(child)

    yield fork
    os.close(ends)
    for child in children:
        os.waitpid(child, 0)
    os.close(waits)


def test_store_that_was_rearranged_is_not_in_the_hands_of_a_child(
    store: Path, fork: Callable[[], None]
) -> None:
    with administration(store):
        fork()
    assert compact(store)


def test_file_that_was_written_is_not_locked_by_a_child(
    tmp_path: Path, fork: Callable[[], None]
) -> None:
    def name() -> Path:
        fork()
        return tmp_path / "file"

    publish_file(tmp_path / ".file.tmp", name, b"content")
    held = take(tmp_path / "file", exclusive=True)
    assert held is not None
    held.close()
