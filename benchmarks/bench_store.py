"""300,000 rows of 384 float16 written in batches of 256, and found again; files in the page cache.

A durable batch is on the disk before the next one is put; one that is not survives the end of the
process, and no loss of power. What a raw file holds can be found by nothing but its place. Rows of
the store lie in a log until `close` seals it: "sealed, too" is the time with that. Everybody's file
is open before the first row.

Three rounds take four minutes.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, Contestant

from pyfeat import FeatureStore, Space
from pyfeat._config import num_threads

N, DIM, BATCH = 300_000, 384, 256
N_KEYS, SEGMENTS = 1_000_000, 30
QUICK = 20  # times smaller
READ_BACK = 1000
LARGEST_SHARE = 1.06  # of bytes on disk in bytes of rows

Rows = np.ndarray
ReadBack = Callable[[np.ndarray], Rows]  # from positions to rows


def cases(quick: bool) -> Iterator[Case]:
    n = N // QUICK if quick else N
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    rows = rng.standard_normal((n, DIM), dtype=np.float32).astype(np.float16)
    folder = Path(tempfile.mkdtemp(prefix="pyfeat-bench-"))
    try:
        for durable in (True, False):
            yield append_case(folder, keys, rows, durable)
        yield bytes_case(folder, keys, rows)
        for segments in (1, SEGMENTS):
            yield existence_case(folder, N_KEYS // QUICK if quick else N_KEYS, segments)
    finally:
        shutil.rmtree(folder)


class Place:
    """A folder with something open in it, made anew for each call."""

    def __init__(self, folder: Path, opens: Callable[[Path], Any]) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self._opens = opens
        self.opened = opens(self.folder)

    def close(self) -> None:
        self.opened.close()

    def renew(self) -> None:
        self.close()
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.opened = self._opens(self.folder)

    def bytes(self) -> int:
        """Return what the files take on the disk."""
        return sum(p.stat().st_blocks * 512 for p in self.folder.rglob("*") if p.is_file())


def append_case(folder: Path, keys: np.ndarray, rows: Rows, durable: bool) -> Case:
    at = np.random.default_rng(1).choice(len(rows), min(READ_BACK, len(rows)), replace=False)

    def error(read: ReadBack, expected: Rows) -> float:
        return float((np.asarray(read(at)) != expected).sum())

    how = f"durable every {BATCH}" if durable else "no sync"
    return Case(
        name=f"append {len(rows)} x {DIM} float16, {how}",
        contestants=[writer(name, folder, keys, rows, durable) for name in WRITERS],
        expected=rows[at],
        error=error,
        unit="numbers that differ",
        items=len(rows),
        bytes=rows.nbytes,
    )


def writer(name: str, folder: Path, keys: np.ndarray, rows: Rows, durable: bool) -> Contestant:
    if reason := missing(name):
        return Contestant(name, skip=reason)
    opens, write = WRITERS[name]
    place = Place(folder, lambda path: opens(path, rows.nbytes, durable))
    return Contestant(name, lambda: write(place.opened, keys, rows, durable), after=place.renew)


def missing(name: str) -> str | None:
    package = name.split(",")[0].lower()
    absent = package in ("lmdb", "h5py") and find_spec(package) is None
    return f"{package} is not installed" if absent else None


def batches(n: int) -> Iterator[slice]:
    return (slice(i, i + BATCH) for i in range(0, n, BATCH))


def open_store(folder: Path, _size: int, _durable: bool) -> FeatureStore:
    return FeatureStore(folder, Space(DIM, "float16"))


def into_store(store: FeatureStore, keys: np.ndarray, rows: Rows, durable: bool) -> ReadBack:
    for part in batches(len(rows)):
        store.put(keys[part], rows[part])
        if durable:
            store.flush()
    return lambda at: store.get(keys[at])


def into_store_sealed(store: FeatureStore, keys: np.ndarray, rows: Rows, durable: bool) -> ReadBack:
    read = into_store(store, keys, rows, durable)
    store.close()
    return read


def open_raw_file(folder: Path, _size: int, _durable: bool) -> Any:
    return (folder / "rows.bin").open("xb", buffering=0)


def into_raw_file(file: Any, _keys: np.ndarray, rows: Rows, durable: bool) -> ReadBack:
    for part in batches(len(rows)):
        file.write(rows[part])
        if durable:
            os.fdatasync(file.fileno())
    return lambda at: np.memmap(file.name, np.float16, "r", shape=rows.shape)[at]


def open_lmdb(folder: Path, size: int, durable: bool) -> Any:
    import lmdb

    return lmdb.open(str(folder), map_size=16 * size, sync=durable)


def into_lmdb(base: Any, keys: np.ndarray, rows: Rows, _durable: bool) -> ReadBack:
    for part in batches(len(rows)):
        with base.begin(write=True) as writing:
            for key, row in zip(keys[part], rows[part], strict=True):
                writing.put(key.tobytes(), row.tobytes())

    def read(at: np.ndarray) -> Rows:
        with base.begin() as reading:
            found = b"".join(reading.get(key.tobytes()) for key in keys[at])
        return np.frombuffer(found, np.float16).reshape(-1, DIM)

    return read


def open_sqlite(folder: Path, _size: int, durable: bool) -> sqlite3.Connection:
    base = sqlite3.connect(folder / "rows.sqlite")
    base.execute("pragma journal_mode = wal")
    base.execute(f"pragma synchronous = {'full' if durable else 'off'}")
    base.execute("create table rows (key blob primary key, row blob) without rowid")
    return base


def into_sqlite(base: sqlite3.Connection, keys: np.ndarray, rows: Rows, _durable: bool) -> ReadBack:
    for part in batches(len(rows)):
        pairs = ((k.tobytes(), r.tobytes()) for k, r in zip(keys[part], rows[part], strict=True))
        base.executemany("insert into rows values (?, ?)", pairs)
        base.commit()

    def read(at: np.ndarray) -> Rows:
        query = "select row from rows where key = ?"
        found = b"".join(base.execute(query, (key.tobytes(),)).fetchone()[0] for key in keys[at])
        return np.frombuffer(found, np.float16).reshape(-1, DIM)

    return read


def open_h5py(folder: Path, _size: int, _durable: bool) -> Any:
    import h5py

    file = h5py.File(folder / "rows.h5", "w")
    file.create_dataset("rows", (0, DIM), np.float16, maxshape=(None, DIM), chunks=(BATCH, DIM))
    return file


def into_h5py(file: Any, _keys: np.ndarray, rows: Rows, durable: bool) -> ReadBack:
    table, descriptor = file["rows"], file.id.get_vfd_handle()
    for part in batches(len(rows)):
        block = rows[part]
        table.resize(part.start + len(block), axis=0)
        table[part.start :] = block
        if durable:
            file.flush()
            os.fdatasync(descriptor)
    return lambda at: table[:][at]


WRITERS: dict[str, tuple[Callable[..., Any], Callable[..., ReadBack]]] = {
    "pyfeat cpp, by key": (open_store, into_store),
    "pyfeat cpp, by key, sealed, too": (open_store, into_store_sealed),
    "raw file, by place": (open_raw_file, into_raw_file),
    "LMDB, by key": (open_lmdb, into_lmdb),
    "sqlite, by key": (open_sqlite, into_sqlite),
    "h5py, by place": (open_h5py, into_h5py),
}


def bytes_case(folder: Path, keys: np.ndarray, rows: Rows) -> Case:
    """Return what everybody needs on the disk; how long it takes to sum that up is no matter."""
    contestants = []
    for name, (opens, write) in WRITERS.items():
        if reason := missing(name):
            contestants.append(Contestant(name, skip=reason))
            continue
        place = Place(folder, lambda path, opens=opens: opens(path, rows.nbytes, False))
        write(place.opened, keys, rows, False)
        size = place.bytes()
        place.renew()
        bound = LARGEST_SHARE if name.startswith("pyfeat") else float("inf")
        contestants.append(Contestant(name, lambda size=size: size / rows.nbytes, bound=bound))
    return Case(
        name=f"bytes on disk of {len(rows)} x {DIM} float16",
        contestants=contestants,
        expected=0.0,
        error=lambda share, _: share,
        unit="bytes per byte of rows",
    )


def existence_case(folder: Path, n: int, segments: int) -> Case:
    """Return the question which of n keys are there, half of which are, among n."""
    rng = np.random.default_rng(2)
    keys = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    asked = np.concatenate([keys[::2], rng.integers(0, 256, (n - len(keys[::2]), 16), np.uint8)])
    asked = rng.permutation(asked)
    as_bytes = [key.tobytes() for key in asked]
    table = {key.tobytes(): i for i, key in enumerate(keys)}
    expected = np.fromiter(map(table.__contains__, as_bytes), bool, n)
    path = folder / f"keys-{segments}"
    for part in np.array_split(keys, segments):
        with FeatureStore(path, Space(2, "float16")) as store:
            store.put(part, np.zeros((len(part), 2), np.float16))
    return Case(
        name=f"which of {n} keys are there, {segments} segment{'s' * (segments > 1)}",
        contestants=[
            Contestant("pyfeat cpp, array of keys", lambda: store.contains(asked)),
            Contestant("pyfeat cpp, list of bytes", lambda: store.contains(as_bytes)),
            Contestant("dict, list of bytes", lambda: [key in table for key in as_bytes]),
            Contestant(
                "dict, map", lambda: np.fromiter(map(table.__contains__, as_bytes), bool, n)
            ),
            lmdb_existence(folder, keys, as_bytes),
        ],
        expected=expected,
        error=lambda found, right: float((np.asarray(found) != right).sum()),
        unit="wrong answers",
        items=n,
        threads=num_threads(),
    )


def lmdb_existence(folder: Path, keys: np.ndarray, as_bytes: list[bytes]) -> Contestant:
    if find_spec("lmdb") is None:
        return Contestant("LMDB", skip="lmdb is not installed")
    import lmdb

    base = lmdb.open(tempfile.mkdtemp(dir=folder), map_size=1 << 30)
    with base.begin(write=True) as writing:
        for key in keys:
            writing.put(key.tobytes(), b"\0\0\0\0")

    def run() -> list[bool]:
        with base.begin(buffers=True) as reading:
            return [reading.get(key) is not None for key in as_bytes]

    return Contestant("LMDB", run)
