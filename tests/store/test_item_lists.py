"""The list of inputs is read whole, however many files it has and whatever is merged meanwhile."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat.store import Item, ItemLog, _items, compact, quarantined_names, read_items, write_items
from pyfeat.store._item_lists import count_items
from pyfeat.store._layout import space_folder
from pyfeat.store._names import _MOST_OPEN, Names

from .conftest import some_keys

N = 3
BAD = Item("bad", None, "is cut off")


def item(i: int) -> Item:
    return Item(f"{i}", bytes(some_keys(i + 1)[i]))


@pytest.fixture
def store(tmp_path: Path, space: Space) -> Path:
    FeatureStore(tmp_path / "f", space).close()
    for i in range(N):
        write_items(tmp_path / "f", space, [item(i)])
    write_items(tmp_path / "f", space, [BAD])
    return tmp_path / "f"


@pytest.fixture
def merged_once_listed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the lists merged after they were listed for the first time, before one is opened."""
    files = _items.files

    def listed(folder: Path, suffix: str) -> list[Path]:
        found = files(folder, suffix)
        monkeypatch.setattr(_items, "files", files)
        compact(store)
        return found

    monkeypatch.setattr(_items, "files", listed)


def add_again(root: Path, space: Space) -> int:
    log = ItemLog(root, space)
    log.add(item(0))
    log.flush()
    return len(list(root.glob("spaces/*/*.items.jsonl")))


READS: list[tuple[Callable[[Path, Space], Any], Any]] = [
    (read_items, [*map(item, range(N)), BAD]),
    (lambda root, space: count_items(space_folder(root, space)), (N, [BAD])),
    (quarantined_names, {"bad"}),
    (add_again, 1),
    (lambda root, space: len(Names(space_folder(root, space)).keys()), N),
]


@pytest.mark.usefixtures("merged_once_listed")
@pytest.mark.parametrize(("read", "wanted"), READS)
def test_lists_merged_after_they_were_listed_are_read_again(
    store: Path, space: Space, read: Callable[[Path, Space], Any], wanted: Any
) -> None:
    assert read(store, space) == wanted


def test_names_survive_a_merge_between_reading_and_asking(store: Path, space: Space) -> None:
    every, some = (Names(space_folder(store, space)) for _ in range(2))
    compact(store)
    assert len(every.keys()) == N
    assert len(some.sample(N, np.random.default_rng(0))) == N


@pytest.fixture
def few_open_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MOST_OPEN + 100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_open_files")
def test_more_lists_than_files_may_be_open(tmp_path: Path, space: Space) -> None:
    n = _MOST_OPEN + 120
    keys = some_keys(n)
    folder = space_folder(tmp_path, space)
    folder.mkdir(parents=True)
    for i, key in enumerate(keys):
        line = _items.item_line(Item(f"{i}", bytes(key)))
        (folder / f"{i:016x}-0123456789abcdef.items.jsonl").write_text(f"{line}\n")
    names = Names(folder)
    assert names.of(keys) == [[f"{i}"] for i in range(n)]
    assert len(names.keys()) == n
