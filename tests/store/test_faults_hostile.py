"""A segment that somebody made to do harm: refused with path and reason, or read without harm."""

from __future__ import annotations

import copy
import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfeat import FeatureStore, Space
from pyfeat._core import Segment, StoreError
from pyfeat._identity import canonical_json
from pyfeat.errors import CorruptStoreError, StoreWarning
from pyfeat.store import read_items, verify
from pyfeat.store._segment_file import open_segment

from .conftest import DIM, some_keys, some_rows

N = 3
Header = dict[str, Any]


@pytest.fixture
def segment(elsewhere: Path, space: Space) -> Path:
    with FeatureStore(elsewhere / "store", space) as store:
        store.put(some_keys(N), some_rows(N))
    (path,) = (elsewhere / "store").glob("spaces/*/*.safetensors")
    return path


def split(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:begin]), content[begin:]


def join(path: Path, header: Header | str | bytes, tables: bytes) -> None:
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    path.write_bytes(len(text).to_bytes(8, "little") + text + tables)


def set_at(*path: str | int, to: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        for step in path[:-1]:
            header = header[step]
        header[path[-1]] = to

    return change


def check_refused(path: Path, space: Space, reason: str = "") -> None:
    """Check that a segment is refused by path, and that a store opens without it."""
    with pytest.raises(StoreError) as refused:
        open_segment(path, space)
    assert str(path) in str(refused.value)
    assert re.search(reason, str(refused.value))
    assert len(str(refused.value)) < 2000
    with pytest.warns(StoreWarning, match=f"a segment is left out: .*{path.name}"):
        store = FeatureStore(path.parents[2], space)
    assert not store.contains(some_keys(N)).any()
    assert {d.path for d in verify(path.parents[2])} == {str(path)}


OFFSETS = {
    "overlapping": ("order", "data_offsets", [40, 64]),
    "backwards": ("order", "data_offsets", [72, 48]),
    "negative": ("keys", "data_offsets", [-8, 40]),
    "beyond 64 bits": ("rows", "data_offsets", [84, 2**64 + 120]),
    "far": ("rows", "data_offsets", [2**63, 2**63 + 36]),
    "floats": ("keys", "data_offsets", [0.0, 48.0]),
    "text": ("keys", "data_offsets", ["0", "48"]),
    "true": ("keys", "data_offsets", [False, 48]),
    "none": ("keys", "data_offsets", None),
    "three": ("keys", "data_offsets", [0, 48, 48]),
    "dtype": ("rows", "dtype", "F16"),
    "dtype of order": ("order", "dtype", "I64"),
    "no dtype": ("rows", "dtype", []),
    "width": ("rows", "shape", [N, DIM + 1]),
    "one row more": ("order", "shape", [N + 1]),
    "rows beyond 64 bits": ("order", "shape", [2**70]),
    "negative rows": ("order", "shape", [-1]),
    "fraction of a row": ("order", "shape", [2.5]),
    "rows as a float": ("order", "shape", [3.0]),
    "rows as text": ("order", "shape", ["3"]),
    "no rows": ("order", "shape", []),
    "space": ("__metadata__", "space", "0" * 64),
    "space that is a list": ("__metadata__", "space", []),
    "version that is a number": ("__metadata__", "version", 1),
    "format that is an object": ("__metadata__", "format", {"a": "b" * 10**5}),
}


@pytest.mark.parametrize("place", OFFSETS.values(), ids=OFFSETS)
def test_header_that_says_something_else_is_refused(
    segment: Path, space: Space, place: tuple[str, str, Any]
) -> None:
    # Floats as offsets, and lists in the metadata, were a TypeError: the store did not open.
    header, tables = split(segment)
    set_at(*place[:-1], to=place[-1])(header)
    join(segment, header, tables)
    check_refused(segment, space, "byte 8: ")


@pytest.mark.parametrize("n", [2**60, 2**48, 10**6])
def test_header_of_more_rows_than_there_are_is_refused(segment: Path, space: Space, n: int) -> None:
    header, tables = split(segment)
    begin = 0
    for name, shape, size in (
        ("keys", [n, 16], 16),
        ("order", [n], 8),
        ("crcs", [n], 4),
        ("rows", [n, DIM], 4 * DIM),
    ):
        header[name] |= {"shape": shape, "data_offsets": [begin, begin + n * size]}
        begin += n * size
    join(segment, header, tables)
    check_refused(segment, space, "is no number of rows|is shorter than its header says")


TEXTS = {
    "nothing": b"",
    "a list": b"[]",
    "a number": b"12",
    "cut": b'{"keys": ',
    "deep lists": b"[" * 500_000,
    "deep objects": b'{"a":' * 150_000,
    "a long number": b"9" * 100_000,
    "no UTF-8": b'{"\xff\xfe": 1}',
    "UTF-16": '{"keys": 1}'.encode("utf-16"),
    "infinity": b'{"order": {"shape": [Infinity]}}',
    "a name twice": b'{"order": {"shape": [3], "shape": [3]}}',
    "no tensors": b"{}",
    "no object": b'{"__metadata__": 1}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_header_that_is_no_header_is_refused(segment: Path, space: Space, text: bytes) -> None:
    # Deep nesting was a RecursionError: the store did not open.
    join(segment, text, split(segment)[1])
    check_refused(segment, space, "byte [08]: ")


def test_header_that_names_a_tensor_twice_is_refused(segment: Path, space: Space) -> None:
    # Readers of safetensors differ in which of the two they believe.
    header, tables = split(segment)
    join(segment, json.dumps(header)[:-1] + ',"keys":' + json.dumps(header["keys"]) + "}", tables)
    check_refused(segment, space, "a name stands there twice")


@pytest.mark.parametrize("length", [0, 1, 2**20 + 1, 2**63, 2**64 - 1])
def test_impossible_length_of_the_header_is_refused(
    segment: Path, space: Space, length: int
) -> None:
    segment.write_bytes(length.to_bytes(8, "little") + segment.read_bytes()[8:])
    check_refused(segment, space, f"byte 0: {length} is no length")


def test_header_that_goes_on_beyond_the_file_is_refused(segment: Path, space: Space) -> None:
    content = segment.read_bytes()
    segment.write_bytes((2**20).to_bytes(8, "little") + content[8:])
    check_refused(segment, space, f"byte {len(content)}: the file ends in its header")


@pytest.mark.parametrize("layout", range(6))
def test_native_segment_refuses_tables_beyond_64_bits(segment: Path, layout: int) -> None:
    # n * row_bytes went round to 0, and every read was out of bounds.
    numbers = [N, 4 * DIM, 512, 512, 512, 512]
    numbers[layout] = 2**64 - 8 if layout > 1 else 2**63
    n, row_bytes, *tables = numbers
    with pytest.raises(StoreError, match="is shorter than its header says"):
        Segment(os.fsencode(segment), n, row_bytes, *tables)


def test_rows_of_a_size_that_goes_round_are_refused(segment: Path) -> None:
    with pytest.raises(StoreError, match="is shorter than its header says"):
        Segment(os.fsencode(segment), 2, 2**63, 512, 512, 512, 512)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**66), 2**66),
        st.sampled_from([0, 1, N, 16, 48, 72, 84, 120, 2**31, 2**32, 2**48, 2**63, 2**64 - 1]),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["F16", "F32", "U8", "U64", "keys", "rows", "pyfeat-segment"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[list[Any], Any]]:
    """Draw places in a header, as random steps down, and what to put there; None removes it."""
    steps = st.lists(st.integers(0, 7), min_size=1, max_size=3)
    return [(draw(steps), draw(VALUES)) for _ in range(draw(st.integers(1, 3)))]


def apply_change(header: Header, steps: list[int], value: Any) -> None:
    node: Any = header
    for i, step in enumerate(steps):
        if not isinstance(node, dict | list) or not node:
            return
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[step % len(keys)]
        inner = node[key]
        if i == len(steps) - 1 or not isinstance(inner, dict | list):
            node[key] = value
            return
        node = inner


def check_harmless(root: Path, space: Space) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)
        store = FeatureStore(root, space, mode="r")
        rows, intact = store.get_intact(some_keys(N))
        store.view()
    np.testing.assert_array_equal(rows[intact], some_rows(N)[intact])
    verify(root)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=changes(), cut=st.integers(0, 200), noise=st.binary(max_size=40))
def test_any_change_of_a_header_is_refused_or_gives_right_rows(
    segment: Path, space: Space, drawn: list[tuple[list[int], Any]], cut: int, noise: bytes
) -> None:
    whole = segment.read_bytes()
    try:
        header, tables = split(segment)
        changed = copy.deepcopy(header)
        for steps, value in drawn:
            apply_change(changed, steps, value)
        join(segment, changed, (noise + tables[len(noise) :])[: max(cut, len(noise))])
        check_harmless(segment.parents[2], space)
    finally:
        segment.write_bytes(whole)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_bytes_in_a_segment_are_refused_or_give_right_rows(
    segment: Path, space: Space, data: st.DataObject
) -> None:
    whole = segment.read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        new = data.draw(st.binary(max_size=24))
        content[at : at + data.draw(st.integers(0, 24))] = new
    try:
        segment.write_bytes(content)
        check_harmless(segment.parents[2], space)
    finally:
        segment.write_bytes(whole)


DESCRIPTIONS = {
    "deep": "[" * 100_000,
    "a list": "[1]",
    "parts that are a list": '{"dim":3,"dtype":"float32","parts":[1]}',
    "columns that are true": '{"dim":true,"dtype":"float32","parts":{}}',
    "half a column": '{"dim":2.5,"dtype":"float32","parts":{}}',
    "more columns than a tail can hold": f'{{"dim":{2**40},"dtype":"float32","parts":{{}}}}',
    "NaN": '{"dim":3,"dtype":"float32","parts":{"a":NaN}}',
    "a dtype that is a list": '{"dim":3,"dtype":["float32"],"parts":{}}',
}


@pytest.mark.parametrize("text", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_hostile_description_of_a_space_is_left_out_by_name(segment: Path, text: str) -> None:
    # Parts that were a list, or deep nesting, kept every other space from being read.
    try:
        value = json.loads(text)
        name = blake3(canonical_json(value).encode()).hexdigest()[:32]
    except (ValueError, RecursionError):
        name = "0" * 32
    folder = segment.parents[1] / name
    folder.mkdir()
    (folder / "space.json").write_text(text)
    with pytest.warns(StoreWarning, match=re.escape(str(folder / "space.json"))):
        assert len(FeatureStore.spaces(segment.parents[2])) == 1
    assert [d.path for d in verify(segment.parents[2])] == [str(folder / "space.json")]


def test_hostile_marker_is_an_error(segment: Path) -> None:
    marker = segment.parents[2] / "pyfeat-store.json"
    marker.write_text("[" * 100_000)
    with pytest.raises(CorruptStoreError, match=re.escape(str(marker))):
        FeatureStore(segment.parents[2])


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"name": 5, "reason": "a"}',
        '{"name": ["a"], "reason": "a"}',
        '{"name": "a", "key": "00"}',
        '{"name": "a", "key": 5}',
        '{"name": "a", "reason": 5}',
        '{"name": "a"}',
        "[]",
    ],
    ids=lambda line: line[:30],
)
def test_hostile_line_of_items_costs_only_itself(segment: Path, space: Space, line: str) -> None:
    # Names that are no text, and deep nesting, were errors of every command that lists items.
    path = segment.parent / "0-0.items.jsonl"
    path.write_text(f'{{"name": "z", "reason": "b"}}\n{line}\n')
    with pytest.warns(StoreWarning, match="line 2: not an item"):
        assert [i.name for i in read_items(segment.parents[2], space)] == ["z"]


@pytest.mark.parametrize("suffix", [".safetensors", ".tail", ".items.jsonl"])
def test_what_is_no_file_is_no_part_of_a_store(segment: Path, space: Space, suffix: str) -> None:
    # To open a pipe waits for whoever writes into it.
    os.mkfifo(segment.parent / f"0-0{suffix}")
    (segment.parent / f"1-1{suffix}").mkdir()
    store = FeatureStore(segment.parents[2], space)
    np.testing.assert_array_equal(store.get(some_keys(N)), some_rows(N))
    assert read_items(segment.parents[2], space) == []
    assert verify(segment.parents[2]) == []
