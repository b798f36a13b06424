"""Run benchmarks.

    python benchmarks/run.py NAME... [--json] [--rounds N] [--quick] [--no-save]
    python benchmarks/run.py all
    python benchmarks/run.py --list

Prints a table, and writes benchmarks/results/NAME-MACHINE.json unless `--quick` or `--no-save`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from harness import Row, measure  # noqa: E402  the path is set above

PACKAGES = (
    "numpy",
    "torch",
    "pillow",
    "simplejpeg",
    "torchvision",
    "scikit-learn",
    "timm",
    "faiss-cpu",
    "openvino",
    "onnxruntime",
    "triton",
)
# Environment variables that change how fast the contestants are.
SETTINGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "PYFEAT_BACKEND",
    "PYFEAT_NUM_THREADS",
)


def names() -> list[str]:
    """Return what can be run: NAME of every bench_NAME.py."""
    return sorted(p.stem.removeprefix("bench_") for p in HERE.glob("bench_*.py"))


def machine() -> dict[str, Any]:
    """Return what the numbers depend on besides the code."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.*)", cpuinfo.read_text())):
        cpu = found[1]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    facts = {"cpu": cpu, "cores": cores, "gpu": gpu, "system": platform.platform(terse=True)}
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    return {
        **facts,
        "python": platform.python_version(),
        "versions": versions,
        "environment": settings,
    }


def commit() -> dict[str, Any]:
    """Return the commit measured, and whether files other than results differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=HERE, check=False, capture_output=True, text=True
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "..", ":!results")
    return {"commit": git("rev-parse", "HEAD") or None, "dirty": bool(changed)}


def run(name: str, rounds: int, quick: bool) -> dict[str, Any]:
    """Return the report of one benchmark: rows, and all that is needed to judge and repeat them."""
    rows: list[Row] = []
    for case in import_module(f"bench_{name}").cases(quick):
        rows += measure(case, rounds)
    command = shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]])
    return {"name": name, **commit(), "command": command, "rounds": rounds} | {
        "machine": machine(),
        "rows": rows,
    }


def save(report: dict[str, Any]) -> Path:
    """Write a report to results/NAME-MACHINE.json and return the path."""
    facts = report["machine"]
    slug = re.sub(r"[^a-z0-9]+", "-", f"{facts['cpu']} {facts['cores']} cores".lower()).strip("-")
    path = HERE / "results" / f"{report['name']}-{slug}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def table(report: dict[str, Any]) -> str:
    """Return a report as plain text: error beside speed, cases apart."""
    facts = report["machine"]
    state = f"{(report['commit'] or 'no commit')[:12]}{' + changes' if report['dirty'] else ''}"
    lines = [f"{report['name']}: {facts['cpu']}, {facts['cores']} cores, {state}"]
    head = ("p20 us", "p50 us", "p80 us", "items/s", "of read", "of peak", "error")
    case = None
    for row in report["rows"]:
        if row["case"] != case:
            case = row["case"]
            lines += ["", f"{case:<36}" + "".join(f"{h:>10}" for h in head) + f"  {row['unit']}"]
        lines.append(f"  {row['contestant']:<34}{_cells(row)}")
    return "\n".join(lines)


def _cells(row: Row) -> str:
    if row["status"] == "skipped":
        return f"  skipped: {row['reason']}"
    if row["status"] == "WRONG":
        return f"  WRONG: error {row['error']:.3g}, at most {row['bound']:.3g} is right"
    times = "".join(f"{row[k]:>10.1f}" for k in ("p20_us", "p50_us", "p80_us", "items_per_s"))
    shares = "".join(
        f"{row[k]:>10.1%}" if k in row else f"{'':>10}" for k in ("share_of_read", "share_of_peak")
    )
    return f"{times}{shares}{row['error']:>10.3g}"


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; return 1 when any row is WRONG."""
    parser = argparse.ArgumentParser(description="Run benchmarks and keep their results.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"all, or of: {', '.join(names())}"
    )
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, no table")
    parser.add_argument("--rounds", type=int, default=30, help="samples of each contestant")
    parser.add_argument("--quick", action="store_true", help="few cases, 3 rounds, nothing saved")
    parser.add_argument("--no-save", action="store_true", help="write no file")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(names()))
        return 0
    wanted = names() if options.names == ["all"] else options.names
    if not wanted or (unknown := set(wanted) - set(names())):
        parser.error(
            f"NAME must be all or one of {names()}, got {sorted(unknown) if wanted else []}"
        )
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    wrong = 0
    for name in wanted:
        report = run(name, 3 if options.quick else options.rounds, options.quick)
        print(json.dumps(report) if options.json else table(report))
        if not (options.quick or options.no_save):
            print(f"wrote {save(report)}", file=sys.stderr)
        wrong += sum(row["status"] == "WRONG" for row in report["rows"])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
