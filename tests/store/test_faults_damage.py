"""Files of a store cut at every byte, and with every bit flipped: rows right, or named."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat.errors import CorruptStoreError, StoreError, StoreWarning
from pyfeat.store import Item, read_items, verify, write_items

from .conftest import DIM, some_keys, some_rows

N = 4
HEADER = 64
RECORD = 16 + 4 * DIM + 4


@pytest.fixture
def store(elsewhere: Path, space: Space) -> Path:
    """A store with rows 0 and 1 in a segment and 2 and 3 in the tail of a dead writer."""
    with FeatureStore(elsewhere / "store", space) as writer:
        writer.put(some_keys(N)[:2], some_rows(N)[:2])
    writer = FeatureStore(elsewhere / "store", space)
    writer.put(some_keys(N)[2:], some_rows(N)[2:])
    writer.flush()
    return elsewhere / "store"


def file_of(root: Path, suffix: str) -> Path:
    (path,) = root.glob(f"spaces/*/*{suffix}")
    return path


def seen(root: Path) -> tuple[list[int], list[str]]:
    """Return which rows a reader gets, after checking that they are right, and its warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", StoreWarning)
        rows, intact = FeatureStore(root, mode="r").get_intact(some_keys(N))
    np.testing.assert_array_equal(rows[intact], some_rows(N)[intact])
    return np.flatnonzero(intact).tolist(), [str(w.message) for w in told]


def flips(path: Path, offsets: Iterator[int] | range) -> Iterator[tuple[int, int]]:
    """Yield (byte, bit) with that bit of the file flipped, and mend it after."""
    with path.open("r+b", buffering=0) as f:
        content = path.read_bytes()
        for offset in offsets:
            for bit in range(8):
                f.seek(offset)
                f.write(bytes([content[offset] ^ (1 << bit)]))
                yield offset, bit
            f.seek(offset)
            f.write(content[offset : offset + 1])


def places(root: Path, path: Path) -> list[int]:
    """Return the offsets at which `verify` finds a file damaged; it names no other file."""
    found = verify(root)
    assert {d.path for d in found} <= {str(path)}
    return [d.offset for d in found]


def test_segment_cut_at_any_byte_is_named_and_costs_only_its_rows(store: Path) -> None:
    path = file_of(store, ".safetensors")
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        rows, told = seen(store)
        assert rows == [2, 3], f"cut at {size}"
        assert len(told) == 1
        assert str(path) in told[0]
        (place,) = places(store, path)
        assert place <= size
    path.write_bytes(content)
    assert seen(store) == ([0, 1, 2, 3], [])


def test_tail_cut_at_any_byte_is_no_damage(store: Path) -> None:
    path = file_of(store, ".tail")
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        whole = max(0, size - HEADER) // RECORD
        assert seen(store) == ([0, 1, *range(2, 2 + whole)], []), f"cut at {size}"
        assert places(store, path) == []


def check_flips_of_segment(root: Path, begin: int, end: int) -> None:
    length = int.from_bytes(file_of(root, ".safetensors").read_bytes()[:8], "little")
    path = file_of(root, ".safetensors")
    for offset, bit in flips(path, range(begin, end)):
        rows, told = seen(root)
        assert {2, 3} <= set(rows), f"byte {offset}, bit {bit}"
        assert all(str(path) in message for message in told)
        damaged = places(root, path)
        assert damaged, f"byte {offset}, bit {bit}"
        # A flip in the header may be told of the table that it speaks of.
        assert offset < 8 + length or min(damaged) <= offset


@pytest.mark.slow
def test_any_flipped_bit_of_a_segments_header_is_found_and_gives_no_wrong_row(store: Path) -> None:
    length = int.from_bytes(file_of(store, ".safetensors").read_bytes()[:8], "little")
    check_flips_of_segment(store, 0, 8 + length)


def test_any_flipped_bit_of_a_segments_tables_is_found_and_gives_no_wrong_row(store: Path) -> None:
    content = file_of(store, ".safetensors").read_bytes()
    check_flips_of_segment(store, 8 + int.from_bytes(content[:8], "little"), len(content))


def test_any_flipped_bit_of_a_tail_costs_at_most_its_record(store: Path) -> None:
    path = file_of(store, ".tail")
    for offset, bit in flips(path, range(HEADER + 2 * RECORD)):
        hit = (offset - HEADER) // RECORD  # below 0: the header, which costs no row
        kept = [row for row in range(N) if row != 2 + hit or hit < 0]
        assert seen(store)[0] == kept, f"byte {offset}, bit {bit}"
        assert places(store, path) == [HEADER + hit * RECORD if hit >= 0 else 0]


def test_any_flipped_bit_of_the_marker_is_an_error_or_costs_nothing(store: Path) -> None:
    path = store / "pyfeat-store.json"
    for offset, bit in flips(path, range(path.stat().st_size)):
        told = ""
        try:
            assert seen(store)[0] == [0, 1, 2, 3], f"byte {offset}, bit {bit}"
        except StoreError as error:
            told = str(error)
        assert told == "" or str(path) in told


def test_marker_cut_at_any_byte_is_an_error(store: Path) -> None:
    path = store / "pyfeat-store.json"
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        for mode in ("r", "a"):
            with pytest.raises(CorruptStoreError, match=re.escape(str(path))):
                FeatureStore(store, mode=mode)


def test_damaged_description_of_a_space_is_named_and_costs_no_row(
    store: Path, space: Space
) -> None:
    path = file_of(store, "space.json")
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.warns(StoreWarning, match=re.escape(str(path))):
            assert FeatureStore.spaces(store) == []
        np.testing.assert_array_equal(
            FeatureStore(store, space, mode="r").get(some_keys(N)), some_rows(N)
        )


def test_items_cut_at_any_byte_keep_the_lines_before(elsewhere: Path, space: Space) -> None:
    items = [Item("a", b"k" * 16), Item("b", None, "broken")]
    write_items(elsewhere, space, items)
    path = file_of(elsewhere, ".items.jsonl")
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", StoreWarning)
            found = read_items(elsewhere, space)
        n = (content[:size] + content[size : size + 1].replace(b"{", b"")).count(b"\n")
        assert found == items[:n]
        assert bool(told) == bool(places(elsewhere, path))


def test_list_of_keys_of_a_cut_tail_is_an_error_not_a_crash(store: Path) -> None:
    # It read behind the end of the file, and the process was killed.
    reader = FeatureStore(store, mode="r")
    file_of(store, ".tail").write_bytes(b"")
    with pytest.raises(StoreError, match="is shorter than it was"):
        reader.keys()


def damage_order(root: Path, row: int) -> None:
    path = file_of(root, ".safetensors")
    content = bytearray(path.read_bytes())
    order = 8 + int.from_bytes(content[:8], "little") + 2 * 16
    content[order : order + 8] = row.to_bytes(8, "little")
    path.write_bytes(content)


@pytest.mark.parametrize("row", [2, 2**63, 2**64 - 1])
def test_key_whose_row_lies_outside_is_not_listed(store: Path, row: int) -> None:
    # Sixteen zeros stood in its place, a key of nothing, and a view of the store was an error.
    damage_order(store, row)
    with FeatureStore(store, mode="r") as reader:
        assert reader.contains(reader.keys()).all()
        assert len(reader) == N - 1
        assert len(reader.view()) == N - 1


@pytest.mark.parametrize("row", [0, 1])
def test_row_named_by_two_keys_is_given_to_the_right_one(store: Path, row: int) -> None:
    damage_order(store, row)
    reader = FeatureStore(store, mode="r")
    assert len(reader) == N
    assert reader.contains(reader.keys()).all()
    seen(store)


def test_keys_that_a_damaged_table_hides_are_left_out_of_a_view(store: Path) -> None:
    path = file_of(store, ".safetensors")
    content = bytearray(path.read_bytes())
    keys = 8 + int.from_bytes(content[:8], "little")
    content[keys : keys + 16], content[keys + 16 : keys + 32] = (
        content[keys + 16 : keys + 32],
        content[keys : keys + 16],
    )
    path.write_bytes(content)
    reader = FeatureStore(store, mode="r")
    with pytest.warns(StoreWarning, match=f"{re.escape(str(store))}: 2 keys of damaged tables"):
        view = reader.view()
    np.testing.assert_array_equal(np.asarray(view), some_rows(N)[2:])


def test_segment_that_is_gone_is_not_news(store: Path) -> None:
    reader = FeatureStore(store, mode="r")
    file_of(store, ".safetensors").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader.refresh()
    assert reader.contains(some_keys(N)).tolist() == [False, False, True, True]
