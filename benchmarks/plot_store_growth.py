"""Draw what a row costs as a store grows: results/store_growth-MACHINE.json to a PNG beside it.

python benchmarks/plot_store_growth.py [FILE.json]     needs matplotlib: pip install 'pyfeat[plot]'
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
# Name of a case, with its numbers as groups: how many at a time, and rows in the store.
LINES = {
    "append": (r"append (?P<asked>\d+) rows to (?P<n>\d+)", "append, 256 at a time"),
    "find": (r"look up (?P<asked>256) keys in (?P<n>\d+) rows", "look up, 256 at a time, cold"),
    "read": (r"read (?P<asked>256) rows of (?P<n>\d+)", "read, 256 at a time, cold"),
    "find again": (r"look up (?P<asked>4096) keys in (?P<n>\d+) rows", "look up, 4,096, warm"),
    "read again": (r"read (?P<asked>4096) rows of (?P<n>\d+)", "read, 4,096, warm"),
}
OPEN = r"open a store of (?P<n>\d+) rows"


def curve(rows: list[dict[str, Any]], pattern: str) -> tuple[list[int], list[float]]:
    """Return sizes of the store and microseconds: for each row, where some are asked for."""
    points = {}
    for row in rows:
        found = re.fullmatch(pattern, row["case"])
        if found and row["status"] == "ok":
            asked = int(found.groupdict().get("asked") or 1)
            points[int(found["n"])] = row["p50_us"] / asked
    return sorted(points), [points[n] for n in sorted(points)]


def draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, (pattern, label) in LINES.items():
        sizes, cost = curve(report["rows"], pattern)
        if sizes:
            again = name.endswith("again")
            rise = max(cost) / min(cost)
            text = f"{label}: largest {rise:.2f}x the smallest"
            left.plot(sizes, cost, "--o" if again else "-o", alpha=0.5 if again else 1, label=text)
    sizes, cost = curve(report["rows"], OPEN)
    right.plot(sizes, [c / 1000 for c in cost], "-o")
    left.set(title="microseconds a row", xscale="log", xlabel="rows in the store")
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    right.set(title="milliseconds to open the store", xscale="log", xlabel="rows in the store")
    right.set_ylim(bottom=0)
    facts = report["machine"]
    figure.suptitle(f"{facts['cpu']}, {facts['cores']} cores, commit {report['commit'][:12]}")
    figure.savefig(path, dpi=120)


def main(arguments: list[str]) -> int:
    files = [Path(a) for a in arguments] or sorted(RESULTS.glob("store_growth-*.json"))
    if not files:
        print("no result: run `python benchmarks/run.py store_growth` first", file=sys.stderr)
        return 1
    for file in files:
        draw(json.loads(file.read_text()), file.with_suffix(".png"))
        print(f"wrote {file.with_suffix('.png')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
