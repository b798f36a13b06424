"""Build the fuzz targets under AddressSanitizer and UBSan, and run each for its share of a time.

    python csrc/fuzz/run.py --seconds 600 [--build build/fuzz] [--keep]

With clang++ on PATH (or named by CXX) libFuzzer drives them, else driver.cpp, built by the C++
compiler there is. What is found is left in the build folder as crash-*; run a target on that file
to see it again. --keep adds the inputs that reached something new to the corpus beside this file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGETS = ("tail", "segment")
STORE = ("crc32c", "faults", "file", "key_map", "key_table", "seal", "segment", "segment_index")
STORE += ("segments", "tail")
FLAGS = ["-std=c++17", "-g", "-O1", "-fno-omit-frame-pointer", "-pthread"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Kernels of one instruction set: the one that every compiler can check.
FLAGS += ["-DPYFEAT_ISA=generic", "-DPYFEAT_ISA_generic=1"]
OPTIONS = {
    "ASAN_OPTIONS": "handle_abort=1:detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def compiler() -> str | None:
    """Return the C++ compiler: the one named by CXX, else clang++, else any."""
    named = os.environ.get("CXX")
    return named or next(filter(None, map(shutil.which, ("clang++", "c++", "g++"))), None)


def is_clang(name: str) -> bool:
    """Return whether a compiler brings libFuzzer."""
    said = subprocess.run([name, "--version"], check=True, capture_output=True, text=True)
    return "clang" in said.stdout


def build(name: str, folder: Path) -> None:
    """Compile every target into `folder`."""
    store = HERE.parent / "store"
    shared = [*(store / f"{stem}.cpp" for stem in STORE), HERE.parent / "cpu" / "dispatch.cpp"]
    shared += [HERE.parent / "cpu" / "gather_rows.cpp"]
    own = [HERE / "scratch.cpp", HERE / "mapping.cpp"]
    if is_clang(name):
        watch, link = ["-fsanitize=fuzzer-no-link"], ["-fsanitize=fuzzer"]
    else:
        # Only the store is watched: the driver's own branches are no news.
        watch, link = ["-fsanitize-coverage=trace-pc"], []
        own += [HERE / "driver.cpp"]
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in [*shared, *own, *(HERE / f"fuzz_{t}.cpp" for t in TARGETS)]:
        extra = watch if source in shared or is_clang(name) else []
        made = folder / f"{source.stem}.o"
        subprocess.run([name, *FLAGS, *extra, "-c", source, "-o", made], check=True)
        if not source.stem.startswith("fuzz_"):
            objects.append(made)
    for target in TARGETS:
        parts = [folder / f"fuzz_{target}.o", *objects, "-o", folder / target]
        subprocess.run([name, *FLAGS, *link, *parts], check=True)


def run(target: str, seconds: float, folder: Path, keep: bool) -> int:
    """Run one target; return its exit status."""
    kept = HERE / "corpus" / target
    new = kept if keep else folder / "new" / target
    new.mkdir(parents=True, exist_ok=True)
    arguments = [f"-max_total_time={max(1, round(seconds))}", "-print_final_stats=1", str(new)]
    if not keep:
        arguments.append(str(kept))
    environment = {**OPTIONS, **os.environ}
    done = subprocess.run([folder / target, *arguments], check=False, cwd=folder, env=environment)
    return done.returncode


def main() -> int:
    """Build and run; return 1 when a target has found something."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of all targets together")
    parser.add_argument("--build", type=Path, default=HERE.parents[1] / "build" / "fuzz")
    parser.add_argument("--keep", action="store_true", help="add new inputs to the corpus")
    arguments = parser.parse_args()
    name = compiler()
    if name is None:
        print("a C++ compiler must be on PATH, or named by CXX", file=sys.stderr)
        return 2
    folder = arguments.build.resolve()
    build(name, folder)
    share = arguments.seconds / len(TARGETS)
    found = [t for t in TARGETS if run(t, share, folder, arguments.keep) != 0]
    if found:
        print(f"defects in {', '.join(found)}: see {folder}/crash-*", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
