"""The list of inputs, written in pieces."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pyfeat import Space
from pyfeat._identity import canonical_json
from pyfeat.errors import StoreWarning
from pyfeat.store import (
    Item,
    ItemLog,
    _items,
    quarantined,
    quarantined_names,
    read_items,
    write_items,
)
from pyfeat.store._compact_items import compact_items
from pyfeat.store._items import item_line
from pyfeat.store._layout import files

SPACE = Space(2)
NAMES = ["/a/1.jpg", '/a/"quoted".jpg', "/a/é中.jpg", os.fsdecode(b"/a/\xff.jpg"), "/a/\n.jpg"]
KEYS = np.arange(16 * len(NAMES), dtype=np.uint8).reshape(-1, 16)


def files_of(store: Path) -> list[Path]:
    return sorted(store.glob("spaces/*/*.items.jsonl"))


def test_rows_are_written_as_items_are(tmp_path: Path) -> None:
    log = ItemLog(tmp_path / "f", SPACE)
    log.add_rows(NAMES, KEYS)
    log.flush()
    items = [Item(n, k.tobytes()) for n, k in zip(NAMES, KEYS, strict=True)]
    (file,) = files_of(tmp_path / "f")
    assert file.read_text().splitlines() == [item_line(i) for i in items]
    assert read_items(tmp_path / "f", SPACE) == sorted(items, key=lambda i: i.name)


@pytest.mark.parametrize("name", NAMES)
def test_line_of_an_item_is_canonical_json(name: str) -> None:
    assert item_line(Item(name, KEYS[1].tobytes())) == canonical_json(
        {"name": name, "key": KEYS[1].tobytes().hex()}
    )
    assert item_line(Item(name, None, name)) == canonical_json({"name": name, "reason": name})


def test_pieces_are_written_while_items_come(tmp_path: Path) -> None:
    log = ItemLog(tmp_path / "f", SPACE, piece=2)
    for name, key in zip(NAMES, KEYS, strict=True):
        log.add(Item(name, key.tobytes()))
    assert len(files_of(tmp_path / "f")) == 2
    log.flush()
    assert len(read_items(tmp_path / "f", SPACE)) == len(NAMES)


def test_what_the_list_says_is_left_out(tmp_path: Path) -> None:
    for _ in range(2):
        log = ItemLog(tmp_path / "f", SPACE)
        log.add_rows(NAMES, KEYS)
        log.add(Item("bad", None, "broken"))
        log.flush()
    assert len(files_of(tmp_path / "f")) == 1


def test_return_to_an_earlier_state_is_written(tmp_path: Path) -> None:
    good, bad = Item("a", b"k" * 16), Item("a", None, "broken")
    assert [write_items(tmp_path / "f", SPACE, [i]) for i in (good, bad, good, good)] == [
        1,
        1,
        1,
        0,
    ]
    assert read_items(tmp_path / "f", SPACE) == [good]


@pytest.mark.parametrize("piece", [1, 2, 10])
def test_return_to_what_the_list_said_at_first_is_written(tmp_path: Path, piece: int) -> None:
    # The list said k1; k2 was written, and then k1 left out, because the list had said it.
    write_items(tmp_path / "f", SPACE, [Item("a", b"1" * 16)])
    log = ItemLog(tmp_path / "f", SPACE, piece)
    for key in (b"2" * 16, b"1" * 16):
        log.add(Item("a", key))
    log.flush()
    assert read_items(tmp_path / "f", SPACE) == [Item("a", b"1" * 16)]


def test_input_that_is_given_twice_is_left_out_where_the_list_says_it(tmp_path: Path) -> None:
    item = Item("a", b"1" * 16)
    write_items(tmp_path / "f", SPACE, [item])
    assert write_items(tmp_path / "f", SPACE, [item, item]) == 0


def test_quarantine_is_what_the_latest_word_says(tmp_path: Path) -> None:
    bad = [Item(name, None, "broken") for name in NAMES]
    write_items(tmp_path / "f", SPACE, bad)
    write_items(tmp_path / "f", SPACE, [Item(NAMES[2], b"k" * 16)])
    assert quarantined_names(tmp_path / "f", SPACE) == {*NAMES} - {NAMES[2]}


def test_store_without_a_list_has_no_quarantine(tmp_path: Path) -> None:
    assert quarantined_names(tmp_path / "f", SPACE) == set()


def test_damaged_line_is_told_and_its_item_written_again(tmp_path: Path) -> None:
    items = [Item(n, k.tobytes()) for n, k in zip(NAMES, KEYS, strict=True)]
    write_items(tmp_path / "f", SPACE, items)
    (file,) = files_of(tmp_path / "f")
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    with pytest.warns(StoreWarning, match=r"line 5: not an item"):
        assert write_items(tmp_path / "f", SPACE, items) == 1


@pytest.fixture
def merged_once_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have lists be merged after they were listed for the first time, and before they are read."""

    def listed(folder: Path, suffix: str) -> list[Path]:
        monkeypatch.setattr(_items, "files", files)
        found = files(folder, suffix)
        compact_items(folder)
        return found

    monkeypatch.setattr(_items, "files", listed)


@pytest.fixture
def broken(tmp_path: Path) -> list[Item]:
    """Two inputs without a row, each in a list of its own."""
    items = [Item(name, None, "broken") for name in ("a", "b")]
    for item in items:
        write_items(tmp_path, SPACE, [item])
    return items


def test_list_may_be_merged_while_a_job_adds_to_it(
    tmp_path: Path, broken: list[Item], merged_once_listed: None
) -> None:
    assert write_items(tmp_path, SPACE, [*broken, Item("c", None, "broken")]) == 1


def test_names_in_quarantine_are_found_while_lists_are_merged(
    tmp_path: Path, broken: list[Item], merged_once_listed: None
) -> None:
    assert quarantined_names(tmp_path, SPACE) == {item.name for item in broken}


def test_quarantine_is_listed_while_lists_are_merged(
    tmp_path: Path, broken: list[Item], merged_once_listed: None
) -> None:
    assert quarantined(tmp_path, SPACE) == broken
