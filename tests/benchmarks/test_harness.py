"""The rules of a benchmark: a wrong answer gets no time, an unknown name gets a clear error."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import harness

    return harness


def measure(harness, *contestants):
    case = harness.Case("case", list(contestants), 2.0, harness.largest_difference, "difference")
    return harness.measure(case, rounds=3)


def test_right_answer_gets_ordered_times(harness):
    (row,) = measure(harness, harness.Contestant("right", lambda: 2.0))
    assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]


@pytest.mark.parametrize("answer", [2.5, math.nan, [2.0, 2.0]])
def test_wrong_answer_gets_no_time(harness, answer):
    (row,) = measure(harness, harness.Contestant("wrong", lambda: answer, bound=0.25))
    assert row["status"] == "WRONG"
    assert "p50_us" not in row


def test_error_within_the_bound_is_right(harness):
    (row,) = measure(harness, harness.Contestant("near", lambda: 2.25, bound=0.25))
    assert (row["status"], row["error"]) == ("ok", 0.25)


def test_skipped_contestant_keeps_its_row_and_reason(harness):
    skipped, right = measure(
        harness,
        harness.Contestant("absent", skip="absent is not installed"),
        harness.Contestant("right", lambda: 2.0),
    )
    assert (skipped["status"], skipped["reason"]) == ("skipped", "absent is not installed")
    assert right["status"] == "ok"


def test_threads_make_every_call(harness):
    seen: list[int] = []
    harness.in_threads(lambda: seen.append(1), threads=2, calls=7)()
    assert len(seen) == 7


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, FOLDER / "run.py", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_unknown_name_is_refused_with_the_known_ones():
    result = run("nonsense")
    assert result.returncode == 2
    assert "NAME must be all or one of" in result.stderr
    assert "['nonsense']" in result.stderr


def test_quick_report_is_json_with_machine_commit_and_rows():
    result = run("preprocess", "--quick", "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 0
    assert {"commit", "dirty", "command", "machine", "rows"} <= set(report)
    assert {row["status"] for row in report["rows"]} == {"ok"}
