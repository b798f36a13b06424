"""What a job tells while it runs: a log of JSON lines, scalars for TensorBoard, a note."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pyfeat.extract import Times
from pyfeat.jobs import _report, extract
from pyfeat.jobs._log import JsonLines

from .conftest import pooled_colours


def events_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def make_old(folder: Path) -> None:
    """Have the files look as if nobody had changed them for long."""
    for file in folder.rglob("*.png"):
        os.utime(file, (1e9, 1e9))


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell progress after every input."""
    monkeypatch.setattr(_report, "SECONDS", 0.0)


def test_log_begins_and_ends_and_names_what_was_not_read(
    class_folders: Path, tmp_path: Path
) -> None:
    broken = class_folders / "red" / "broken.png"
    broken.write_bytes(b"no image")
    log = tmp_path / "logs" / "job.jsonl"
    s = extract(class_folders, tmp_path / "feats", pooled_colours(), log_json=log)
    first, middle, last = events_of(log)
    assert (first["event"], first["total"], first["space"]) == ("start", 13, s.space)
    assert (middle["event"], middle["path"]) == ("quarantined", str(broken))
    assert middle["reason"] == s.quarantined[0].reason
    assert (last["event"], last["computed"], last["n_quarantined"]) == ("end", 12, 1)


@pytest.mark.usefixtures("often")
def test_progress_has_rate_remaining_time_and_shares(class_folders: Path, tmp_path: Path) -> None:
    fx = pooled_colours().set_params(batch_size=4)
    extract(class_folders, tmp_path / "feats", fx, log_json=str(tmp_path / "log"))
    told = [e for e in events_of(tmp_path / "log") if e["event"] == "progress"]
    assert [e["done"] for e in told] == list(range(1, 13))
    assert all(e["items_per_second"] > 0 and e["eta_seconds"] >= 0 for e in told)
    assert sum(told[-1]["shares"].values()) == pytest.approx(1)
    assert set(told[-1]["shares"]) == {"read", "decode", "forward", "write"}


def test_unchanged_files_are_progress_too(class_folders: Path, tmp_path: Path) -> None:
    make_old(class_folders)
    extract(class_folders, tmp_path / "feats", pooled_colours())
    told: list[tuple[int, int]] = []
    extract(
        class_folders,
        tmp_path / "feats",
        pooled_colours(),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(12, 12)]


@pytest.mark.usefixtures("often")
def test_unchanged_files_are_not_in_the_rate(class_folders: Path, tmp_path: Path) -> None:
    make_old(class_folders)
    extract(class_folders, tmp_path / "feats", pooled_colours())
    (class_folders / "red" / "new.png").write_bytes(b"no image")
    log = tmp_path / "log"
    extract(class_folders, tmp_path / "feats", pooled_colours(), log_json=log)
    last = events_of(log)[-1]
    assert last["items_per_second"] * last["seconds"] == pytest.approx(1)


def test_error_that_ends_a_job_is_the_last_line(class_folders: Path, tmp_path: Path) -> None:
    def fail(done: int, _total: int) -> None:
        if done == 3:
            raise RuntimeError("no more")

    log = tmp_path / "log"
    with pytest.raises(RuntimeError):
        extract(class_folders, tmp_path / "feats", pooled_colours(), progress=fail, log_json=log)
    last = events_of(log)[-1]
    assert (last["event"], last["error"], last["done"]) == ("error", "RuntimeError: no more", 3)


def test_log_that_cannot_be_opened_ends_a_job_before_it_begins(
    class_folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(IsADirectoryError):
        extract(class_folders, tmp_path / "feats", pooled_colours(), log_json=tmp_path / "log")
    assert not (tmp_path / "feats").exists()


def test_full_disk_ends_the_log_and_not_the_job(class_folders: Path, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="/dev/full: the log ends here"):
        s = extract(class_folders, tmp_path / "feats", pooled_colours(), log_json="/dev/full")
    assert s.computed == 12


def test_log_goes_to_stdout_and_leaves_it_open(capsys: pytest.CaptureFixture[str]) -> None:
    log = JsonLines("-")
    log.tell("start", {"total": 1})
    log.close()
    print("after")
    line, after = capsys.readouterr().out.splitlines()
    assert (json.loads(line)["event"], after) == ("start", "after")


def test_scalars_are_written_for_tensorboard(class_folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "runs"
    extract(class_folders, tmp_path / "feats", pooled_colours(), tensorboard=folder)
    read = EventAccumulator(str(folder)).Reload()
    assert {"job/computed", "job/items_per_second", "share/forward"} <= set(read.Tags()["scalars"])
    (last,) = read.Scalars("job/computed")
    assert (last.step, last.value) == (12, 12)


def test_summary_says_where_the_time_went(class_folders: Path, tmp_path: Path) -> None:
    s = extract(class_folders, tmp_path / "feats", pooled_colours())
    assert all(s.times[name] > 0 for name in ("read", "decode", "forward", "write"))
    assert sum(s.shares.values()) == pytest.approx(1)
    again = extract(class_folders, tmp_path / "feats", pooled_colours())
    assert (again.times["decode"], again.times["forward"]) == (0, 0)


def test_taken_times_begin_at_zero() -> None:
    times = Times(read=1, wait=2)
    assert times.take() == Times(read=1, wait=2)
    assert times == Times()


def test_note_of_the_bar_has_counts_and_shares(class_folders: Path, tmp_path: Path) -> None:
    times = Times(read=1, decode=1, forward=2)
    account = type("Account", (), {"done": 7, "computed": 2, "quarantined": 1})()
    want = "4 stored, 1 not read | read 25% decode 25% forward 50% write 0%"
    assert _report.note(account, times) == want


def test_bar_ends_with_all_inputs_and_the_note(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(class_folders, tmp_path / "feats", pooled_colours(), progress=True)
    told = " ".join(capsys.readouterr().err.split())
    assert "12/12" in told
    assert "0 stored" in told


@pytest.mark.parametrize("what", ["inputs", "backbone", "column"])
def test_error_before_a_job_begins_is_in_the_log(
    what: str, class_folders: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    backbone: Any = "no such backbone" if what == "backbone" else pooled_colours()
    inputs = tmp_path / "nowhere" if what == "inputs" else class_folders
    column = "path" if what == "column" else None
    with pytest.raises(ValueError, match="must") as raised:
        extract(inputs, tmp_path / "feats", backbone, column=column, log_json=log)
    (last,) = events_of(log)
    assert (last["event"], last["error"]) == ("error", f"ValueError: {raised.value}")
