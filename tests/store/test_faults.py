"""One operation that fails, one write that is torn: at every operation, at every byte."""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat import _core as core
from pyfeat.errors import StoreError
from pyfeat.store import verify

from .conftest import put_one_by_one, some_keys, some_rows
from .power_loss import recorded

N = 3
pytestmark = pytest.mark.filterwarnings("ignore::pyfeat.errors.StoreWarning")


def check(root: Path, space: Space, flushed: list[int], what: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is damaged: a torn write is no news
        rows, intact = FeatureStore(root, space).get_intact(some_keys(N))
    assert intact[flushed].all(), what
    np.testing.assert_array_equal(rows[intact], some_rows(N)[intact], err_msg=what)
    assert verify(root) == []


def appends(root: Path, space: Space) -> list[tuple[int, int]]:
    """Return (operation, bytes) of every write that a whole run does."""
    with recorded() as record:
        assert put_one_by_one(root, space, N) == list(range(N))
    return [(n, len(o[3])) for n, o in enumerate(record.operations, 1) if o[0] == "append"]


def tears(root: Path, space: Space, every: bool) -> Iterator[tuple[int, int]]:
    for n, size in appends(root, space):
        some = {0, 1, size // 3, size - 1, size}
        for kept in range(size + 1) if every else sorted(some):
            yield n, kept


@pytest.mark.parametrize(
    ("fail", "every"),
    [
        (core.fail_operation, False),
        (core.fail_from_operation, False),
        pytest.param(core.fail_operation, True, marks=pytest.mark.slow),
    ],
)
def test_write_torn_at_any_byte_costs_no_flushed_row(
    elsewhere: Path, space: Space, fail: Callable[..., None], every: bool
) -> None:
    lasting = fail is core.fail_from_operation
    for n, kept in tears(elsewhere / "whole", space, every):
        fail(n, errno.ENOSPC, kept)
        try:
            flushed = put_one_by_one(elsewhere / "torn", space, N, goes_on=not lasting)
        finally:
            core.fail_operation(0, 0)
        check(elsewhere / "torn", space, flushed, f"operation {n} torn after {kept} bytes")
        shutil.rmtree(elsewhere / "torn")


def test_one_failed_operation_anywhere_does_not_stop_the_writer(
    elsewhere: Path, space: Space
) -> None:
    with recorded() as record:
        put_one_by_one(elsewhere / "whole", space, N)
    for n in range(1, len(record.operations) + 1):
        root = elsewhere / str(n)
        core.fail_operation(n, errno.ENOSPC)
        try:
            flushed = put_one_by_one(root, space, N)
        finally:
            core.fail_operation(0, 0)
        assert len(flushed) >= N - 1, f"operation {n}"
        check(root, space, flushed, f"operation {n}")


def test_only_the_named_operation_fails(tmp_path: Path) -> None:
    core.fail_operation(2, errno.EIO)
    try:
        core.make_folder(bytes(tmp_path / "a"))
        with pytest.raises(StoreError, match=r"cannot make a folder \(Input/output error\): .*/b"):
            core.make_folder(bytes(tmp_path / "b"))
        core.make_folder(bytes(tmp_path / "b"))
    finally:
        core.fail_operation(0, 0)


def test_torn_write_leaves_as_many_bytes_as_it_was_told(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    with recorded() as record:
        core.fail_operation(2, errno.EIO, 3)
        try:
            with pytest.raises(StoreError, match="cannot write"):
                core.replace_file(lambda: b"unused", bytes(hidden), b"content")
        finally:
            core.fail_operation(0, 0)
    assert record.operations == [
        ("create", False, str(hidden), None),
        ("append", True, str(hidden), b"con"),
        ("remove", False, str(hidden), None),
    ]


def test_newest_of_several_dead_tails_wins_also_after_recovery(
    tmp_path: Path, space: Space
) -> None:
    # The newest tail was sealed first, so that the oldest row of a key came back.
    writers = [FeatureStore(tmp_path / "alive", space) for _ in range(3)]
    for writer, row in zip(writers, some_rows(3), strict=True):
        writer.put(some_keys(1), row[None])
        writer.flush()
    shutil.copytree(tmp_path / "alive", tmp_path / "dead")
    for mode in ("r", "a", "r"):
        store = FeatureStore(tmp_path / "dead", space, mode=mode)
        np.testing.assert_array_equal(store.get(some_keys(1)), some_rows(3)[2:])
