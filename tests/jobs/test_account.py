"""Every input of a job is computed, a hit, a duplicate or in quarantine."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from pyfeat import FeatureStore
from pyfeat.errors import StoreError
from pyfeat.jobs import JobInterrupted, extract
from pyfeat.jobs import _account as account
from pyfeat.store import read_items

from .conftest import pooled_colours


def counts(s: Any) -> tuple[int, int, int, int]:
    assert s.total == s.computed + s.hits + s.duplicates + s.n_quarantined
    return s.computed, s.hits, s.duplicates, s.n_quarantined


def test_hits_duplicates_and_quarantine_sum_up(class_folders: Path, tmp_path: Path) -> None:
    extract(class_folders / "blue", tmp_path / "feats", pooled_colours())
    shutil.copy(class_folders / "red" / "0.png", class_folders / "red" / "copy.png")
    shutil.copy(class_folders / "blue" / "0.png", class_folders / "blue" / "copy.png")
    (class_folders / "red" / "broken.png").write_bytes(b"no image")
    s = extract(class_folders, tmp_path / "feats", pooled_colours())
    assert counts(s) == (6, 7, 1, 1)
    assert s.to_dict()["stored"] == 8


def test_many_equal_inputs_are_one_row(class_folders: Path, tmp_path: Path) -> None:
    one = class_folders / "red" / "0.png"
    listed = tmp_path / "list.txt"
    folder = tmp_path / "copies"
    folder.mkdir()
    for i in range(1500):
        (folder / f"{i}.png").symlink_to(one)
    listed.write_text("\n".join(str(folder / f"{i}.png") for i in range(1500)))
    seen: list[int] = []
    fx = pooled_colours()
    s = extract(listed, tmp_path / "feats", fx, progress=lambda done, _: seen.append(done))
    assert counts(s) == (1, 0, 1499, 0)
    assert seen[-1] == 1500


def test_inputs_equal_to_one_without_a_row_are_all_in_quarantine(
    class_folders: Path, tmp_path: Path
) -> None:
    for i in range(3):
        (class_folders / "red" / f"broken{i}.png").write_bytes(b"no image")
    s = extract(class_folders, tmp_path / "feats", pooled_colours())
    assert counts(s) == (12, 0, 0, 3)
    assert len({q.path for q in s.quarantined}) == 3


def test_summary_lists_some_and_counts_all_in_quarantine(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "MAX_QUARANTINED", 2)
    for i in range(3):
        (class_folders / "red" / f"broken{i}.png").write_bytes(b"no image %d" % i)
    s = extract(class_folders, tmp_path / "feats", pooled_colours())
    assert (len(s.quarantined), s.n_quarantined) == (2, 3)
    (space,) = FeatureStore.spaces(tmp_path / "feats")
    assert sum(i.reason is not None for i in read_items(tmp_path / "feats", space)) == 3


def test_plain_run_tries_quarantined_inputs_again(class_folders: Path, tmp_path: Path) -> None:
    (class_folders / "red" / "broken.png").write_bytes(b"no image")
    for want in ((12, 0, 0, 1), (0, 12, 0, 1)):
        assert counts(extract(class_folders, tmp_path / "feats", pooled_colours())) == want


def test_retry_takes_only_what_is_in_quarantine(class_folders: Path, tmp_path: Path) -> None:
    broken = [class_folders / "red" / f"broken{i}.png" for i in range(2)]
    for path in broken:
        path.write_bytes(b"no image")
    extract(class_folders, tmp_path / "feats", pooled_colours())
    shutil.copy(class_folders / "red" / "0.png", class_folders / "red" / "new.png")
    shutil.copy(class_folders / "red" / "1.png", broken[0])
    s = extract(class_folders, tmp_path / "feats", pooled_colours(), retry_failed=True)
    assert counts(s) == (0, 1, 0, 1)
    assert [q.path for q in s.quarantined] == [str(broken[1])]


def test_retry_where_no_store_is_makes_none(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="must be a feature store"):
        extract(class_folders, tmp_path / "feasts", pooled_colours(), retry_failed=True)
    assert not (tmp_path / "feasts").exists()


def test_retry_where_nothing_failed_does_nothing(class_folders: Path, tmp_path: Path) -> None:
    extract(class_folders, tmp_path / "feats", pooled_colours())
    s = extract(class_folders, tmp_path / "feats", pooled_colours(), retry_failed=True)
    assert counts(s) == (0, 0, 0, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_job_with_everything_written(
    class_folders: Path, tmp_path: Path, number: int
) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 4:
            os.kill(os.getpid(), number)

    fx = pooled_colours().set_params(batch_size=4)
    with pytest.raises(JobInterrupted) as stopped:
        extract(class_folders, tmp_path / "feats", fx, progress=stop)
    s = stopped.value.summary
    assert (stopped.value.signal, s.computed, s.left) == (number, 4, 8)
    (space,) = FeatureStore.spaces(tmp_path / "feats")
    assert len(read_items(tmp_path / "feats", space)) == len(FeatureStore(tmp_path / "feats")) == 4
    assert counts(extract(class_folders, tmp_path / "feats", fx)) == (8, 4, 0, 0)


def test_handlers_of_signals_are_as_before(class_folders: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    extract(class_folders, tmp_path / "feats", pooled_colours())
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
