"""Exact nearest rows: 10 of 100,000 x 384, many queries and one, over each type of stored row.

The answer is right when as many of its rows as its bound says are those of the reference: faiss
breaks ties, and rounds, in its own way, and its 8-bit codes are not our rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import device
import numpy as np
import torch
from elsewhere import elsewhere, tuned_malloc
from harness import Case, Contestant

from pyfeat import _core
from pyfeat._config import num_threads
from pyfeat.ops import topk

M, D, K = 100_000, 384, 10
QUERIES = 2000
BLOCK = 8192  # rows of the base that torch and numpy multiply at a time
NEAR_TIES = 1e-3  # share of neighbours that float32 scores may swap
CODES = 0.3  # and that faiss's own 8-bit codes may replace
CORES = {"OpenBLAS Haswell": {"OPENBLAS_CORETYPE": "Haswell"}, "OpenBLAS": {}}
FAISS_TYPES = {"float16": "QT_fp16", "int8": "QT_8bit"}

Run = Callable[[], Any]


def cases(quick: bool) -> Iterator[Case]:
    kinds = (("float32", "ip"), ("float16", "ip"), ("int8", "ip"), ("float32", "l2"))
    plan = [(*kind, n) for n in (QUERIES, 1) for kind in kinds]
    for dtype, metric, n in plan[-1:] if quick else plan:
        queries, base, scales = data(dtype, n)
        find = partial(topk, queries, base, K, metric=metric, scales=scales)
        case = partial(
            Case,
            expected=find(backend="reference").rows if n <= 100 else truth(find),
            error=share_of_others,
            unit="share of rows that are not the reference's",
            items=n,
            bytes=base.nbytes + queries.nbytes,
            flop=2 * n * M * D,
            threads=num_threads(),
            torch_threads=num_threads(),
        )
        name = f"{n} x {M} x {D}, {dtype}, {metric}, k={K}"
        if "cpu" in device.devices():
            native = [Contestant(f"pyfeat cpp[{i}]", ours(find, i)) for i in _core.isas()[:3]]
            yield case(name=name, contestants=[*native, *peers(dtype, metric, n)])
        if "cuda" in device.devices():
            entries = [*on_gpu(queries, base, scales, metric)]
            yield case(name=f"{name}, cuda", contestants=entries, device="cuda")


def truth(find: Callable[..., Any]) -> np.ndarray:
    """Return what another instruction set says: tests compare it with the slow reference."""
    _core.set_isa(_core.isas()[:2][-1])
    rows = find(backend="cpp").rows
    _core.set_isa(_core.isas()[0])
    return rows


def data(dtype: str, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return unit queries, unit rows as they are stored, and the scales of int8 rows."""
    rng = np.random.default_rng(0)
    queries, base = (rng.standard_normal((r, D), dtype=np.float32) for r in (n, M))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    if dtype != "int8":
        return queries, base.astype(dtype), None
    scales = np.abs(base).max(1) / np.float32(127)
    return queries, np.rint(base / scales[:, None]).astype(np.int8), scales


def as_float(base: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    return base.astype(np.float32) if scales is None else base * scales[:, None]


def share_of_others(result: Any, expected: Any) -> float:
    rows, right = (np.asarray(torch.as_tensor(r).cpu()) for r in (result, expected))
    if rows.shape != right.shape:
        return 1.0
    common = sum(len(np.intersect1d(a, b)) for a, b in zip(rows, right, strict=True))
    return 1 - common / right.size


def ours(find: Callable[..., Any], isa: str) -> Run:
    def run() -> Any:
        _core.set_isa(isa)
        return find(backend="cpp").rows

    return run


def peers(dtype: str, metric: str, n: int) -> Iterator[Contestant]:
    bound = CODES if dtype == "int8" else NEAR_TIES
    for name, core in CORES.items():
        at = (dtype, metric, n, num_threads())
        if n == 1 or dtype == "float32":  # of many queries faiss decodes every row again for each
            own = elsewhere("bench_topk:faiss_search", core, *at)
            yield Contestant(f"faiss, {name}", own, bound)
        if dtype != "float32":
            flat = elsewhere("bench_topk:faiss_search", core, "float32", *at[1:])
            yield Contestant(f"faiss, float32, {name}", flat, CODES)
        yield Contestant(
            f"numpy in blocks, {name}", elsewhere("bench_topk:numpy_search", core, *at), NEAR_TIES
        )
    arrays = [None if a is None else torch.from_numpy(a) for a in data(dtype, n)]
    yield Contestant("torch in blocks", partial(torch_search, *arrays, metric), NEAR_TIES)
    alone = elsewhere("bench_topk:torch_alone", tuned_malloc(num_threads()), dtype, metric, n)
    yield Contestant("torch in blocks, tuned malloc", alone, NEAR_TIES)
    try:
        block = torch.compile(torch_keys, dynamic=True)
        torch_search(*arrays, metric, block)
    except (RuntimeError, OSError) as error:  # what torch raises without a C++ compiler
        yield Contestant("torch.compile in blocks", skip=f"cannot compile: {type(error).__name__}")
    else:
        run = partial(torch_search, *arrays, metric, block)
        yield Contestant("torch.compile in blocks", run, NEAR_TIES)


def faiss_search(dtype: str, metric: str, n: int, threads: int) -> Run:
    import faiss

    faiss.omp_set_num_threads(threads)
    queries, base, scales = data(dtype, n)
    measure = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    if dtype == "float32":
        index = faiss.IndexFlat(D, measure)
    else:
        kind = getattr(faiss.ScalarQuantizer, FAISS_TYPES[dtype])
        index = faiss.IndexScalarQuantizer(D, kind, measure)
    rows = as_float(base, scales)
    index.train(rows)
    index.add(rows)
    return lambda: index.search(queries, K)[1]


def numpy_search(dtype: str, metric: str, n: int, threads: int) -> Run:
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads, user_api="blas")
    queries, base, scales = data(dtype, n)

    def run() -> np.ndarray:
        best = np.full((n, 0), 0, np.float32)
        rows = np.full((n, 0), 0, np.int64)
        for start in range(0, M, BLOCK):
            part = slice(start, start + BLOCK)
            block = as_float(base[part], None if scales is None else scales[part])
            keys = queries @ block.T
            if metric == "l2":
                keys -= 0.5 * np.einsum("ij,ij->i", block, block)
            at = np.argpartition(keys, -K, axis=1)[:, -K:]
            best = np.hstack([best, np.take_along_axis(keys, at, 1)])
            rows = np.hstack([rows, at + start])
            order = np.argsort(-best, axis=1)[:, :K]
            best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
        return rows

    return run


def torch_keys(queries: Any, base: Any, scales: Any, l2: bool) -> torch.Tensor:
    block = base.float() if scales is None else base.float() * scales[:, None]
    keys = queries @ block.T
    return keys - 0.5 * block.square().sum(1) if l2 else keys


def torch_search(
    queries: Any, base: Any, scales: Any, metric: str, keys_of: Any = torch_keys
) -> torch.Tensor:
    best, rows = queries[:, :0], queries[:, :0].long()
    for start in range(0, M, BLOCK):
        part = slice(start, start + BLOCK)
        factors = None if scales is None else scales[part]
        found, at = keys_of(queries, base[part], factors, metric == "l2").topk(K)
        best, order = torch.cat([best, found], 1).topk(K)
        rows = torch.cat([rows, at + start], 1).gather(1, order)
    if rows.is_cuda:
        torch.cuda.synchronize()
    return rows


def torch_alone(dtype: str, metric: str, n: int) -> Run:
    arrays = [None if a is None else torch.from_numpy(a) for a in data(dtype, n)]
    return partial(torch_search, *arrays, metric)


def on_gpu(queries: Any, base: Any, scales: Any, metric: str) -> Iterator[Contestant]:
    arrays = [None if a is None else torch.from_numpy(a).cuda() for a in (queries, base, scales)]

    def run(name: str) -> torch.Tensor:
        x, y, factors = arrays
        rows = topk(x, y, K, metric=metric, scales=factors, backend=name).rows
        torch.cuda.synchronize()
        return rows

    for name in ("cuda", "triton"):
        yield Contestant(f"pyfeat {name}", partial(run, name))
    yield Contestant("torch on GPU", partial(torch_search, *arrays, metric), NEAR_TIES)
    block = torch.compile(torch_keys, dynamic=True)
    compiled = partial(torch_search, *arrays, metric, block)
    yield Contestant("torch.compile on GPU", compiled, NEAR_TIES)
