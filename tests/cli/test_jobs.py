"""The options of `pyfeat extract` that are about the job, `pyfeat plan`, and Ctrl-C."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import shlex
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyfeat import FeatureStore
from pyfeat.jobs import extract, fit
from pyfeat.store import read_items

from .conftest import Run, json_of
from .test_kill import command


def words_of(path: Path, words: str, tmp_path: Path) -> tuple[Any, ...]:
    return ("extract", path, "--store", tmp_path / "f", "--backbone", words)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Forty texts."""
    path = tmp_path / "texts.csv"
    rows = [f"film {'good ' * (i % 7)}{'bad ' * (i // 7)}" for i in range(40)]
    path.write_text("text\n" + "\n".join(rows) + "\n")
    return path


def test_shards_of_the_command_sum_up(lines: Path, words: str, tmp_path: Path, run: Run) -> None:
    arguments = words_of(lines, words, tmp_path)
    shares = [json_of(run(*arguments, "--shard", f"{i}/3", "--json")) for i in (1, 2, 3)]
    assert [s["shard"] for s in shares] == ["1/3", "2/3", "3/3"]
    assert sum(s["total"] for s in shares) == 40
    assert sum(s["computed"] + s["hits"] + s["duplicates"] for s in shares) == 40


@pytest.mark.parametrize(
    "option",
    [
        ("--shard", "3/2"),
        ("--shard", "x"),
        ("--runner", "spark"),
        ("--address", "auto"),
        ("--workers", "0"),
    ],
    ids=" ".join,
)
def test_wrong_option_of_a_job_is_wrong_usage(
    option: tuple[str, str], lines: Path, words: str, tmp_path: Path, run: Run
) -> None:
    result = run(*words_of(lines, words, tmp_path), *option)
    assert result.exit_code == 2
    assert option[0].removeprefix("--") in result.stderr
    assert not (tmp_path / "f").exists()


def test_retry_of_the_command_tries_what_failed(words: str, tmp_path: Path, run: Run) -> None:
    table = tmp_path / "texts.csv"
    table.write_text("n,text\n1,good\n2,\n3,\n")
    arguments = (*words_of(table, words, tmp_path), "--column", "text", "--json")
    assert run(*arguments).exit_code == 3
    again = run(*arguments, "--retry-failed")
    assert (again.exit_code, json_of(again)["total"]) == (3, 2)
    table.write_text("n,text\n1,good\n2,bad\n3,film\n")
    mended = run(*arguments, "--retry-failed")
    assert (mended.exit_code, json_of(mended)["computed"]) == (0, 2)


def test_log_of_the_command_goes_to_stdout(
    lines: Path, words: str, tmp_path: Path, run: Run
) -> None:
    result = run(*words_of(lines, words, tmp_path), "--log-json", "-", "--json")
    assert result.exit_code == 2
    assert "log_json must be a file where --json is given" in result.stderr
    result = run(*words_of(lines, words, tmp_path), "--log-json", "-")
    events = [json.loads(x)["event"] for x in result.stdout.splitlines()]
    assert "computed" in result.stderr
    assert (events[0], events[-1]) == ("start", "end")


@pytest.mark.slow
def test_plan_is_a_table_with_what_cannot_run(
    class_folders: Path, tmp_path: Path, run: Run
) -> None:
    options = ("--backbone", "efficientnet_lite0", "--precision", "fp32", "--precision", "fp16")
    result = run("plan", class_folders, *options, "--device", "cpu")
    assert result.exit_code == 0
    first, header, row, refused = result.stdout.splitlines()
    assert first.startswith("12 inputs, about ")
    assert header.split()[-5:] == ["inputs/s", "time", "disk", "memory", "work"]
    assert row.split()[:3] == ["efficientnet_lite0", "torch", "fp32"]
    assert refused.startswith("cannot run: efficientnet_lite0 on torch in fp16: ")


def test_plan_of_an_unknown_backbone_is_wrong_usage(class_folders: Path, run: Run) -> None:
    assert run("plan", class_folders, "--backbone", "resnet5O").exit_code == 2


@pytest.fixture(scope="module")
def server() -> mp.context.ForkServerContext:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["timm", "torchvision", "pyfeat.jobs", "pyfeat.cli._extract"])
    return context


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four hundred photos; the first cannot be read."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    (folder / "000.png").write_bytes(b"no image")
    for i in range(1, 400):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / f"{i:03}.png")
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_command_and_it_says_how_to_go_on(
    server: mp.context.ForkServerContext, photos: Path, tmp_path: Path, number: int, code: int
) -> None:
    log, store, out = tmp_path / "log", tmp_path / "feats", tmp_path / "out"
    os.mkfifo(log)
    arguments = ["extract", str(photos), "--store", str(store), "--batch-size", "2"]
    arguments += ["--log-json", str(log), "--json"]
    job = server.Process(target=command, args=(arguments, str(out), str(tmp_path / "err")))
    job.start()
    with log.open() as events:
        for line in events:
            event = json.loads(line)["event"]
            if event == "quarantined":  # it runs
                os.kill(job.pid or 0, number)
        last = event
    job.join()
    assert (job.exitcode, last) == (code, "interrupted")
    summary = json.loads(out.read_text())
    assert summary["left"] > 0
    assert summary["total"] + summary["left"] == 400
    again = shlex.join(["pyfeat", *arguments])
    assert (tmp_path / "err").read_text() == (
        f"pyfeat: interrupted: {summary['total']} of 400 inputs are done and safe in {store}; "
        f"go on with: {again}\n"
    )
    rows = FeatureStore(store, mode="r")
    assert len(rows) >= summary["computed"]
    assert len(read_items(store, rows.space)) == summary["total"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_to_predict_is_in_its_exit_code(
    server: mp.context.ForkServerContext,
    class_folders: Path,
    tmp_path: Path,
    number: int,
    code: int,
) -> None:
    pytest.importorskip("aiohttp")
    photo = (class_folders / "red" / "0.png").read_bytes()

    class Interrupting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            os.kill(job.pid or 0, number)  # it is read: the job runs
            self.send_response(200)
            self.send_header("Content-Length", str(len(photo)))
            self.end_headers()
            self.wfile.write(photo)

        def log_message(self, *_: object) -> None:
            pass

    extract(class_folders, tmp_path / "feats")
    fit(tmp_path / "feats", "folder", tmp_path / "model", cv=0)
    with HTTPServer(("127.0.0.1", 0), Interrupting) as site:
        url = f"http://127.0.0.1:{site.server_port}/0.png"
        arguments = ["predict", url, "--model", str(tmp_path / "model")]
        job = server.Process(target=command, args=(arguments, str(tmp_path / "out")))
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        job.start()
        job.join()
        site.shutdown()
        thread.join()
    assert job.exitcode == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_while_inputs_are_listed_is_in_exit_code_and_log(
    server: mp.context.ForkServerContext, tmp_path: Path, number: int, code: int
) -> None:
    listed, log = tmp_path / "list.csv", tmp_path / "log"
    os.mkfifo(listed)
    arguments = ["extract", str(listed), "--store", str(tmp_path / "f"), "--log-json", str(log)]
    job = server.Process(target=command, args=(arguments, str(tmp_path / "out")))
    job.start()
    with listed.open("wb"):
        os.kill(job.pid or 0, number)
        job.join()
    assert job.exitcode == code
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()] == ["error"]


def test_second_signal_ends_a_command_at_once() -> None:
    code = (
        "from pyfeat.jobs._stop import Stop, second_signal_ends_process as s; s();"
        "stop = Stop(); stop(2); print(stop.signal, flush=True); stop(2); print('never')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "2\n")


def test_wrong_usage_of_the_command_is_in_the_log(tmp_path: Path, run: Run) -> None:
    log = tmp_path / "log"
    result = run("extract", tmp_path / "no", "--store", tmp_path / "f", "--log-json", log)
    (last,) = map(json.loads, log.read_text().splitlines())
    assert (result.exit_code, last["event"]) == (2, "error")
    assert "no such file or folder" in last["error"]
