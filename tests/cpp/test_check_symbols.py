"""The symbol check finds what it is there for, in objects made by a real compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "csrc" / "check_symbols.py"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def compile_kernel(build: Path, source: str) -> None:
    folder = build / "CMakeFiles" / "kernels_avx512.dir" / "csrc"
    folder.mkdir(parents=True)
    path = build / "kernel.cpp"
    path.write_text(source)
    subprocess.run([COMPILER, "-c", path, "-o", folder / "kernel.o"], check=True)


def check(build: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, CHECK, build], check=False, capture_output=True, text=True
    )


@pytest.fixture(autouse=True)
def _needs_compiler() -> None:
    if COMPILER is None or shutil.which("nm") is None:
        pytest.skip("no C++ compiler or no nm on PATH")


def test_inline_function_is_found_and_named(tmp_path):
    compile_kernel(tmp_path, "inline int twice(int x) { return 2 * x; }\nint (*p)(int) = twice;")
    result = check(tmp_path)
    assert result.returncode == 1
    assert "kernel.o: weak symbol twice(int)" in result.stderr


def test_unique_global_is_found(tmp_path):
    source = "template <class T> struct S { static int n; };\n"
    source += "template <class T> int S<T>::n = 3;\nint *p = &S<int>::n;"
    compile_kernel(tmp_path, source)
    assert "weak symbol S<int>::n" in check(tmp_path).stderr


def test_static_function_passes(tmp_path):
    compile_kernel(tmp_path, "static int twice(int x) { return 2 * x; }\nint (*p)(int) = twice;")
    assert check(tmp_path).returncode == 0


def test_use_of_a_weak_symbol_passes(tmp_path):
    source = "extern int n __attribute__((weak));\nint get() { return n; }"
    compile_kernel(tmp_path, source)
    assert check(tmp_path).returncode == 0


def test_build_without_kernel_objects_fails(tmp_path):
    result = check(tmp_path)
    assert result.returncode == 1
    assert "build first" in result.stderr
