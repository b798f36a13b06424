"""`pyfeat.jobs.extract` on a Ray cluster of two workers on this machine, one of them killed.

What is shown first is that every row is there and equal, to the bit, to that of a run without Ray;
the times say what a cluster costs to start (every sample starts its own) and what a death costs.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, Contestant
from PIL import Image

from pyfeat import FeatureStore, jobs
from pyfeat._config import num_threads
from pyfeat.store import read_items, verify

FILES = 2000
QUICK = 10  # times fewer
ON_RAY = {"runner": "ray", "workers": 2}
Rows = dict[str, bytes]


def cases(quick: bool) -> Iterator[Case]:
    n = FILES // QUICK if quick else FILES
    folder = Path(tempfile.mkdtemp(prefix="pyfeat-bench-"))
    try:
        photos = folder / "photos"
        write_photos(photos, n)
        rows_of(photos, folder / "warm")  # the backbone is loaded here once, by workers each time
        yield Case(
            name=f"{n} files, two workers",
            contestants=[
                Contestant("pyfeat cpp, without Ray", lambda: rows_of(photos, folder / "a")),
                Contestant("pyfeat cpp, Ray", lambda: rows_of(photos, folder / "b", **ON_RAY)),
                Contestant(
                    "pyfeat cpp, Ray, a worker killed",
                    lambda: rows_of(photos, folder / "c", progress=killer(), **ON_RAY),
                ),
            ],
            expected=rows_of(photos, folder / "warm"),
            error=wrong_rows,
            unit="rows that differ",
            items=n,
            threads=num_threads(),
            torch_threads=num_threads(),
        )
    finally:
        shutil.rmtree(folder)


def rows_of(photos: Path, store: Path, **options: Any) -> Rows:
    """Run a job into a new store, and return its rows by the names of their inputs."""
    shutil.rmtree(store, ignore_errors=True)
    jobs.extract(photos, store, **options)
    if damage := verify(store):
        raise RuntimeError(f"store must be clean, got {damage[0]}")
    opened = FeatureStore(store, mode="r")
    keys = {i.name: i.key for i in read_items(store, opened.space) if i.key is not None}
    rows = opened.get(list(keys.values()))
    return {name: row.tobytes() for name, row in zip(keys, rows, strict=True)}


def wrong_rows(found: Rows, right: Rows) -> float:
    names = found.keys() | right.keys()
    return float(sum(found.get(name) != right.get(name) for name in names))


def killer() -> Callable[[int, int], None]:
    """Return a `progress` that kills a worker when a quarter is done."""
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if 4 * done > total and not killed:
            killed.append(next(workers_below(os.getpid())))
            os.kill(killed[0], signal.SIGKILL)

    return kill


def workers_below(pid: int) -> Iterator[int]:
    """Yield the processes of workers that a process has started, by way of Ray."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if parent == pid:
            child = int(stat.parent.name)
            if command.startswith(b"ray::MapWorker"):
                yield child
            yield from workers_below(child)


def write_photos(root: Path, n: int) -> None:
    """Write photos of 320 x 240 smooth random pixels, as JPEG."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((320, 240), Image.Resampling.BICUBIC).save(root / f"{i:04d}.jpg")
