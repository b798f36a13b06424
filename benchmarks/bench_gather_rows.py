"""100,000 random rows of 300,000 x 384 float16 in a file, by key and by row number.

The store's rows are found by key and checked against their CRC32C; the others are neither, unless
their name says so. Files lie in the page cache.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Case, Contestant

from pyfeat import FeatureStore, Space, _core
from pyfeat._config import num_threads
from pyfeat.ops import gather_rows

N, DIM, PICKED = 300_000, 384, 100_000
QUICK = 10  # times smaller

Run = Callable[[], Any]


def cases(quick: bool) -> Iterator[Case]:
    n, m = (N // QUICK, PICKED // QUICK) if quick else (N, PICKED)
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    rows = rng.standard_normal((n, DIM), dtype=np.float32).astype(np.float16)
    at = rng.choice(n, m, replace=False)
    folder = Path(tempfile.mkdtemp(prefix="pyfeat-bench-"))
    try:
        with FeatureStore(folder / "store", Space(DIM, "float16")) as store:
            store.put(keys, rows)
        rows.tofile(folder / "rows.bin")
        mapped = np.memmap(folder / "rows.bin", np.float16, "r", shape=rows.shape)
        for dtype in (np.float16, np.float32):
            size = np.dtype(dtype).itemsize
            yield Case(
                name=f"{m} of {n} x {DIM} float16 as {np.dtype(dtype).name}",
                contestants=[
                    *by_key(store, keys, at, mapped, dtype),
                    *by_row(mapped, at, dtype),
                    h5py_contestant(folder, rows, at, dtype),
                    lmdb_contestant(folder, keys, rows, at, dtype),
                ],
                expected=rows[at].astype(dtype),
                error=numbers_that_differ,
                unit="numbers that differ",
                items=m,
                bytes=m * DIM * (2 + size),
                threads=num_threads(),
                torch_threads=num_threads(),
            )
    finally:
        shutil.rmtree(folder)


def numbers_that_differ(result: Any, expected: np.ndarray) -> float:
    found = np.asarray(result)
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return float("inf")
    return float((found != expected).sum())


def by_key(
    store: FeatureStore, keys: np.ndarray, at: np.ndarray, mapped: np.ndarray, dtype: Any
) -> list[Contestant]:
    wanted = np.ascontiguousarray(keys[at])
    as_bytes = [key.tobytes() for key in wanted]
    table = {key.tobytes(): row for row, key in enumerate(keys)}

    def dict_and_memmap() -> np.ndarray:
        rows = np.fromiter((table[key] for key in as_bytes), np.int64, len(as_bytes))
        return mapped[rows].astype(dtype, copy=False)

    ours = [
        Contestant(
            f"pyfeat cpp[{isa}], store by key", on(isa, lambda: store.get(wanted, dtype=dtype))
        )
        for isa in _core.isas()
    ]
    best = _core.isas()[0]
    return [
        *ours[:1],
        Contestant(
            f"pyfeat cpp[{best}], keys as bytes", on(best, lambda: store.get(as_bytes, dtype=dtype))
        ),
        *ours[1:],
        Contestant("dict + memmap, by key", dict_and_memmap),
    ]


def by_row(mapped: np.ndarray, at: np.ndarray, dtype: Any) -> list[Contestant]:
    which = np.zeros(len(at), np.int64)
    kind = torch.float16 if dtype == np.float16 else torch.float32
    tensor = torch.from_file(
        str(mapped.filename), shared=False, size=mapped.size, dtype=torch.float16
    ).reshape(mapped.shape)
    index = torch.from_numpy(at)

    def op(backend: str) -> Run:
        return lambda: gather_rows([mapped], which, at, dtype=kind, backend=backend)

    return [
        *(Contestant(f"pyfeat cpp[{isa}], by row", on(isa, op("cpp"))) for isa in _core.isas()),
        Contestant("pyfeat reference, by row", op("reference")),
        Contestant("memmap, by row", lambda: mapped[at].astype(dtype, copy=False)),
        Contestant("torch.index_select, by row", lambda: tensor.index_select(0, index).to(kind)),
    ]


def on(isa: str, run: Run) -> Run:
    def with_isa() -> Any:
        _core.set_isa(isa)
        return run()

    return with_isa


def h5py_contestant(folder: Path, rows: np.ndarray, at: np.ndarray, dtype: Any) -> Contestant:
    name = "h5py, by row, sorted first"
    if find_spec("h5py") is None:
        return Contestant(name, skip="h5py is not installed")
    import h5py

    with h5py.File(folder / f"{np.dtype(dtype).name}.h5", "w") as file:
        file["rows"] = rows
    file = h5py.File(folder / f"{np.dtype(dtype).name}.h5")
    order = np.argsort(at)  # h5py takes increasing numbers only
    back = np.argsort(order)
    return Contestant(name, lambda: file["rows"][at[order]][back].astype(dtype, copy=False))


def lmdb_contestant(
    folder: Path, keys: np.ndarray, rows: np.ndarray, at: np.ndarray, dtype: Any
) -> Contestant:
    name = "LMDB, by key"
    if find_spec("lmdb") is None:
        return Contestant(name, skip="lmdb is not installed")
    import lmdb

    path = folder / f"{np.dtype(dtype).name}.lmdb"
    base = lmdb.open(str(path), map_size=4 * rows.nbytes)
    with base.begin(write=True) as writing:
        for key, row in zip(keys, rows, strict=True):
            writing.put(key.tobytes(), row.tobytes())
    wanted = [key.tobytes() for key in keys[at]]

    def run() -> np.ndarray:
        with base.begin(buffers=True) as reading:
            found = b"".join(reading.get(key) for key in wanted)
        return np.frombuffer(found, np.float16).reshape(-1, DIM).astype(dtype, copy=False)

    return Contestant(name, run)
