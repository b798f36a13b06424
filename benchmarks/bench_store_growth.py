"""What a row costs in a store of 10,000 to 10,000,000: appended, looked up, read; and to open it.

Rows are synthetic, 32 float16 each, so that the largest store is 1 GB; its segments hold as many
rows as those of 384 float16 do when they are full, so that there are as many of them. Files lie in
the page cache. 256 keys are asked for at a time as a job does it, with other things in the CPU's
caches, where the network was before; 4,096 at a time again and again, with all of a small store in
the caches. Memory is what opening and asking add to the process beyond the mapped files.

`plot_store_growth.py` draws the result. Thirty rounds take two minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, Contestant

from pyfeat import FeatureStore, Space
from pyfeat._config import num_threads

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
QUICK = 2  # sizes
DIM, SEGMENT_ROWS = 32, (256 << 20) // (384 * 2)
SPACE = Space(DIM, "float16")
BATCH, APPENDED, ASKED = 256, 10_240, 4096
CACHES = 16 << 20  # float32: 64 MiB
MOST_MEMORY = 64.0  # MiB


def cases(quick: bool) -> Iterator[Case]:
    folder = Path(tempfile.mkdtemp(prefix="pyfeat-bench-"))
    try:
        for n in SIZES[:QUICK] if quick else SIZES:
            path = folder / str(n)
            fill(path, n)
            yield open_case(path, n)
            yield memory_case(path, n)
            store = FeatureStore(path, SPACE, mode="r")
            for asked in (BATCH, ASKED):
                yield find_case(store, n, asked)
                yield read_case(store, n, asked)
            yield append_case(path, n)
            del store
            shutil.rmtree(path)
    finally:
        shutil.rmtree(folder)


def keys_of(begin: int, n: int) -> np.ndarray:
    """Return keys number `begin` and on: any of them, without all of them in memory."""
    numbers = np.arange(begin, begin + n, dtype=np.uint64)[:, None] * np.uint64(2)
    numbers = numbers + np.arange(2, dtype=np.uint64)
    # splitmix64, whose outputs for different numbers differ
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))).view(np.uint8).reshape(n, 16)


def rows_of(keys: np.ndarray) -> np.ndarray:
    """Return rows that say whose they are: the bytes of the key, as numbers, twice."""
    return np.concatenate([keys, keys], axis=1).astype(np.float16)


def fill(path: Path, n: int) -> None:
    size = SEGMENT_ROWS * DIM * 2
    with FeatureStore(path, SPACE, segment_bytes=size) as store:
        for begin in range(0, n, SEGMENT_ROWS // 8):
            keys = keys_of(begin, min(SEGMENT_ROWS // 8, n - begin))
            store.put(keys, rows_of(keys))


def count_wrong(found: Any, right: np.ndarray) -> float:
    return float((np.asarray(found) != right).sum())


def open_case(path: Path, n: int) -> Case:
    def run() -> FeatureStore:
        return FeatureStore(path, SPACE, mode="r")

    asked = keys_of(n - 100, 100)
    return Case(
        name=f"open a store of {n} rows",
        contestants=[Contestant("pyfeat cpp", run)],
        expected=np.ones(100, bool),
        error=lambda store, right: count_wrong(store.contains(asked), right),
        unit="wrong answers",
        threads=num_threads(),
    )


def memory_case(path: Path, n: int) -> Case:
    asked = keys_of(n // 2, max(n // 8, ASKED))
    kept: list[FeatureStore] = []

    def run() -> float:
        before = memory()
        kept.append(FeatureStore(path, SPACE, mode="r"))
        for begin in range(0, len(asked), ASKED):
            kept[-1].contains(asked[begin : begin + ASKED])
        return memory() - before

    return Case(
        name=f"open and ask for {len(asked)} keys of {n}",
        contestants=[Contestant("pyfeat cpp", run, bound=MOST_MEMORY, after=kept.clear)],
        expected=0.0,
        error=lambda used, _: used,
        unit="MiB beyond the page cache",
        items=len(asked),
        threads=num_threads(),
    )


def memory() -> float:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s*(\d+) kB", status)
    return int(found[1]) / 1024 if found else float("nan")


JUNK = np.ones(CACHES, np.float32)


def fill_caches() -> None:
    JUNK.sum()


def asked_for(run: Callable[[], Any], asked: int) -> list[Contestant]:
    """Return our way to do it, with cold caches where as many are asked for as in a job."""
    return [Contestant("pyfeat cpp", run, after=fill_caches if asked == BATCH else None)]


def random_keys(numbers: np.ndarray) -> np.ndarray:
    return np.concatenate([keys_of(int(i), 1) for i in numbers])


def find_case(store: FeatureStore, n: int, asked: int) -> Case:
    numbers = np.random.default_rng(0).integers(0, 2 * n, asked)  # half of them are there
    keys = random_keys(numbers)
    for begin in range(0, n, ASKED):  # as long as a job asks until it pays to map the keys
        store.contains(keys_of(begin, min(ASKED, n - begin)))
    return Case(
        name=f"look up {asked} keys in {n} rows",
        contestants=asked_for(lambda: store.contains(keys), asked),
        expected=numbers < n,
        error=count_wrong,
        unit="wrong answers",
        items=asked,
        threads=num_threads(),
    )


def read_case(store: FeatureStore, n: int, asked: int) -> Case:
    keys = random_keys(np.random.default_rng(1).integers(0, n, asked))
    return Case(
        name=f"read {asked} rows of {n}",
        contestants=asked_for(lambda: store.get(keys), asked),
        expected=rows_of(keys),
        error=count_wrong,
        unit="numbers that differ",
        items=asked,
        bytes=asked * DIM * 4,
        threads=num_threads(),
    )


def append_case(path: Path, n: int) -> Case:
    """Return puts into a store of n rows; they are left unsealed, and taken away again."""
    keys = keys_of(4 * n, APPENDED)
    rows = rows_of(keys)
    opened = [FeatureStore(path, SPACE)]

    def run() -> FeatureStore:
        for begin in range(0, APPENDED, BATCH):
            opened[0].put(keys[begin : begin + BATCH], rows[begin : begin + BATCH])
        return opened[0]

    def after() -> None:
        for tail in path.rglob("*.tail"):
            os.truncate(tail, 64)  # its header; whoever opens the store next removes it
        opened.clear()
        opened.append(FeatureStore(path, SPACE))

    return Case(
        name=f"append {APPENDED} rows to {n}",
        contestants=[Contestant("pyfeat cpp", run, after=after)],
        expected=rows,
        error=lambda store, right: count_wrong(store.get(keys), right),
        unit="numbers that differ",
        items=APPENDED,
        bytes=APPENDED * DIM * 2,
    )
