"""What ptxas and the disassembler say of each CUDA kernel: no GPU is needed for that."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "csrc" / "cuda"
# device.cu asks for devices; the others hold kernels.
SOURCES = sorted(p for p in FOLDER.glob("*.cu") if p.stem != "device")
ARCHITECTURES = ("sm_80", "sm_90")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH"),
]


@pytest.fixture(
    scope="module",
    params=[(source, arch) for source in SOURCES for arch in ARCHITECTURES],
    ids=lambda p: f"{p[0].stem}-{p[1]}",
)
def compiled(request, tmp_path_factory) -> tuple[str, str]:
    """Return the report of ptxas and the machine code of one source."""
    source, architecture = request.param
    cubin = tmp_path_factory.mktemp(source.stem) / "kernels.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "-Xptxas", "-v", "-cubin", f"-arch={architecture}"]
    done = subprocess.run(
        [*command, str(source), "-o", str(cubin)], check=True, capture_output=True, text=True
    )
    code = subprocess.run(
        [disassembler(), "-sass", str(cubin)], check=True, capture_output=True, text=True
    )
    return done.stderr, code.stdout


def disassembler() -> str:
    """Return where cuobjdump is; Triton brings one."""
    bundled = find_spec("triton")
    folders = [Path(bundled.origin).parent / "backends/nvidia/bin"] if bundled else []
    found = shutil.which(
        "cuobjdump", path=os.pathsep.join([os.environ["PATH"], *map(str, folders)])
    )
    if found is None:
        pytest.skip("no cuobjdump on PATH, nor with triton")
    return found


def test_no_kernel_spills(compiled):
    report, _ = compiled
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert spills
    assert [pair for pair in spills if pair != ("0", "0")] == []


def test_kernels_read_16_bytes_at_a_time(compiled):
    _, code = compiled
    assert re.search(r"LDG[\w.]*\.128|LDGSTS[\w.]*\.128", code)
