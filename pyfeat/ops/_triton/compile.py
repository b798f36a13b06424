"""Compile every Triton kernel for GPUs that need not be there, and print what it takes.

    python -m pyfeat.ops._triton.compile [OP]...

One JSON object per kernel, variant and architecture: registers and spilled bytes of a thread,
bytes of shared memory of a program. Run without TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pyfeat.ops._triton as package
from pyfeat.ops._triton import Kernel

ARCHITECTURES = (80, 90, 100)


def ops() -> list[str]:
    """Return the ops that have Triton kernels."""
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "compile")


def resources(kernel: Kernel, architecture: int) -> dict[str, Any]:
    """Compile one kernel and return what ptxas says of it.

    Parameters
    ----------
    kernel : Kernel
    architecture : int
        Compute capability times 10, e.g. 90.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        name: kernel.signature.get(name, "constexpr") for name in kernel.function.arg_names
    }
    hints = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(signature)
        if name in kernel.aligned
    }
    source = ASTSource(kernel.function, signature, dict(kernel.constants), hints or None)
    built = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": kernel.warps, "num_stages": kernel.stages},
    )
    report = _ptxas(built.asm["ptx"])

    def count(what: str) -> int:
        return sum(map(int, re.findall(rf"(\d+) {what}", report)))

    return {
        "kernel": kernel.function.__name__,
        "constants": {k: str(v) for k, v in kernel.constants.items()},
        "architecture": architecture,
        "registers": count("registers"),
        "spilled": count("bytes spill stores") + count("bytes spill loads"),
        "shared": built.metadata.shared,
    }


def of_ones(kernel: Kernel) -> Kernel:
    """Return the kernel of a launch whose integers are all 1: Triton makes constants of these."""
    ones = {name: 1 for name, kind in kernel.signature.items() if kind in ("i32", "i64")}
    signature = {name: kind for name, kind in kernel.signature.items() if name not in ones}
    return kernel._replace(signature=signature, constants={**kernel.constants, **ones})


def _ptxas(ptx: str) -> str:
    import triton

    found = re.search(r"\.target (sm_\w+)", ptx)
    if found is None:
        raise RuntimeError("PTX must name its target, got none")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    newest = (
        tools / "ptxas-blackwell"
    )  # reads what the other one wrote, but not the other way round
    tool = newest if newest.exists() else tools / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [str(tool), "-v", f"--gpu-name={found[1]}", str(path), "-o", f"{path}.cubin"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas failed: {done.stderr.strip()}")
    return done.stderr


def reports(wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the reports of each kernel of these ops: for each architecture, and of ones.

    1 is no multiple of 16: those of aligned kernels are left out.
    """
    for op in wanted:
        for kernel in import_module(f"{package.__name__}.{op}").KERNELS:
            able = [a for a in ARCHITECTURES if a >= kernel.least]
            for architecture in able:
                yield {"op": op, **resources(kernel, architecture)}
            if not kernel.aligned:
                yield {"op": op, **resources(of_ones(kernel), able[0])}


def main(arguments: list[str]) -> int:
    """Print the reports of these ops, by default all; return the exit status."""
    if unknown := set(arguments) - set(ops()):
        print(f"OP must be one of {ops()}, got {sorted(unknown)}", file=sys.stderr)
        return 2
    spilled = 0
    for report in reports(arguments or ops()):
        print(json.dumps(report), flush=True)
        spilled += report["spilled"]
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
