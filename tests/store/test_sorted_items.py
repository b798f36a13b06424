"""However long the list of inputs is, it comes in order of name, with the latest words."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest

from pyfeat import Space
from pyfeat.errors import StoreError
from pyfeat.store import Item, ItemLog, _sorted_items, iter_items, write_items
from pyfeat.store._items import item_line
from pyfeat.store._layout import create_space, new_id

SPACE = Space(2)
NAMES = ["", "a", "a\0", "a\n", "é", "\U0001f600", "\ue000", os.fsdecode(b"\xff"), *"bcdefgh"]


def some_items(n: int) -> list[Item]:
    """Words on few names: most of them are overruled."""
    rng = random.Random(n)
    return [
        Item(name, rng.randbytes(16)) if rng.random() < 0.7 else Item(name, None, str(rng.random()))
        for name in rng.choices(NAMES, k=n)
    ]


@pytest.mark.parametrize("n", [0, 1, 4, 5, 8, 60])
def test_latest_words_come_in_order_of_name_whatever_is_sorted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setattr(_sorted_items, "BLOCK", 4)
    monkeypatch.setattr(_sorted_items, "_CHUNK", 3)
    items = some_items(n)
    folder = create_space(tmp_path, SPACE)
    for start in range(0, n, 7):  # lists and blocks end elsewhere
        lines = [item_line(item) + "\n" for item in items[start : start + 7]]
        (folder / f"{new_id()}.items.jsonl").write_text("".join(lines))
    latest = {item.name: item for item in items}
    assert list(iter_items(tmp_path, SPACE)) == [latest[name] for name in sorted(latest)]


def test_items_that_were_begun_are_read_to_the_end_though_others_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sorted_items, "BLOCK", 2)
    log = ItemLog(tmp_path, SPACE, piece=1)
    items = [Item(name, b"k" * 16) for name in "abcde"]
    for item in items:
        log.add(item)
    begun = iter_items(tmp_path, SPACE)
    first = next(begun)
    log.add(Item("aa", b"k" * 16))
    assert [first, *begun] == items


def test_missing_folder_for_temporary_files_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_items(tmp_path, SPACE, [Item(name, b"k" * 16) for name in "abc"])
    monkeypatch.setattr(_sorted_items, "BLOCK", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StoreError, match="TMPDIR must name a folder"):
        list(iter_items(tmp_path, SPACE))
