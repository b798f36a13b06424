"""Fail when a kernel object defines a weak symbol.

    python csrc/check_symbols.py BUILD_DIR

Kernels are compiled once per instruction set. The linker keeps one copy of a weak symbol for the
whole program: were it the one compiled for AVX-512, older CPUs would crash far from any kernel.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# `nm`: W weak, V weak object, u unique in the whole process. Lower-case w and v are only uses.
WEAK = ("W", "V", "u")


def kernel_objects(build: Path) -> list[Path]:
    """Return the object files of every `kernels_<isa>` target below a build directory."""
    return sorted(p for folder in build.rglob("kernels_*.dir") for p in folder.rglob("*.o"))


def weak_symbols(listing: str) -> list[str]:
    """Return the names that an `nm -C` listing gives as defined and weak."""
    # "0000000000000000 W name", or without the address where there is none
    rows = (line[17:].split(" ", 1) for line in listing.splitlines())
    return [row[1] for row in rows if len(row) == 2 and row[0] in WEAK]


def main(arguments: list[str]) -> int:
    """Check one build directory; return the exit status."""
    if len(arguments) != 1:
        print(f"BUILD_DIR must be one path, got {arguments}", file=sys.stderr)
        return 2
    build = Path(arguments[0])
    objects = kernel_objects(build)
    if not objects:
        print(f"{build} must hold kernels_*.dir/**/*.o, got none: build first", file=sys.stderr)
        return 1
    found = 0
    for path in objects:
        listing = subprocess.run(
            ["nm", "-C", str(path)], check=True, capture_output=True, text=True
        ).stdout
        for name in weak_symbols(listing):
            print(f"{path}: weak symbol {name}", file=sys.stderr)
            found += 1
    print(f"{len(objects)} kernel objects, {found} weak symbols")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
