#!/usr/bin/env bash
# On a machine with a CUDA GPU: builds in place, tests, and measures every op, in less than 9 minutes.
#
#     [PYTHON=python3] [OUT=folder] [CASE=text] benchmarks/gpu.sh [BENCHMARK]...
#
# With names of benchmarks it measures these and skips the tests; with CASE only the cases with that
# text in their names. backbones_gpu and extract_gpu run by name only: their peers compile for minutes.
# Wants nvcc, cmake, ninja, pybind11, pytest and hypothesis; installs and downloads nothing. Reports go
# to benchmarks/results/, and with the log to OUT as one archive. Each part has its share of the time;
# what does not fit is cut short, and said so at the end.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
readonly TOTAL=525 BUILD=170 TESTS=170 # seconds; benchmarks get what is left
readonly STOP=15                       # of a benchmark's share: its last case may run over

fail() {
  echo "gpu.sh: $1" >&2
  exit 1
}

check_machine() {
  "$PYTHON" -c 'import torch' 2>/dev/null || fail "$PYTHON must have torch (PYTHON= chooses another)"
  "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
    fail "needs a CUDA GPU that torch can use, found none"
  command -v nvcc >/dev/null || fail "needs nvcc on PATH, found none"
  local tool
  for tool in cmake ninja; do
    command -v "$tool" >/dev/null || fail "needs $tool on PATH, found none"
  done
  "$PYTHON" -c 'import pybind11' 2>/dev/null || fail "$PYTHON must have pybind11"
}

build() {
  local architecture
  architecture=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
  cmake -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DPYFEAT_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES="$architecture" \
    -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" \
    -DPython_EXECUTABLE="$(command -v "$PYTHON")" &&
    timeout "$BUILD" ninja -C build/gpu &&
    cp build/gpu/_core*.so build/gpu/_cuda*.so pyfeat/
}

run_tests() {
  local parallel=()
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then parallel=(-n 8); fi
  PYFEAT_REQUIRE=cpp,cuda,triton timeout "$TESTS" \
    "$PYTHON" -m pytest -q -m "not slow" "${parallel[@]}" tests/ops tests/cpp tests/backbones/test_fp8.py \
      tests/backbones/test_engines.py::test_recorded_launches_give_the_rows_of_the_cpu
}

# Every benchmark with cases on a GPU, one process each: what one lacks does not stop the others.
run_benchmarks() {
  local names name left=0 share failed=()
  names=$("$PYTHON" benchmarks/run.py --list | grep -vxE 'backbones|backbones_gpu|backbones_text|decode|extract|extract_gpu|gather_rows|gemm|logistic|ray|store|store_growth|store_rerun') || return 1
  names=${*:-$names}
  left=$(wc -w <<<"$names")
  for name in $names; do
    share=$(((TOTAL - SECONDS) / left))
    left=$((left - 1))
    if ((share <= STOP)); then
      failed+=("$name: no time left")
      continue
    fi
    timeout "$share" "$PYTHON" benchmarks/run.py "$name" --device cuda --rounds 15 \
      --seconds "$((share - STOP))" ${CASE:+--case "$CASE"} || failed+=("$name: status $?")
  done
  ((${#failed[@]} == 0)) || {
    printf 'gpu.sh: not measured, or wrong: %s\n' "${failed[@]}" >&2
    return 1
  }
}

main() {
  local status=0
  build || fail "the build failed"
  echo "gpu.sh: built after $SECONDS s"
  if (($# == 0)); then
    run_tests || {
      echo "gpu.sh: tests failed, or took more than $TESTS s" >&2
      status=1
    }
    echo "gpu.sh: tested after $SECONDS s"
  fi
  run_benchmarks "$@" || status=1
  echo "gpu.sh: done after $SECONDS s, status $status"
  return "$status"
}

check_machine
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
log=$(mktemp)
main "$@" 2>&1 | tee "$log"
status=$?
if [ -n "${OUT:-}" ]; then
  mkdir -p "$OUT"
  cp "$log" "$OUT/gpu.log"
  tar -czf "$OUT/results.tar.gz" benchmarks/results
fi
rm -f "$log"
exit "$status"
