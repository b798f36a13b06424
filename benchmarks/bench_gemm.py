"""The packed matrix product under the ops: C (m, n) = A (m, k) B (n, k)^T, packing included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from elsewhere import elsewhere
from harness import Case, Contestant

from pyfeat import _core
from pyfeat._config import num_threads

M, N, K = 4096, 4096, 768


def cases(quick: bool) -> Iterator[Case]:
    threads = num_threads()
    m, n, k = (512, 512, 256) if quick else (M, N, K)
    a, b = inputs(m, n, k)
    out = np.zeros((m, n), np.float32)  # one for all, touched: fresh pages would cost the first
    # Sums of k rounded products of normal numbers: sqrt(k) times the rounding of each.
    fp32, bf16 = 8 * 2.0**-24 * k**0.5, 8 * 2.0**-9
    yield Case(
        name=f"{m}x{n}x{k}",
        contestants=[
            *(
                Contestant(f"pyfeat cpp[{isa}]", ours(a, b, out, isa, False), fp32)
                for isa in _core.isas()
            ),
            *(
                Contestant(f"pyfeat cpp[{isa}], bf16", ours(a, b, out, isa, True), bf16)
                for isa in _core.isas()[:1]
            ),
            Contestant("torch", torch_product(m, n, k, torch.float32), fp32),
            Contestant("torch, bf16", torch_product(m, n, k, torch.bfloat16), 2 * bf16),
            *(
                Contestant(
                    f"numpy, OPENBLAS_CORETYPE={core or 'unset'}",
                    elsewhere(
                        "bench_gemm:numpy_product",
                        {"OPENBLAS_CORETYPE": core, "OPENBLAS_NUM_THREADS": str(threads)},
                        *(m, n, k),
                    ),
                    fp32,
                )
                for core in ("", "Haswell")
            ),
        ],
        expected=a.astype(np.float64) @ b.T.astype(np.float64),
        error=relative_error,
        unit="largest difference / standard deviation",
        flop=2 * m * n * k,
        threads=threads,
        torch_threads=threads,
    )


def inputs(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((m, k), dtype=np.float32)
    return a, rng.standard_normal((n, k), dtype=np.float32)


def relative_error(result: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(result, np.float64) - expected).max() / expected.std())


def ours(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, isa: str, bf16: bool
) -> Callable[[], np.ndarray]:
    (m, k), n = a.shape, len(b)

    def run() -> np.ndarray:
        _core.set_isa(isa)
        _core.gemm(a.ctypes.data, b.ctypes.data, c.ctypes.data, m, n, k, 0, bf16, num_threads())
        return c

    return run


def torch_product(m: int, n: int, k: int, dtype: torch.dtype) -> Callable[[], Any]:
    a, b = (torch.from_numpy(x).to(dtype) for x in inputs(m, n, k))
    out = torch.empty(m, n, dtype=dtype)
    return lambda: torch.mm(a, b.T, out=out).float()


def numpy_product(m: int, n: int, k: int) -> Callable[[], np.ndarray]:
    a, b = inputs(m, n, k)
    out = np.empty((m, n), np.float32)
    return lambda: np.matmul(a, b.T, out=out)
