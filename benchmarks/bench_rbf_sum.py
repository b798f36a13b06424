"""MMD^2 of two samples of n = m rows: the value, and the value with both gradients.

Ours takes each of X,X / X,Y / Y,Y in one call; torch walks over blocks of rows, the products by
`addmm`, the gradient by autograd block after block: what a careful user writes. The
truth is torch's own in float64.
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
from sklearn.metrics.pairwise import rbf_kernel

from pyfeat import _core
from pyfeat._config import num_threads
from pyfeat.ops import Gaussian, rbf_sum

BLOCK = 1024
BOUND = 1e-5
TORCH_BOUND = 1e-3  # uncentred float32: it races with what it has
SIGNS = ((0, 0, 1), (1, 1, 1), (0, 1, -2))

Run = Callable[[], Any]


def cases(quick: bool) -> Iterator[Case]:
    n, d = (1000, 64) if quick else (8000, 256)
    for where in device.devices():
        for count in (1, 5):
            gammas = tuple(2.0 ** (i - count // 2) / (2 * d) for i in range(count))
            samples = make(n, d, where)
            truth = tuple(t.double() for t in samples)
            for gradient in (False, True):
                yield Case(
                    name=f"{where} {n} x {d}, {count} bandwidths"
                    + (", gradient" if gradient else ""),
                    contestants=list(contestants(samples, gammas, gradient)),
                    expected=partial(by_torch_gradient if gradient else by_torch, truth, gammas),
                    error=relative_error,
                    unit="relative error",
                    flop=2 * d * n * (2 * n + 1) * (3 if gradient else 1),
                    threads=num_threads(),
                    torch_threads=num_threads(),
                    device=where,
                )


def make(n: int, d: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    X, Y = torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator) + 0.1
    return X.to(device), Y.to(device)


def relative_error(result: Any, expected: Any) -> float:
    """Return the worst of the results: the three sums, then the gradients."""
    pairs = zip(result, expected, strict=True)
    return max(
        float((torch.as_tensor(a).double().cpu() - b.cpu()).abs().max() / b.abs().max().cpu())
        for a, b in pairs
    )


def contestants(
    samples: tuple[torch.Tensor, ...], gammas: tuple[float, ...], gradient: bool
) -> Iterator[Contestant]:
    plain = by_torch_gradient if gradient else by_torch
    if samples[0].is_cuda:
        for name in ("cuda", "triton"):
            run = partial(ours, samples, gammas, gradient, name)
            yield Contestant(f"pyfeat {name}", waited(run), BOUND)
        yield Contestant("torch, blocks", waited(partial(plain, samples, gammas)), TORCH_BOUND)
    else:
        for isa in _core.isas()[:3]:  # generic takes ten times as long
            yield Contestant(f"pyfeat cpp[{isa}]", on_isa(isa, samples, gammas, gradient), BOUND)
        yield Contestant("torch, blocks", partial(plain, samples, gammas), TORCH_BOUND)
        at = (*samples[0].shape, gammas, gradient)
        run = elsewhere("bench_rbf_sum:torch_alone", tuned_malloc(num_threads()), *at)
        yield Contestant("torch, blocks, tuned malloc", run, TORCH_BOUND)
        if not gradient:
            run = partial(by_scikit_learn, samples, gammas)
            yield Contestant("scikit-learn, blocks", run, TORCH_BOUND)
    if not gradient:
        run = partial(plain, samples, gammas, torch.compile(block_sum))
        yield Contestant("torch.compile, blocks", waited(run), TORCH_BOUND)


def waited(run: Run) -> Run:
    def run_and_wait() -> Any:
        result = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return run_and_wait


def on_isa(isa: str, *arguments: Any) -> Run:
    def run() -> Any:
        _core.set_isa(isa)
        return ours(*arguments, "cpp")

    return run


def ours(
    samples: tuple[torch.Tensor, ...], gammas: tuple[float, ...], gradient: bool, backend: str
) -> tuple[torch.Tensor, ...]:
    X, Y = samples
    how = {
        "kernel": Gaussian(gammas),
        "gradient": "rows" if gradient else None,
        "backend": backend,
    }
    a, b, c = rbf_sum(X, **how), rbf_sum(Y, **how), rbf_sum(X, Y, **how)
    values = a.value, b.value, c.value
    if not gradient:
        return values
    return *values, a.x_gradient - 2 * c.x_gradient, b.x_gradient - 2 * c.y_gradient


def block_sum(rows: torch.Tensor, Y: torch.Tensor, gammas: tuple[float, ...]) -> torch.Tensor:
    squared = torch.addmm(Y.square().sum(1)[None], rows, Y.T, alpha=-2)
    squared = (squared + rows.square().sum(1, keepdim=True)).clamp(min=0)
    return sum(torch.exp(-gamma * squared).sum(dtype=torch.float64) for gamma in gammas)


def by_torch(
    samples: tuple[torch.Tensor, ...], gammas: tuple[float, ...], one: Any = block_sum
) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.stack([one(rows, samples[j], gammas) for rows in samples[i].split(BLOCK)]).sum()
        for i, j, _ in SIGNS
    )


def by_torch_gradient(
    samples: tuple[torch.Tensor, ...], gammas: tuple[float, ...]
) -> tuple[torch.Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in samples]
    values = []
    for i, j, sign in SIGNS:
        value = torch.zeros((), dtype=torch.float64, device=leaves[i].device)
        for first in range(0, len(leaves[i]), BLOCK):
            part = block_sum(leaves[i][first : first + BLOCK], leaves[j], gammas)
            (sign * part).backward()
            value += part.detach()
        values.append(value)
    return *values, *(leaf.grad for leaf in leaves)


def torch_alone(n: int, d: int, gammas: tuple[float, ...], gradient: bool) -> Run:
    return partial(by_torch_gradient if gradient else by_torch, make(n, d, "cpu"), gammas)


def by_scikit_learn(
    samples: tuple[torch.Tensor, ...], gammas: tuple[float, ...]
) -> tuple[float, ...]:
    arrays = [t.numpy() for t in samples]
    return tuple(
        sum(
            float(rbf_kernel(rows, arrays[j], gamma).sum(dtype=np.float64))
            for rows in np.array_split(arrays[i], max(1, len(arrays[i]) // BLOCK))
            for gamma in gammas
        )
        for i, j, _ in SIGNS
    )
