"""The minimiser on functions whose minimum is known."""

from __future__ import annotations

import pytest
import torch

from pyfeat.heads._lbfgs import minimize

EPS = torch.finfo(torch.float64).eps


def run(objective, start, *, precondition=lambda g, _: g, tol=1e-9, max_iter=500):
    return minimize(
        lambda x: (*objective(x), x),
        torch.tensor(start, dtype=torch.float64),
        precondition=precondition,
        error=lambda g, _: float(g.abs().max()),
        tol=tol,
        max_iter=max_iter,
        noise=EPS,
    )


def quadratic(spectrum):
    h = torch.tensor(spectrum, dtype=torch.float64)

    def objective(x):
        return float(0.5 * (h * x * x).sum()), h * x

    return objective


def test_finds_the_minimum_of_a_quadratic():
    assert run(quadratic([1.0, 10.0, 1000.0]), [1.0, -2.0, 3.0]).x.abs().max() < 1e-9


def test_the_exact_inverse_hessian_needs_one_step():
    h = torch.tensor([1.0, 1e3, 1e6], dtype=torch.float64)
    found = run(quadratic(h.tolist()), [1.0, 1.0, 1.0], precondition=lambda g, _: g / h)
    assert (found.n_iter, found.converged) == (1, True)


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e3])
def test_finds_the_minimum_from_afar(start):
    def objective(x):  # log cosh: flat far away, curved at 0
        return float((torch.logaddexp(x, -x)).sum()), torch.tanh(x)

    assert run(objective, [start, -start]).x.abs().max() < 1e-9


def test_a_step_that_is_far_too_long_is_cut():
    found = run(quadratic([1.0]), [1.0], precondition=lambda g, _: 1e6 * g)
    assert found.converged


def test_a_step_that_is_far_too_short_is_stretched():
    found = run(quadratic([1.0]), [1.0], precondition=lambda g, _: 1e-6 * g, max_iter=10)
    assert found.converged


def test_never_rises():
    values = []

    def objective(x):
        value = float(torch.exp(x).sum() + torch.exp(-2 * x).sum())
        values.append(value)
        return value, torch.exp(x) - 2 * torch.exp(-2 * x)

    found = run(objective, [3.0, -4.0])
    assert found.value <= min(values) * (1 + EPS)


def test_out_of_steps_is_not_converged():
    found = run(quadratic([1.0, 1e4]), [1.0, 1.0], max_iter=2)
    assert (found.n_iter, found.converged) == (2, False)


def test_a_tolerance_below_rounding_still_ends():
    def objective(x):
        return float((torch.logaddexp(x - 1, 1 - x)).sum()) + 1e3, torch.tanh(x - 1)

    assert run(objective, [0.3], tol=0.0, max_iter=100).x.item() == pytest.approx(1.0)
