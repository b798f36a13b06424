"""Limited-memory BFGS for smooth convex functions, with a preconditioner."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# x -> value, gradient, and what the preconditioner should know of the curvature at x.
Objective = Callable[[Tensor], tuple[float, Tensor, Tensor]]
Precondition = Callable[[Tensor, Tensor], Tensor]

SUFFICIENT_DECREASE = 0.1  # delta of [1]
CURVATURE = 0.9  # sigma of [1]
MAX_TRIALS = 20
MAX_GROWTH = 5.0  # how far one trial step may go beyond the last
# Steps without a smaller error before what is left is taken for rounding.
STALLED_STEPS = 10


class Minimum(NamedTuple):
    """Where `minimize` stopped.

    Attributes
    ----------
    x : Tensor
    value : float
    n_iter : int
        Steps taken.
    converged : bool
        Whether the error became as small as asked for, or as small as rounding lets it be.
    """

    x: Tensor
    value: float
    n_iter: int
    converged: bool


class _Point(NamedTuple):
    step: float
    x: Tensor
    value: float
    gradient: Tensor
    hint: Tensor
    slope: float


def minimize(
    objective: Objective,
    start: Tensor,
    *,
    precondition: Precondition,
    error: Callable[[Tensor, Tensor], float],
    tol: float,
    max_iter: int,
    noise: float,
    memory: int = 10,
) -> Minimum:
    """Minimise a smooth convex function.

    Parameters
    ----------
    objective : callable
        Takes x, returns the value, the gradient and a hint for `precondition`.
    start : Tensor, float64
        First x. Not changed.
    precondition : callable
        Takes a gradient and the hint of the newest x, returns the step that a rough inverse
        Hessian makes of it. Must be symmetric and positive definite where gradients lie.
    error : callable
        Takes a gradient and the hint of its x, returns the number that `tol` bounds.
    tol : float
        Stop when the error is this small.
    max_iter : int
        Most steps to take.
    noise : float
        Relative rounding error of a value; differences below it are not trusted.
    memory : int, default=10
        Pairs of steps and gradient changes to remember.

    Returns
    -------
    minimum : Minimum

    Notes
    -----
    Two-loop recursion with H_0 = gamma P, gamma = s'y / y'Py of the newest pair [2]_.

    A step that promises less than the rounding of the value may still lower the error, because
    gradients carry more digits than values do. Only when ten such steps in a row do not, the best
    point so far is returned as converged.

    References
    ----------
    .. [1] Hager, Zhang. A new conjugate gradient method with guaranteed descent and an efficient
       line search. SIAM J. Optim. 16(1), 2005.
    .. [2] Nocedal, Wright. Numerical Optimization, 2nd edition, algorithm 7.4.
    """
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=memory)
    here = best = _Point(0.0, start, *objective(start), 0.0)
    least, stalled = float("inf"), 0
    for n_iter in range(max_iter):
        size = error(here.gradient, here.hint)
        if size <= tol:
            return Minimum(here.x, here.value, n_iter, True)
        direction = _direction(here, pairs, precondition)
        here = here._replace(step=0.0, slope=_dot(here.gradient, direction))
        below_rounding = -here.slope <= noise * max(abs(here.value), 1.0)
        stalled = stalled + 1 if below_rounding and size >= least else 0
        if size < least:
            least, best = size, here
        if stalled == STALLED_STEPS:
            return Minimum(best.x, best.value, n_iter, True)
        there = _line_search(objective, here, direction, noise)
        if there is None:
            # No step along a descent direction lowers the value: what is left is rounding.
            return Minimum(here.x, here.value, n_iter, below_rounding)
        s, y = there.x - here.x, there.gradient - here.gradient
        if (sy := _dot(s, y)) > 0.0:
            pairs.append((s, y, 1.0 / sy))
        here = there
    converged = error(here.gradient, here.hint) <= tol
    return Minimum(here.x, here.value, max_iter, converged)


def _direction(
    here: _Point, pairs: deque[tuple[Tensor, Tensor, float]], precondition: Precondition
) -> Tensor:
    q = -here.gradient
    along = []
    for s, y, rho in reversed(pairs):
        along.append(rho * _dot(s, q))
        q = q - along[-1] * y
    q = precondition(q, here.hint)
    if pairs:
        _, y, rho = pairs[-1]
        q = q / (rho * _dot(y, precondition(y, here.hint)))
    for (s, y, rho), a in zip(pairs, reversed(along), strict=True):
        q = q + (a - rho * _dot(y, q)) * s
    return q


def _line_search(
    objective: Objective, here: _Point, direction: Tensor, noise: float
) -> _Point | None:
    """Return a point that meets the (approximate) Wolfe conditions of [1], or None.

    The slope of a convex function only grows along a line, so its sign says on which side of the
    minimum a trial lies, and a secant through two slopes proposes the next.
    """
    low, high = here, None
    step = 1.0
    floor = noise * max(abs(here.value), 1.0)
    for _ in range(MAX_TRIALS):
        x = here.x + step * direction
        value, gradient, hint = objective(x)
        trial = _Point(step, x, value, gradient, hint, _dot(gradient, direction))
        if _too_long(here, trial, floor):
            high = trial
        elif trial.slope < CURVATURE * here.slope:
            low = trial
        else:
            return trial
        step = _next_step(low, high)
    return low if low.step > 0.0 else None


def _too_long(here: _Point, trial: _Point, floor: float) -> bool:
    rise = trial.value - here.value
    decreases = rise <= SUFFICIENT_DECREASE * trial.step * here.slope
    # Near the minimum values differ by rounding alone; slopes still tell.
    decreases_by_slope = trial.slope <= (2 * SUFFICIENT_DECREASE - 1) * here.slope and rise <= floor
    return not (decreases or decreases_by_slope)


def _next_step(low: _Point, high: _Point | None) -> float:
    if high is None:
        return max(low.step, 1.0) * MAX_GROWTH
    width = high.step - low.step
    if not high.slope > 0.0:  # overflow, or rounding
        return low.step + 0.1 * width
    secant = low.slope / (low.slope - high.slope)
    return low.step + width * min(max(secant, 0.1), 0.9)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))
