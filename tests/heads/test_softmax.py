"""The objective against autograd in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyfeat.heads._softmax import Problem, curvature, objective


def problem(rng, k, *, dtype=np.float64, fit_intercept=True, n=60, d=4):
    weights = torch.from_numpy(rng.random(n).astype(dtype))
    return Problem(
        X=(rng.standard_normal((n, d)) + 2.0).astype(dtype),
        labels=torch.from_numpy(rng.integers(k, size=n)),
        weights=weights / weights.sum(),
        outputs=1 if k == 2 else k,
        l2=0.3,
        fit_intercept=fit_intercept,
    )


def plain_loss(p: Problem, theta: torch.Tensor) -> torch.Tensor:
    """Return the objective as it is written in a textbook."""
    z = torch.from_numpy(p.X) @ theta[:, :-1].T + theta[:, -1]
    if p.outputs == 1:
        z = torch.cat([torch.zeros_like(z), z], dim=1)
    losses = torch.nn.functional.cross_entropy(z, p.labels, reduction="none")
    return (p.weights * losses).sum() + 0.5 * p.l2 * theta[:, :-1].square().sum()


class Copies(TorchDispatchMode):
    """How many copies torch makes of as many numbers as given."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.count = numbers, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.clone.default:
            self.count += result.numel() == self.numbers
        return result


@pytest.mark.parametrize("as_rows", [np.asfortranarray, lambda X: torch.from_numpy(X.T.copy()).T])
def test_a_pass_copies_no_rows_that_lie_across(rng, as_rows):
    # Bug: rows as pandas keeps them were copied whole for every evaluation.
    p = problem(rng, 3, dtype=np.float32)
    evaluate = objective(p._replace(X=as_rows(p.X)), torch.zeros(4, dtype=torch.float64))
    with Copies(p.X.size) as copies:
        evaluate(random_theta(rng, p))
    assert copies.count == 0


def random_theta(rng, p: Problem) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((p.outputs, p.X.shape[1] + 1)))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_value_is_the_textbook_loss(rng, k):
    p = problem(rng, k)
    theta = random_theta(rng, p)
    value, _, _ = objective(p, torch.zeros(4, dtype=torch.float64))(theta)
    assert value == pytest.approx(float(plain_loss(p, theta)), rel=60 * np.finfo(float).eps)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_gradient_is_that_of_autograd(rng, k):
    p = problem(rng, k)
    theta = random_theta(rng, p).requires_grad_()
    plain_loss(p, theta).backward()
    _, gradient, _ = objective(p, torch.zeros(4, dtype=torch.float64))(theta.detach())
    torch.testing.assert_close(gradient, theta.grad, rtol=0, atol=600 * np.finfo(float).eps)


@pytest.mark.parametrize("k", [2, 4])
def test_spread_is_the_diagonal_of_the_hessian_in_the_intercepts(rng, k):
    p = problem(rng, k)
    theta = random_theta(rng, p)
    hessian = torch.autograd.functional.hessian(lambda t: plain_loss(p, t), theta)
    _, _, spread = objective(p, torch.zeros(4, dtype=torch.float64))(theta)
    diagonal = torch.stack([hessian[c, -1, c, -1] for c in range(p.outputs)])
    torch.testing.assert_close(spread, diagonal, rtol=0, atol=60 * np.finfo(float).eps)


def test_centring_is_the_same_function_of_another_intercept(rng):
    p = problem(rng, 3)
    theta = random_theta(rng, p)
    centre = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    moved = theta.clone()
    moved[:, -1] += theta[:, :-1] @ centre
    value, _, _ = objective(p, centre)(moved)
    assert value == pytest.approx(float(plain_loss(p, theta)), rel=1e3 * np.finfo(float).eps)


@pytest.mark.parametrize("k", [2, 4])
def test_float32_rows_lose_no_more_than_float32(rng, k):
    p = problem(rng, k, dtype=np.float32)
    exact = p._replace(X=p.X.astype(np.float64), weights=p.weights.double())
    theta = random_theta(rng, p)
    value, _, _ = objective(p, torch.zeros(4, dtype=torch.float64))(theta)
    assert value == pytest.approx(
        float(plain_loss(exact, theta)), rel=60 * float(np.finfo(np.float32).eps)
    )


def test_blocks_add_up_to_the_whole(rng, monkeypatch):
    p = problem(rng, 3, n=1000)
    theta = random_theta(rng, p)
    monkeypatch.setattr("pyfeat._tensors.BLOCK_BYTES", {"cpu": 0})
    value, _, _ = objective(p, torch.zeros(4, dtype=torch.float64))(theta)
    assert value == pytest.approx(float(plain_loss(p, theta)), rel=1e3 * np.finfo(float).eps)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_curvature_is_exact_for_two_classes_at_zero(rng, fit_intercept):
    p = problem(rng, 2, fit_intercept=fit_intercept)
    p = p._replace(weights=torch.full_like(p.weights, 1 / len(p.weights)))
    guess = curvature(p)
    shifted = p._replace(X=p.X - guess.centre.numpy())
    zero = torch.zeros((1, 5), dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda t: plain_loss(shifted, t), zero)[0, :, 0]
    if not fit_intercept:
        hessian[-1, :-1] = hessian[:-1, -1] = 0.0  # the intercept is held fixed
    step = torch.from_numpy(rng.standard_normal((1, 5)))
    back = guess.apply_inverse(step @ hessian, torch.tensor([0.25], dtype=torch.float64))
    torch.testing.assert_close(back, step, rtol=0, atol=1e3 * np.finfo(float).eps)


def test_steps_leave_the_sum_over_classes_alone(rng):
    p = problem(rng, 4)
    gradient = random_theta(rng, p)
    step = curvature(p).apply_inverse(gradient, torch.full((4,), 0.2, dtype=torch.float64))
    assert step.sum(dim=0).abs().max() < 1e2 * np.finfo(float).eps


@pytest.mark.parametrize("columns", [0, 512], ids=["diagonal", "full"])
def test_score_change_is_what_the_step_does_to_the_rows(rng, monkeypatch, columns):
    monkeypatch.setattr("pyfeat.heads._softmax.FULL_CURVATURE_COLUMNS", columns)
    monkeypatch.setattr("pyfeat.heads._softmax.FULL_CURVATURE_RATIO", 0)
    p = problem(rng, 4)
    # Columns without correlation: the diagonal is then all there is.
    X = np.linalg.qr(p.X - p.X.mean(axis=0))[0] * np.array([1.0, 3.0, 10.0, 30.0])
    p = p._replace(X=X + 2.0, weights=torch.full_like(p.weights, 1 / 60))
    guess, spread = curvature(p), torch.full((4,), 0.2, dtype=torch.float64)
    gradient = random_theta(rng, p)
    step = guess.apply_inverse(gradient, spread)
    scores = torch.from_numpy(X) @ step[:, :-1].T + step[:, -1]
    expected = float(scores.square().mean(dim=0).sqrt().max())
    assert guess.score_change(gradient, spread) == pytest.approx(
        expected, rel=1e3 * np.finfo(float).eps
    )
