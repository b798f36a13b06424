"""The objective of multinomial logistic regression, its gradient, and a guess of its curvature."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyfeat._eigh import symmetric_eigh
from pyfeat._rows import is_stream
from pyfeat._tensors import Rows, block_rows, tensor_blocks, working_dtype
from pyfeat.heads._lbfgs import Minimum, Objective, minimize
from pyfeat.ops import StoredRows, moments, softmax_xent

# Rows that the covariance is estimated from: it only preconditions, a rough one will do.
SAMPLED_ROWS_PER_COLUMN = 8
SAMPLED_ROWS_AT_LEAST = 4096
# Eigenvectors cost about d^3 and save dozens of passes over n * d * outputs numbers.
FULL_CURVATURE_RATIO = 20
# So few columns that their eigenvectors cost next to nothing.
FULL_CURVATURE_COLUMNS = 512
# A class without weight still needs a finite first intercept.
SMALLEST_SHARE = 1e-6
# Where every row is certain, the guess must stay invertible.
SMALLEST_SPREAD = 1e-6


class Problem(NamedTuple):
    """What is minimised: mean_i w_i loss_i + l2 / 2 ||W||^2 over theta = [W | b].

    Attributes
    ----------
    X : ndarray, Tensor or RowStream of shape (n, d)
    labels : Tensor of shape (n,), int64
    weights : Tensor of shape (n,)
        Not negative, sum 1, working dtype of X.
    outputs : int
        1 for two classes (the logistic loss), else the number of classes (softmax).
    l2 : float
    fit_intercept : bool
    """

    X: Rows
    labels: Tensor
    weights: Tensor
    outputs: int
    l2: float
    fit_intercept: bool


def solve(problem: Problem, *, tol: float, max_iter: int) -> Minimum:
    """Return theta = [W | b], float64 of shape (outputs, d + 1), at the minimum of the objective.

    Parameters
    ----------
    problem : Problem
    tol : float
        Stop when `Curvature.score_change` is at most this.
    max_iter : int
    """
    d = problem.X.shape[1]
    guess = curvature(problem)
    found = minimize(
        objective(problem, guess.centre),
        _start(problem),
        precondition=guess.apply_inverse,
        error=guess.score_change,
        tol=tol,
        max_iter=max_iter,
        noise=torch.finfo(working_dtype(problem.X)).eps,
    )
    found.x[:, d] -= found.x[:, :d] @ guess.centre
    return found


def _start(problem: Problem) -> Tensor:
    """Return W = 0 with the intercepts that are best there."""
    k, d = problem.outputs, problem.X.shape[1]
    theta = torch.zeros((k, d + 1), dtype=torch.float64, device=problem.labels.device)
    if problem.fit_intercept:
        share = torch.bincount(problem.labels, problem.weights.double(), minlength=max(k, 2))
        logs = share.clamp(min=SMALLEST_SHARE).log()
        theta[:, d] = logs[1:] - logs[:1] if k == 1 else logs - logs.mean()
    return theta


def objective(problem: Problem, centre: Tensor) -> Objective:
    """Return the function to minimise, for rows that are centred as they are read.

    Parameters
    ----------
    problem : Problem
    centre : Tensor of shape (d,), float64
        Subtracted from every row; only the intercept notices.

    Returns
    -------
    objective : callable
        Takes theta, float64 of shape (outputs, d + 1), the last column the intercepts. Returns
        the value, the gradient, and the mean of p_c (1 - p_c) for `Curvature.apply_inverse`.

    Notes
    -----
    See `softmax_xent`, which an array or tensor is handed to whole, a stream block by block.
    """
    X, d = _row_after_row(problem.X), problem.X.shape[1]

    def evaluate(theta: Tensor) -> tuple[float, Tensor, Tensor]:
        low = theta[None]
        loss = 0.5 * problem.l2 * float(theta[:, :d].square().sum())
        gradient = theta * problem.l2
        gradient[:, d] = 0.0
        spread = torch.zeros_like(theta[:, 0])
        for positions, rows in _parts(X):
            labels, weights = problem.labels[positions], problem.weights[positions]
            part = softmax_xent(StoredRows(rows, shift=centre), labels, low, weights=weights)
            loss += float(part.loss[0])
            gradient += part.gradient[0]
            spread += part.spread[0]
        if not problem.fit_intercept:
            gradient[:, d] = 0.0
        return loss, gradient, spread

    return evaluate


def _row_after_row(X: Rows) -> Rows:
    """Return X, copied if its rows lie apart or across: else every pass would copy it."""
    if isinstance(X, Tensor):
        return X.contiguous()
    return X if is_stream(X) else np.ascontiguousarray(X)


def _parts(X: Rows) -> Iterable[tuple[slice | Tensor, Any]]:
    return tensor_blocks(X, block_rows(X)) if is_stream(X) else [(slice(None), X)]


class Curvature(NamedTuple):
    """A guess of the Hessian: per output c, h_c Cov + l2 I for W and h_c for b.

    Attributes
    ----------
    centre : Tensor of shape (d,)
        Mean of the rows, or 0 when there is no intercept to take it up.
    spectrum : Tensor of shape (d,)
        Eigenvalues of Cov, or its diagonal.
    basis : Tensor of shape (d, d) or None
        Eigenvectors of Cov in columns.
    l2 : float
    """

    centre: Tensor
    spectrum: Tensor
    basis: Tensor | None
    l2: float

    def apply_inverse(self, gradient: Tensor, spread: Tensor) -> Tensor:
        """Return the step that the inverse of the guess makes of a gradient (outputs, d + 1).

        Parameters
        ----------
        gradient : Tensor of shape (outputs, d + 1)
        spread : Tensor of shape (outputs,)
            h, the mean of p_c (1 - p_c) over the rows.
        """
        step = self._step(gradient, spread)
        if self.basis is None:
            return step
        return torch.cat([step[:, :-1] @ self.basis.T, step[:, -1:]], dim=1)

    def score_change(self, gradient: Tensor, spread: Tensor) -> float:
        """Return by how much the step of `apply_inverse` moves the scores of a row.

        Notes
        -----
        The largest root mean square over the rows that an output has:
        max_c sqrt(dw_c^T Cov dw_c + db_c^2).
        """
        step = self._step(gradient, spread)
        squares = (self.spectrum * step[:, :-1].square()).sum(dim=1) + step[:, -1].square()
        return float(squares.amax().sqrt())

    def _step(self, gradient: Tensor, spread: Tensor) -> Tensor:
        """Return the step in the coordinates of the basis."""
        h = spread[:, None].clamp(min=SMALLEST_SPREAD)
        weight, intercept = gradient[:, :-1], gradient[:, -1:]
        if self.basis is not None:
            weight = weight @ self.basis
        step = torch.cat([weight / (h * self.spectrum + self.l2), intercept / h], dim=1)
        # Adding one vector to every class changes no probability: such steps are left out.
        return step if len(step) == 1 else step - step.mean(dim=0)


def curvature(problem: Problem) -> Curvature:
    """Return a guess of the Hessian of the objective.

    Notes
    -----
    The Hessian is sum_i w_i (diag(p_i) - p_i p_i^T) x x_i x_i^T + l2 I. Kept are its class blocks,
    with the average of p (1 - p) in place of that of each row. Where d^3 would cost more than it
    saves, Cov is cut down to its diagonal.
    """
    n, d = problem.X.shape
    full = d <= FULL_CURVATURE_COLUMNS or d * d <= FULL_CURVATURE_RATIO * n * problem.outputs
    found = moments(problem.X, _sampled(problem.weights, d), diagonal=not full)
    mean, second = torch.as_tensor(found.mean), torch.as_tensor(found.covariance())
    if not problem.fit_intercept:
        second = second + (torch.outer(mean, mean) if full else mean * mean)
        mean = torch.zeros_like(mean)
    spectrum, basis = symmetric_eigh(second) if full else (second, None)
    # Directions without spread have no gradient either: they only must not divide by 0.
    least = float(spectrum.amax()) * torch.finfo(torch.float64).eps * d
    spectrum = spectrum.clamp(min=max(least, torch.finfo(torch.float64).tiny))
    return Curvature(mean, spectrum, basis, problem.l2)


def _sampled(weights: Tensor, d: int) -> Tensor:
    """Return the weights with all but a sample of them set to 0."""
    wanted = max(SAMPLED_ROWS_AT_LEAST, SAMPLED_ROWS_PER_COLUMN * d)
    keep = wanted / max(int(weights.count_nonzero()), 1)
    if keep >= 1.0:
        return weights
    # A fixed seed: the same rows give the same answer on every run.
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(len(weights), generator=generator) < keep
    return weights * chosen.to(weights.device)
