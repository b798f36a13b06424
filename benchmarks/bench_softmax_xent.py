"""Loss and gradient of multinomial logistic regression, for one strength and for ten at once.

torch evaluates ten strengths one after another, as a solver does, or as one wide product. Its rows
are cut into blocks that stay in the cache, or not, and products run with and without bfloat16:
every setting is a contestant. The error is that of the gradient, against float64.
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
from pyfeat.ops import softmax_xent

SIZES = ((50_000, 768, 100), (50_000, 768, 1))  # n, d, outputs
STRENGTHS = (1, 10)
BLOCK = 2048
ROUNDING = 1e-4  # of the largest entry of a gradient: float32 sums over all rows
BF16_ROUNDING = 3e-2  # residuals and rows hold 8 bits; errors of rows average out
Run = Callable[[], Any]


def cases(quick: bool) -> Iterator[Case]:
    for n, d, outputs in [(5_000, 768, 100)] if quick else SIZES:
        X, labels, theta = numbers(n, d, outputs, max(STRENGTHS))
        for problems in STRENGTHS:
            part = theta[:problems]
            for where in device.devices():
                yield case(X.to(where), labels.to(where), part.to(where))


def numbers(n: int, d: int, outputs: int, problems: int) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32)
    theta = rng.standard_normal((problems, outputs, d + 1), dtype=np.float32) * np.float32(0.05)
    labels = rng.integers(max(outputs, 2), size=n)
    return tuple(torch.from_numpy(part) for part in (X, labels, theta))


def case(X: torch.Tensor, labels: torch.Tensor, theta: torch.Tensor) -> Case:
    n, d = X.shape
    problems, outputs, _ = theta.shape
    entries = (ours_on_gpu if X.is_cuda else ours_on_cpu)(X, labels, theta)
    plural = "strength" if problems == 1 else "strengths at once"
    where = ", cuda" if X.is_cuda else ""
    return Case(
        name=f"{n} x {d}, {outputs} outputs, {problems} {plural}{where}",
        contestants=[*entries, *plain_torch(X, labels, theta), *scikit_learn(X, labels, theta)],
        expected=exact(X, labels, theta),
        error=relative,
        unit="largest difference over the largest entry of the gradient",
        items=n * problems,
        flop=4 * n * d * problems * outputs,
        threads=num_threads(),
        torch_threads=num_threads(),
        device=X.device.type,
    )


def relative(result: Any, expected: torch.Tensor) -> float:
    found = torch.as_tensor(result).double().cpu()
    return float((found - expected).abs().max() / expected.abs().max())


def exact(X: torch.Tensor, labels: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    found = softmax_xent(X.double(), labels, theta.double(), backend="reference")
    return found.gradient.cpu()


def ours_on_cpu(X: torch.Tensor, labels: torch.Tensor, theta: torch.Tensor) -> list[Contestant]:
    def run(isa: str, products: str) -> Run:
        def evaluate() -> torch.Tensor:
            _core.set_isa(isa)
            return softmax_xent(X, labels, theta, products=products, backend="cpp").gradient

        return evaluate

    wanted = [
        isa for isa in dict.fromkeys([_core.isas()[0], "avx512", "avx2"]) if isa in _core.isas()
    ]
    best = wanted[0]
    return [
        *(Contestant(f"pyfeat cpp[{isa}]", run(isa, "float32"), ROUNDING) for isa in wanted),
        Contestant(f"pyfeat cpp[{best}], bfloat16", run(best, "bfloat16"), BF16_ROUNDING),
    ]


def ours_on_gpu(X: torch.Tensor, labels: torch.Tensor, theta: torch.Tensor) -> list[Contestant]:
    def run(products: str, backend: str) -> Run:
        return waiting(
            lambda: softmax_xent(X, labels, theta, products=products, backend=backend).gradient
        )

    return [
        Contestant("pyfeat triton", run("float32", "triton"), ROUNDING),
        Contestant("pyfeat triton, bfloat16", run("bfloat16", "triton"), BF16_ROUNDING),
        Contestant("pyfeat reference", run("float32", "reference"), ROUNDING),
    ]


def waiting(run: Run) -> Run:
    def evaluate() -> Any:
        result = run()
        torch.cuda.synchronize()
        return result

    return evaluate


def evaluate_in_torch(
    X: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of losses and the gradient (outputs, d + 1) of one problem."""
    z = torch.addmm(bias, X, weight.T)
    if z.shape[1] == 1:
        y = labels.to(z.dtype)[:, None]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum")
        z = z.sigmoid() - y
    else:
        lse = z.logsumexp(dim=1, keepdim=True)
        loss = (lse - z.gather(1, labels[:, None])).sum()
        z = (z - lse).exp()
        z = z.scatter_add(1, labels[:, None], torch.full_like(lse, -1.0))
    return loss, torch.cat([z.T @ X, z.sum(dim=0)[:, None]], dim=1)


def one_by_one(
    X: torch.Tensor,
    labels: torch.Tensor,
    theta: torch.Tensor,
    block: int,
    evaluate: Callable[..., Any] = evaluate_in_torch,
) -> torch.Tensor:
    """Return the gradient of one problem after another, each summed over blocks of rows."""
    gradient = torch.zeros_like(theta)
    for p in range(len(theta)):
        weight, bias = theta[p, :, :-1].contiguous(), theta[p, :, -1].contiguous()
        for at in range(0, len(X), block):
            rows, known = X[at : at + block], labels[at : at + block]
            gradient[p] += evaluate(rows, known, weight, bias)[1]
    return gradient / len(X)


def torch_alone(n: int, d: int, outputs: int, problems: int, block: int) -> Run:
    X, labels, theta = numbers(n, d, outputs, max(STRENGTHS))
    return partial(one_by_one, X, labels, theta[:problems], block)


def plain_torch(X: torch.Tensor, labels: torch.Tensor, theta: torch.Tensor) -> list[Contestant]:
    n = len(X)
    entries = []
    for name, block in (("torch", n), (f"torch, blocks of {BLOCK}", BLOCK)):
        run = partial(one_by_one, X, labels, theta, block)
        entries.append(Contestant(name, waiting(run) if X.is_cuda else run, ROUNDING))
        if not X.is_cuda:
            at = (*X.shape, theta.shape[1], len(theta), block)
            alone = elsewhere("bench_softmax_xent:torch_alone", tuned_malloc(num_threads()), *at)
            entries.append(Contestant(f"{name}, tuned malloc", alone, ROUNDING))
    compiled = torch.compile(evaluate_in_torch, dynamic=False)
    run = partial(one_by_one, X, labels, theta, n, compiled)
    try:
        run()
    except (RuntimeError, OSError) as error:  # what torch raises without a C++ compiler
        lines = str(error).strip().splitlines() or [""]
        return [*entries, Contestant("torch.compile", skip=f"cannot compile: {lines[0]}")]
    run = waiting(run) if X.is_cuda else run
    return [*entries, Contestant("torch.compile", run, ROUNDING)]


def scikit_learn(X: torch.Tensor, labels: torch.Tensor, theta: torch.Tensor) -> list[Contestant]:
    if X.is_cuda or theta.shape[1] == 1:
        return []
    from sklearn._loss import HalfMultinomialLoss
    from sklearn.linear_model._linear_loss import LinearModelLoss

    loss = LinearModelLoss(
        base_loss=HalfMultinomialLoss(n_classes=theta.shape[1]), fit_intercept=True
    )
    rows, known = X.numpy(), labels.numpy().astype(np.float32)
    starts = [np.asfortranarray(part.numpy()) for part in theta]

    def run() -> np.ndarray:
        found = [
            loss.loss_gradient(start, rows, known, n_threads=num_threads())[1] for start in starts
        ]
        return np.stack(
            [
                np.asarray(part).reshape(start.shape)
                for part, start in zip(found, starts, strict=True)
            ]
        )

    return [Contestant("scikit-learn LinearModelLoss", run, ROUNDING)]
