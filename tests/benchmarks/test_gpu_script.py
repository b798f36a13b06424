"""`benchmarks/gpu.sh` where it cannot run: one sentence, and nothing is built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from itertools import islice
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
ON_CPU = re.search(r"grep -vxE '(.*)'", SCRIPT.read_text())[1].split("|")
NAMES = sorted(path.stem.removeprefix("bench_") for path in SCRIPT.parent.glob("bench_*.py"))


def start(python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SCRIPT],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": python},
    )


def test_script_is_valid_bash():
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_script_pleases_shellcheck():
    done = subprocess.run(["shellcheck", SCRIPT], check=False, capture_output=True, text=True)
    assert done.stdout == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_script_refuses_a_machine_without_a_gpu():
    before = (ROOT / "build" / "gpu").exists()
    done = start(sys.executable)
    assert done.returncode == 1
    assert done.stderr == "gpu.sh: needs a CUDA GPU that torch can use, found none\n"
    assert (ROOT / "build" / "gpu").exists() == before


def test_script_refuses_a_python_without_torch():
    done = start("no-such-python")
    assert done.returncode == 1
    assert done.stderr.startswith("gpu.sh: no-such-python must have torch")


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ON_CPU or name.endswith("_gpu")]
)
def test_benchmark_spends_no_time_on_cases_of_the_cpu(monkeypatch, name):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    device = import_module("device")
    monkeypatch.setattr(device, "only", "cuda")
    made = islice(import_module(f"bench_{name}").cases(quick=True), 1)
    assert [case.device for case in made] == ["cuda"] * torch.cuda.is_available()


def test_what_the_script_leaves_out_is_a_benchmark():
    assert set(ON_CPU) < set(NAMES)
