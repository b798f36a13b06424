"""Compile csrc/cuda for the CPU, where each kernel launch becomes a loop: see cuda_runtime.h."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
# kernel<...><<<grid, threads, 0, stream>>>(arguments);
LAUNCH = re.compile(r"(\w+(?:<[^<>;]*>)?)\s*<<<(.*?), (\w[^,]*), 0, \w+>>>\((.*?)\);", re.DOTALL)
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
# A 16-byte access at an address that is not a multiple of 16 ends the process, as on a GPU.
FLAGS += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]


def on_cpu(source: str) -> str:
    """Return a CUDA source whose launches are calls of the emulator."""
    text = LAUNCH.sub(r"emulated::launch(\2, \3, [=] { \1(\4); });", source)
    if "<<<" in text:
        raise ValueError(f"launches must look like {LAUNCH.pattern}, got another one")
    return text


def build(compiler: str, folder: Path, includes: list[str]) -> Path:
    """Build the module `_cuda` in a folder and return its path."""
    for part in ("cuda", "bindings"):
        (folder / part).mkdir()
    for path in (CSRC / "cuda").iterdir():
        name = f"{path.stem}.cpp" if path.suffix == ".cu" else path.name
        (folder / "cuda" / name).write_text(on_cpu(path.read_text()))
    (folder / "bindings" / "cuda.cpp").write_text((CSRC / "bindings" / "cuda.cpp").read_text())
    flags = [*FLAGS, *(f"-I{path}" for path in (HERE, *includes))]
    sources = [*(folder / "cuda").glob("*.cpp"), folder / "bindings" / "cuda.cpp"]
    compilers = [
        subprocess.Popen([compiler, *flags, "-c", source, "-o", source.with_suffix(".o")])
        for source in sources
    ]
    if any([one.wait() for one in compilers]):  # wait for all
        raise RuntimeError("the kernels must compile for the CPU, got errors")
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    objects = [source.with_suffix(".o") for source in sources]
    subprocess.run([compiler, "-shared", *FLAGS, *objects, "-o", module], check=True)
    return module
