"""The command: exit codes, JSON, messages."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run, json_of


@pytest.fixture
def store(class_folders: Path, tmp_path: Path, run: Run) -> Path:
    assert run("extract", class_folders, "--store", tmp_path / "feats").exit_code == 0
    return tmp_path / "feats"


@pytest.fixture
def model(store: Path, tmp_path: Path, run: Run) -> Path:
    path = tmp_path / "model.safetensors"
    result = run("fit", "--store", store, "--labels", "folder", "--out", path)
    assert result.exit_code == 0
    assert "accuracy 100.0% in 5-fold cross-validation" in result.stdout
    return path


def test_second_extract_computes_nothing(store: Path, class_folders: Path, run: Run) -> None:
    result = run("extract", class_folders, "--store", store, "--json")
    summary = json_of(result)
    assert (summary["computed"], summary["stored"]) == (0, 12)


def test_extract_of_horrors_ends_with_3_and_reasons(
    horrors: Path, tmp_path: Path, run: Run
) -> None:
    result = run("extract", horrors, "--store", tmp_path / "feats")
    assert result.exit_code == 3
    listed = [line for line in result.stdout.splitlines() if line.startswith("not read: ")]
    assert len(listed) == 5
    assert all(len(line.split(": ", 2)) == 3 for line in listed)


def test_horrors_are_in_store_info(horrors: Path, tmp_path: Path, run: Run) -> None:
    run("extract", horrors, "--store", tmp_path / "feats")
    (space,) = json_of(run("store", "info", tmp_path / "feats", "--json"))["spaces"]
    assert (space["rows"], space["images"], len(space["quarantined"])) == (2, 2, 5)


def test_missing_input_is_wrong_usage(tmp_path: Path, run: Run) -> None:
    result = run("extract", "nowhere", "--store", tmp_path / "feats")
    assert result.exit_code == 2
    assert "got 'nowhere': no such file or folder" in result.stderr
    assert not (tmp_path / "feats").exists()


def test_missing_option_is_wrong_usage(class_folders: Path, run: Run) -> None:
    assert run("extract", class_folders).exit_code == 2


def test_unknown_backbone_is_told_in_one_line(
    class_folders: Path, tmp_path: Path, run: Run
) -> None:
    result = run("extract", class_folders, "--store", tmp_path / "f", "--backbone", "resnet5O")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "resnet50" in result.stderr


@pytest.mark.parametrize(
    "option",
    [
        ("--dtype", "int3"),
        ("--batch-size", "0"),
        ("--batch-size", "x"),
        ("--device", "banana"),
        ("--decode", "slow"),
    ],
    ids=" ".join,
)
def test_wrong_value_is_wrong_usage_and_json_on_request(
    class_folders: Path, tmp_path: Path, run: Run, option: tuple[str, str]
) -> None:
    result = run("extract", class_folders, "--store", tmp_path / "f", *option, "--json")
    assert result.exit_code == json_of(result)["exit_code"] == 2
    assert f"got {option[1]!r}" in json_of(result)["error"] or "got 0" in json_of(result)["error"]


@pytest.mark.parametrize(
    "option",
    [("--cv", "1"), ("--C", "-1"), ("--space", "zz"), ("--labels", "nowhere")],
    ids=" ".join,
)
def test_wrong_value_of_fit_is_wrong_usage(
    store: Path, tmp_path: Path, run: Run, option: tuple[str, str]
) -> None:
    labels = () if option[0] == "--labels" else ("--labels", "folder")
    result = run("fit", "--store", store, "--out", tmp_path / "m", *labels, *option)
    assert result.exit_code == 2


def test_name_that_is_no_unicode_is_written_as_it_is(model: Path, tmp_path: Path, run: Run) -> None:
    # All the work was done, and then no table was written.
    odd = tmp_path / os.fsdecode(b"photo\xff\xe9.png")
    shutil.copy(tmp_path / "photos" / "red" / "0.png", odd)
    out = tmp_path / "labels.csv"
    assert run("predict", odd, "--model", model, "--out", out).exit_code == 0
    assert os.fsencode(odd) in out.read_bytes()


def test_store_info_of_no_store_is_an_error(tmp_path: Path, run: Run) -> None:
    result = run("store", "info", tmp_path)
    assert result.exit_code == 1
    assert "must be a feature store" in result.stderr


def test_store_info_counts_rows(store: Path, run: Run) -> None:
    assert "efficientnet_lite0" in run("store", "info", store).stdout
    (space,) = json_of(run("store", "info", store, "--json"))["spaces"]
    assert (space["rows"], space["dim"], space["dtype"]) == (12, 1280, "float32")


def test_verify_of_clean_store_is_clean(store: Path, run: Run) -> None:
    result = run("store", "verify", store)
    assert (result.exit_code, result.stdout) == (0, "clean\n")


def test_verify_names_the_flipped_byte(store: Path, run: Run) -> None:
    (segment,) = store.glob("spaces/*/*.safetensors")
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    result = run("store", "verify", store, "--json")
    assert result.exit_code == 1
    (damage,) = json_of(result)["damage"]
    assert (damage["path"], damage["offset"]) == (str(segment), len(content) - 4 * 1280)


def test_predict_writes_csv(model: Path, class_folders: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "labels.csv"
    arguments = ("--model", model, "--store", tmp_path / "feats", "--out", out)
    assert run("predict", class_folders, *arguments).exit_code == 0
    with out.open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert {r["label"] for r in rows if "/red/" in r["path"]} == {"red"}
    assert len(rows) == 12


def test_predict_of_a_bad_file_ends_with_3(model: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    good = tmp_path / "photos" / "red" / "0.png"
    result = run("predict", tmp_path / "broken.png", good, "--model", model, "--json")
    assert result.exit_code == 3
    (prediction,) = json_of(result)["predictions"]
    assert (prediction["path"], prediction["label"]) == (str(good), "red")


def test_predict_with_a_missing_model_is_wrong_usage(class_folders: Path, run: Run) -> None:
    assert run("predict", class_folders, "--model", "nowhere").exit_code == 2


def test_predict_with_a_file_that_is_no_model_is_an_error(class_folders: Path, run: Run) -> None:
    result = run("predict", class_folders, "--model", class_folders / "red" / "0.png")
    assert result.exit_code == 1
    assert "must be a pyfeat model" in result.stderr


def test_index_finds_the_photo_itself(store: Path, tmp_path: Path, run: Run) -> None:
    index = tmp_path / "photos.index"
    assert run("index", "build", "--store", store, "--out", index).exit_code == 0
    query = tmp_path / "photos" / "blue" / "2.png"
    result = run("index", "search", query, "--index", index, "-k", 3, "--json")
    found = json_of(result)["neighbours"]
    assert (len(found), found[0]["path"]) == (3, str(query))


def test_backbones_lists_where_they_come_from(run: Run) -> None:
    found = json_of(run("backbones", "resnet50", "--json"))["backbones"]
    assert {"torchvision", "timm"} <= {b["source"] for b in found}


def test_bench_lists_benchmarks(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("bench").exit_code == 0
    assert "preprocess" in capfd.readouterr().out


def test_bench_hands_backends_and_rounds_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def note(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        seen.append(command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", note)
    assert run("bench", "pool", "--backends", "cpp", "--rounds", 5, "--quick").exit_code == 0
    assert seen == [["pool", "--quick", "--backends=cpp", "--rounds=5"]]


def test_bench_of_unknown_backend_is_wrong_usage(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", "preprocess", "--backends", "gpu").exit_code == 2
    assert "got 'gpu'" in capfd.readouterr().err


@pytest.mark.parametrize("wrong", ["0", "-1", "two", ""])
def test_wrong_number_of_threads_is_one_sentence(
    class_folders: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    monkeypatch.setenv("PYFEAT_NUM_THREADS", wrong)
    result = run("extract", class_folders, "--store", tmp_path / "feats")
    assert result.exit_code == 1
    sentence = f"pyfeat: PYFEAT_NUM_THREADS must be a positive integer, got {wrong!r}"
    assert result.stderr.strip() == sentence


def test_quickstart_needs_class_folders(tmp_path: Path, run: Run) -> None:
    (tmp_path / "flat").mkdir()
    result = run("quickstart", tmp_path / "flat", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "must name at least one image" in result.stderr


def test_quickstart_runs_on_class_folders(class_folders: Path, tmp_path: Path, run: Run) -> None:
    report = json_of(run("quickstart", class_folders, "--out", tmp_path / "out", "--json"))
    assert (report["first"]["computed"], report["second"]["computed"]) == (12, 0)
    assert report["accuracy_per_class"] == {"blue": 1.0, "red": 1.0}


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from pyfeat.cli import main; sys.argv = ['pyfeat', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode
        == 0
    )


def test_interrupt_keeps_rows_and_says_so(class_folders: Path, tmp_path: Path) -> None:
    code = (
        "import sys, os, signal\n"
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pyfeat.backbones import Backbone\n"
        "call = Backbone.__call__\n"
        "def interrupted(self, batch):\n"
        "    rows = call(self, batch)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return rows\n"
        "Backbone.__call__ = interrupted\n"
        "from pyfeat.cli import main\n"
        "main()"
    )
    arguments = ["extract", str(class_folders), "--store", str(tmp_path / "f"), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == json.loads(done.stdout)["exit_code"] == 130
    assert "are done and safe in" in done.stderr


def test_version_is_that_of_the_package(run: Run) -> None:
    import pyfeat

    assert run("--version").stdout == f"pyfeat {pyfeat.__version__}\n"
