"""The rules of a benchmark: a wrong answer gets no time, an unknown name gets a clear error."""

from __future__ import annotations

import json
import math
import platform
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


def test_results_without_numbers_do_not_differ(harness):
    # Bug: the largest of no numbers was a ValueError.
    assert harness.largest_difference([], []) == 0.0
    assert harness.largest_difference([], [1.0]) == math.inf


def test_process_that_ends_early_is_named(harness):
    # Bug: an EOFError or a BrokenPipeError that named nobody.
    from elsewhere import elsewhere

    call = elsewhere("nonsense:nothing", {})
    with pytest.raises(RuntimeError, match="the process of 'nonsense:nothing' ended"):
        call()


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


def test_answer_may_be_computed_when_the_case_runs(harness):
    right = [harness.Contestant("right", lambda: 2.0)]
    case = harness.Case("case", right, lambda: 2.0, harness.largest_difference, "difference")
    assert harness.measure(case, rounds=1)[0]["error"] == 0.0


def test_what_clears_up_is_called_after_every_call_of_its_contestant(harness):
    done: list[str] = []
    run = lambda: done.append("run") or 2.0  # noqa: E731
    measure(harness, harness.Contestant("files", run, after=lambda: done.append("after")))
    assert done == ["run", "after"] * (len(done) // 2)


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


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("pyfeat cpp[avx512]", "cpp[avx512]"),
        ("pyfeat cpp[avx2], float16 base", "cpp[avx2]"),
        ("pyfeat cpp", "cpp"),
        ("pyfeat triton", "triton"),
        ("pyfeat reference", "reference"),
        ("pyfeat", None),
        ("pyfeat, empty store", None),
        ("pyfeat cppish", None),
        ("torch", None),
        ("triton's tutorial", None),
    ],
)
def test_name_says_the_backend(harness, name, backend):
    assert harness.Contestant(name).backend == backend


@pytest.mark.parametrize(
    ("asked", "running"),
    [
        ("cpp", ["pyfeat cpp[avx2]", "pyfeat cpp[generic]", "torch"]),
        ("cpp[avx2]", ["pyfeat cpp[avx2]", "torch"]),
        ("cuda", ["torch"]),
        ("triton, reference", ["pyfeat reference", "torch"]),
    ],
)
def test_backends_filter_ours_and_leave_the_peers(harness, asked, running):
    import run

    plan = run.Plan(3, True, math.inf, run.backend_names(asked), None)
    names = ["pyfeat cpp[avx2]", "pyfeat cpp[generic]", "pyfeat reference", "torch"]
    assert [n for n in names if plan.wants(harness.Contestant(n))] == running


def test_without_a_filter_everybody_runs(harness):
    import run

    plan = run.Plan(3, True, math.inf, (), None)
    assert plan.wants(harness.Contestant("pyfeat triton"))


@pytest.fixture
def three_cases(harness, monkeypatch):
    """Return a benchmark `fake` of three cases, the second of them on a GPU."""
    import types

    def cases(quick):
        for name, where in (("one", "cpu"), ("two", "cuda"), ("three", "cpu")):
            both = [harness.Contestant("pyfeat cpp", lambda: 2.0)]
            yield harness.Case(name, both, 2.0, abs_error, "difference", device=where)

    def abs_error(a, b):
        return abs(a - b)

    fake = types.ModuleType("bench_fake")
    fake.cases = cases
    monkeypatch.setitem(sys.modules, "bench_fake", fake)
    import run

    return run


def test_only_cases_of_the_device_asked_for_run(three_cases, capsys):
    report = three_cases.run("fake", three_cases.Plan(3, True, math.inf, (), "cpu"))
    assert [row["case"] for row in report["rows"]] == ["one", "three"]
    assert [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "case 1, one",
        "case 3, three",
    ]


def test_no_case_begins_after_its_time_and_the_report_says_so(three_cases):
    report = three_cases.run("fake", three_cases.Plan(3, True, 0.0, (), "cpu"))
    assert (report["complete"], report["rows"]) == (False, [])


def test_only_cases_with_the_text_run_and_the_report_names_the_others(three_cases):
    report = three_cases.run("fake", three_cases.Plan(3, True, math.inf, (), "cpu", "ne"))
    assert [row["case"] for row in report["rows"]] == ["one"]
    assert (report["complete"], report["left_out"]) == (False, ["three"])


@pytest.fixture
def report_of(three_cases, monkeypatch, tmp_path):
    """Return a function that measures and saves cases on the CPU, and reads the file."""
    monkeypatch.setattr(three_cases, "HERE", tmp_path)

    def measured(case, commit="before"):
        monkeypatch.setattr(three_cases, "commit", lambda: {"commit": commit, "dirty": False})
        report = three_cases.run("fake", three_cases.Plan(1, True, math.inf, (), "cpu", case))
        return json.loads(three_cases.save(report, part=bool(case)).read_text())

    return measured


def test_a_case_measured_alone_leaves_the_others_as_they_were(report_of):
    old = report_of("")
    new = report_of("one", commit="after")
    assert [row["case"] for row in new["rows"]] == ["one", "three"]
    assert new["rows"][0] != old["rows"][0]
    assert new["rows"][1] == old["rows"][1]
    assert new["commit"] == "before"
    assert {case: part["commit"] for case, part in new["parts"].items()} == {"one": "after"}


def test_a_file_in_parts_is_complete_with_the_last_one(report_of):
    first = report_of("three")
    both = report_of("one")
    assert (first["complete"], first["left_out"]) == (False, ["one"])
    assert (both["complete"], both["left_out"]) == (True, [])
    assert [row["case"] for row in both["rows"]] == ["three", "one"]


def test_a_whole_run_writes_the_file_anew(report_of):
    report_of("one")
    report_of("three", commit="after")
    assert "parts" not in report_of("", commit="last")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_tuned_malloc_takes_no_new_pages(harness):
    import torch
    from elsewhere import elsewhere, tuned_malloc

    shape = (2**13 + 1, 2**10)  # above 32 MiB, where glibc by itself always maps
    threads = tuned_malloc(1)
    plain = {name: text for name, text in threads.items() if name != "GLIBC_TUNABLES"}
    tuned, mapped = (elsewhere("functools:partial", e, torch.ones, shape) for e in (threads, plain))

    def new_pages(call):
        def faults():
            stat = Path(f"/proc/{call.child.pid}/stat").read_text()
            return int(stat.rpartition(") ")[2].split()[7])

        for _ in range(20):  # an aligned block needs more room than the hole of one like it
            call()
        before = faults()
        for _ in range(3):
            call()
        return faults() - before

    assert new_pages(tuned) < 10 < new_pages(mapped)


def test_tuned_malloc_limits_the_threads_of_torch(harness):
    import torch
    from elsewhere import elsewhere, tuned_malloc

    call = elsewhere("functools:partial", tuned_malloc(3), torch.get_num_threads)
    assert call() == 3


def test_ceilings_of_a_device_are_above_nothing(harness):
    from device import copy_bytes_per_second, matmul_flop_per_second

    assert copy_bytes_per_second("cpu", 2**16) > 0
    assert all(matmul_flop_per_second("cpu", p, 64) > 0 for p in ("fp32", "tf32", "bf16"))


def test_ceilings_leave_the_precision_of_products_alone(harness):
    import torch
    from device import matmul_flop_per_second

    before = torch.get_float32_matmul_precision()
    matmul_flop_per_second("cpu", "tf32", 32)
    assert torch.get_float32_matmul_precision() == before


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, FOLDER / "run.py", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_unknown_name_is_refused_with_the_known_ones():
    result = run("nonsense")
    assert result.returncode == 2
    assert "NAME must be all or one of" in result.stderr
    assert "['nonsense']" in result.stderr


def test_unknown_backend_is_refused_with_the_known_ones():
    result = run("preprocess", "--backends", "cpp,gpu")
    assert result.returncode == 2
    assert "must be of cpp, cpp[generic], " in result.stderr
    assert "got 'gpu'" in result.stderr


def test_wrong_number_of_threads_is_wrong_usage(monkeypatch):
    monkeypatch.setenv("PYFEAT_NUM_THREADS", "many")
    result = run("preprocess", "--quick")
    assert result.returncode == 2
    assert "PYFEAT_NUM_THREADS must be a positive integer, got 'many'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_quick_report_is_json_with_machine_commit_and_rows():
    # Bug: --quick took three rounds whatever --rounds said.
    result = run("preprocess", "--quick", "--json", "--rounds", "2")
    report = json.loads(result.stdout)
    assert result.returncode == 0
    assert report["rounds"] == 2
    assert {"commit", "dirty", "command", "machine", "rows"} <= set(report)
    assert {row["status"] for row in report["rows"]} == {"ok"}


def test_a_time_limit_does_not_go_with_a_case():
    result = run("preprocess", "--case", "one", "--seconds", "3")
    assert result.returncode == 2
    assert "--seconds must be left out with --case" in result.stderr
