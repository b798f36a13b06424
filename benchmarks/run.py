"""Run benchmarks.

    python benchmarks/run.py NAME... [--case TEXT] [--backends cpp,triton] [--device cuda] [--json]
                             [--rounds N] [--seconds N] [--quick] [--no-save]
    python benchmarks/run.py all
    python benchmarks/run.py --list

Prints a table, and writes benchmarks/results/NAME-MACHINE.json unless `--quick`, `--no-save` or
`--backends` asks for less. With `--case` the other cases in that file stay.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
Report = dict[str, Any]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import device  # noqa: E402  the path is set above
from harness import Contestant, Row, measure  # noqa: E402

from pyfeat._config import num_threads  # noqa: E402

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
ISAS = ("generic", "avx2", "avx512", "avx512bf16")
BACKENDS = ("cpp", *(f"cpp[{isa}]" for isa in ISAS), "triton", "cuda", "reference")
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


@dataclass(frozen=True)
class Plan:
    """What of a benchmark is run, and how often."""

    rounds: int
    quick: bool
    seconds: float
    backends: tuple[str, ...]
    device: str | None
    case: str = ""

    def wants(self, contestant: Contestant) -> bool:
        """Return whether a contestant runs: peers always, ours when its backend is asked for."""
        backend = contestant.backend
        return (
            not self.backends
            or backend is None
            or bool({backend, backend.partition("[")[0]} & {*self.backends})
        )


def run(name: str, plan: Plan) -> Report:
    """Return the report of one benchmark: rows, and all that is needed to judge and repeat them."""
    rows: list[Row] = []
    left_out: list[str] = []
    device.only = plan.device
    start = time.monotonic()
    complete = True
    for number, case in enumerate(import_module(f"bench_{name}").cases(plan.quick), 1):
        passed = time.monotonic() - start
        if passed > plan.seconds:
            complete = False
            break
        if plan.device not in (None, case.device):
            continue
        if plan.case not in case.name:
            left_out.append(case.name)
            continue
        print(f"{name}, after {passed:.0f} s: case {number}, {case.name}", file=sys.stderr)
        chosen = [c for c in case.contestants if plan.wants(c)]
        rows += measure(replace(case, contestants=chosen), plan.rounds)
    command = shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]])
    return {"name": name, **commit(), "command": command, "rounds": plan.rounds} | {
        "complete": complete and not left_out,
        "left_out": left_out,
        "machine": machine(),
        "rows": rows,
    }


def by_case(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each case, in the order of the cases."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return cases


def merged(old: Report, new: Report) -> Report:
    """Return an old report with the cases of a new one, which takes the place of theirs.

    Commit, command, rounds and machine of the old one stay those of its cases; the new cases have
    theirs in `parts`.
    """
    fresh = by_case(new["rows"])
    # A case that the benchmark has no more is not kept.
    known = {*fresh, *new["left_out"]}
    cases = {case: rows for case, rows in by_case(old["rows"]).items() if case in known} | fresh
    left_out = [case for case in new["left_out"] if case not in cases]
    about = {key: new[key] for key in ("commit", "dirty", "command", "rounds", "machine")}
    return old | {
        "complete": not left_out,
        "left_out": left_out,
        "rows": [row for rows in cases.values() for row in rows],
        "parts": {c: a for c, a in old.get("parts", {}).items() if c in known}
        | dict.fromkeys(fresh, about),
    }


def save(report: Report, part: bool = False) -> Path:
    """Write a report, or its cases only, to results/NAME-MACHINE.json and return the path."""
    facts = report["machine"]
    machine_name = f"{facts['cpu']} {facts['cores']} cores {facts['gpu'] or ''}"
    slug = re.sub(r"[^a-z0-9]+", "-", machine_name.lower()).strip("-")
    path = HERE / "results" / f"{report['name']}-{slug}.json"
    path.parent.mkdir(exist_ok=True)
    if part and path.exists():
        report = merged(json.loads(path.read_text()), report)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def table(report: Report) -> str:
    """Return a report as plain text: error beside speed, cases apart."""
    facts = report["machine"]
    state = f"{(report['commit'] or 'no commit')[:12]}{' + changes' if report['dirty'] else ''}"
    lines = [f"{report['name']}: {facts['cpu']}, {facts['cores']} cores, {state}"]
    head = ("p20 us", "p50 us", "p80 us", "items/s", "of bytes", "of flop", "error")
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
        f"{row[k]:>10.1%}" if k in row else f"{'':>10}" for k in ("share_of_bytes", "share_of_flop")
    )
    return f"{times}{shares}{row['error']:>10.3g}"


def backend_names(text: str) -> tuple[str, ...]:
    """Return the backends a comma-separated list names.

    Raises
    ------
    argparse.ArgumentTypeError
        If one of them is no backend.
    """
    found = tuple(part.strip() for part in text.split(","))
    for name in found:
        if name not in BACKENDS:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(BACKENDS)}, got {name!r}")
    return found


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run benchmarks and keep their results.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"all, or of: {', '.join(names())}"
    )
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, no table")
    parser.add_argument(
        "--rounds", type=int, help="samples of each contestant, by default 30, or 3 with --quick"
    )
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="begin no case of a benchmark after N s"
    )
    parser.add_argument(
        "--backends",
        type=backend_names,
        default=(),
        metavar="NAME,...",
        help=f"of pyfeat's contestants only these: {', '.join(BACKENDS)}; nothing is saved",
    )
    parser.add_argument(
        "--case", default="", metavar="TEXT", help="only cases with TEXT in their names"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only cases on this device")
    parser.add_argument("--quick", action="store_true", help="few cases and rounds, nothing saved")
    parser.add_argument("--no-save", action="store_true", help="write no file")
    return parser


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; return 1 when any row is WRONG."""
    parser = command_line()
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(names()))
        return 0
    wanted = names() if options.names == ["all"] else options.names
    if not wanted or (unknown := set(wanted) - set(names())):
        parser.error(
            f"NAME must be all or one of {names()}, got {sorted(unknown) if wanted else []}"
        )
    rounds = (3 if options.quick else 30) if options.rounds is None else options.rounds
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, got {rounds}")
    if options.case and options.seconds < math.inf:
        parser.error("--seconds must be left out with --case: cases not reached could not be named")
    try:
        num_threads()
    except ValueError as error:
        parser.error(str(error))
    plan = Plan(
        rounds, options.quick, options.seconds, options.backends, options.device, options.case
    )
    wrong = 0
    for name in wanted:
        report = run(name, plan)
        print(json.dumps(report) if options.json else table(report))
        if report["rows"] and not (options.quick or options.no_save or options.backends):
            print(f"wrote {save(report, part=bool(options.case))}", file=sys.stderr)
        if options.case and not report["rows"]:
            print(f"{name}: no case has {options.case!r}: {report['left_out']}", file=sys.stderr)
        wrong += sum(row["status"] == "WRONG" for row in report["rows"])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
