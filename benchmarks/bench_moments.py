"""Covariance of float32 rows: half the products of columns, and what groups add to it.

Every contestant starts from rows with a mean of 1 and ends with the (d, d) covariance, divided by
n, or that of each of ten groups. The error is the largest difference to float64 in units of
sqrt(s_ii s_jj).
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
from pyfeat.ops import moments

SHAPES = ((50_000, 1024), (50_000, 384))
GROUPS = 10
TOLERANCE = 1e-5
CORE_TYPES = ("Haswell", "SkylakeX")

Run = Callable[[], Any]


def cases(quick: bool) -> Iterator[Case]:
    for n, d in ((5_000, 384),) if quick else SHAPES:
        if "cpu" in device.devices():
            yield covariance_case(n, d)
            yield groups_case(n, d)
        if "cuda" in device.devices():
            yield gpu_case(n, d)


def rows(n: int, d: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, d), dtype=np.float32) + 1


def labels(n: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, GROUPS, n)


def relative(result: Any, expected: np.ndarray) -> float:
    got = torch.as_tensor(result).double().cpu().numpy()
    spread = np.diagonal(expected, axis1=-2, axis2=-1)
    scale = np.sqrt(spread[..., :, None] * spread[..., None, :])
    return float(np.abs((got - expected) / scale).max())


def covariance_case(n: int, d: int) -> Case:
    X = rows(n, d)
    threads = num_threads()
    limits = {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    tensor = torch.from_numpy(X)
    others = [
        Contestant(
            f"{name}, OpenBLAS {core}",
            elsewhere(f"bench_moments:{f}", {"OPENBLAS_CORETYPE": core, **limits}, n, d),
            TOLERANCE,
        )
        for core in CORE_TYPES
        for name, f in (
            ("numpy, centred rows", "numpy_product"),
            ("numpy.cov", "numpy_cov"),
            ("scikit-learn EmpiricalCovariance", "sklearn_covariance"),
        )
    ]
    half = tensor.half()
    return Case(
        name=f"{n} x {d}",
        contestants=[
            *(Contestant(f"pyfeat cpp[{isa}]", ours(X, isa), TOLERANCE) for isa in _core.isas()),
            Contestant("pyfeat reference", ours(X, None), TOLERANCE),
            Contestant("torch, centred rows", partial(torch_product, tensor), TOLERANCE),
            Contestant(
                "torch, centred rows, tuned malloc",
                elsewhere("bench_moments:torch_alone", tuned_malloc(threads), n, d),
                TOLERANCE,
            ),
            Contestant("torch.cov", partial(torch.cov, tensor.T, correction=0), TOLERANCE),
            *others,
            # Other rows, rounded: their covariance differs by the rounding, of 2^-11 of a number.
            Contestant(
                "pyfeat cpp, float16 rows",
                ours(half, _core.isas()[0]),
                2.0**-11,
            ),
        ],
        expected=numpy_product(n, d, np.float64)(),
        error=relative,
        unit="largest error of s_ij in units of sqrt(s_ii s_jj)",
        items=n,
        flop=n * d * (d + 1),
        threads=threads,
        torch_threads=threads,
    )


def groups_case(n: int, d: int) -> Case:
    X, y = rows(n, d), labels(n)
    threads = num_threads()
    expected = np.stack([np.cov(X[y == g].T.astype(np.float64), ddof=0) for g in range(GROUPS)])

    def one_by_one() -> np.ndarray:
        return np.stack([centred_product(X[y == g]) for g in range(GROUPS)])

    def grouped() -> Any:
        _core.set_isa(_core.isas()[0])
        return moments(X, groups=y, n_groups=GROUPS, backend="cpp").scatter

    def alone() -> np.ndarray:
        _core.set_isa(_core.isas()[0])
        return moments(X, backend="cpp").scatter

    def per_row(result: Any, true: np.ndarray) -> float:
        if result.ndim == 2:  # the cost of one group, for comparison: right in the case before
            return 0.0
        return relative(result / np.bincount(y)[:, None, None], true)

    return Case(
        name=f"{n} x {d}, {GROUPS} groups",
        contestants=[
            Contestant(f"pyfeat cpp, {GROUPS} groups", grouped, TOLERANCE),
            Contestant("pyfeat cpp, one group of all rows", alone, TOLERANCE),
            Contestant(
                "numpy, group after group",
                lambda: one_by_one() * np.bincount(y)[:, None, None],
                TOLERANCE,
            ),
        ],
        expected=expected,
        error=per_row,
        unit="largest error of s_ij in units of sqrt(s_ii s_jj)",
        items=n,
        flop=n * d * (d + 1),
        threads=threads,
        torch_threads=threads,
    )


def gpu_case(n: int, d: int) -> Case:
    X = torch.from_numpy(rows(n, d)).cuda()

    def waited(run: Run) -> Run:
        def wait() -> Any:
            result = run()
            torch.cuda.synchronize()
            return result

        return wait

    compiled = torch.compile(torch_product, fullgraph=True, dynamic=False)
    return Case(
        name=f"{n} x {d} on a GPU",
        contestants=[
            Contestant(
                "pyfeat triton",
                waited(lambda: moments(X, backend="triton").covariance()),
                TOLERANCE,
            ),
            Contestant("torch, centred rows", waited(partial(torch_product, X)), TOLERANCE),
            Contestant("torch.compile, centred rows", waited(partial(compiled, X)), TOLERANCE),
            Contestant("torch.cov", waited(partial(torch.cov, X.T, correction=0)), TOLERANCE),
        ],
        expected=numpy_product(n, d, np.float64)(),
        error=relative,
        unit="largest error of s_ij in units of sqrt(s_ii s_jj)",
        items=n,
        flop=n * d * (d + 1),
        threads=num_threads(),
        device="cuda",
    )


def ours(X: Any, isa: str | None) -> Run:
    if isa is None:
        return lambda: moments(X, backend="reference").covariance()

    def run() -> Any:
        _core.set_isa(isa)
        return moments(X, backend="cpp").covariance()

    return run


def torch_product(X: torch.Tensor) -> torch.Tensor:
    centred = X - X.mean(0)
    return centred.T @ centred / len(X)


def torch_alone(n: int, d: int) -> Run:
    return partial(torch_product, torch.from_numpy(rows(n, d)))


def centred_product(X: np.ndarray) -> np.ndarray:
    centred = X - X.mean(0, dtype=np.float64).astype(X.dtype)
    return centred.T @ centred / len(X)


def numpy_product(n: int, d: int, dtype: type = np.float32) -> Run:
    X = rows(n, d).astype(dtype, copy=False)
    return lambda: centred_product(X)


def numpy_cov(n: int, d: int) -> Run:
    X = rows(n, d)
    return lambda: np.cov(X, rowvar=False, ddof=0, dtype=np.float32)


def sklearn_covariance(n: int, d: int) -> Run:
    from sklearn.covariance import EmpiricalCovariance

    X = rows(n, d)
    model = EmpiricalCovariance(store_precision=False)
    return lambda: model.fit(X).covariance_
