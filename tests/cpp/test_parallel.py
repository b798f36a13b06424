"""What csrc/parallel.h does when there is no room for another thread."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
PROGRAM = """
#include "parallel.h"
#include <cstdlib>
#include <new>
std::atomic<int> left{1 << 30};  // allocations until there is no memory
void* operator new(std::size_t n) {
  if (left-- <= 0) throw std::bad_alloc();
  return std::malloc(n);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
int main() {
  std::atomic<int> done{0};
  left = 2;  // the list of threads and the first of them
  pyfeat::parallel(7, 4, [&](std::size_t, std::size_t) { ++done; });
  return done;
}
"""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on PATH")
def test_no_memory_for_a_thread_leaves_the_work_to_the_others(tmp_path):
    # Bug: the threads that had started were destroyed while they ran, which ends the process.
    (tmp_path / "main.cpp").write_text(PROGRAM)
    options = ["-std=c++17", "-pthread", f"-I{SOURCES}"]
    program = tmp_path / "program"
    subprocess.run([COMPILER, *options, tmp_path / "main.cpp", "-o", program], check=True)
    assert subprocess.run([program], check=False).returncode == 7
