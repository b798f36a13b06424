"""`benchmarks/gpu.sh` where it cannot run: one sentence, and nothing is built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


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
