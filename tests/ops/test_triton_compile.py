"""Every Triton kernel compiles for GPUs that are not here, and spills nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pyfeat.ops._triton.compile import ARCHITECTURES, ops

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("op", ops())
def test_kernels_compile_for_each_architecture_without_spills(op):
    # In a process of its own: here, kernels are made for the interpreter.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "pyfeat.ops._triton.compile", op],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    # Kernels for 8-bit floats leave the oldest out.
    assert {r["architecture"] for r in reports} >= set(ARCHITECTURES[1:])
    for report in reports:
        print(json.dumps(report))
    assert [r for r in reports if r["spilled"]] == []
