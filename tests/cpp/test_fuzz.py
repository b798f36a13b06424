"""The native reader of a store on damaged files, under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "csrc" / "fuzz" / "run.py"
COMPILER = os.environ.get("CXX", "c++")


def has_sanitizers(folder: Path) -> bool:
    source = folder / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    command = [COMPILER, "-fsanitize=address,undefined", str(source), "-o", str(folder / "empty")]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_twenty_seconds_of_fuzzing_find_nothing(tmp_path: Path) -> None:
    if not has_sanitizers(tmp_path):
        pytest.skip("no C++ compiler with AddressSanitizer")
    command = [sys.executable, str(RUN), "--seconds", "20", "--build", str(tmp_path / "fuzz")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("Done ") == 2
