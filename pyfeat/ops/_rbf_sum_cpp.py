"""`rbf_sum` on the CPU: what the native module is told, and the room it writes to."""

from __future__ import annotations

import torch
from torch import Tensor

from pyfeat._config import num_threads
from pyfeat.ops._rbf_sum_device import parameters
from pyfeat.ops._rbf_sum_kernels import Gaussian, Laplacian, Linear, PairKernel, Polynomial
from pyfeat.ops._rbf_sum_linear import linear
from pyfeat.ops._rbf_sum_reference import Sums, centre_of

_WANTED = {None: 0, "weights": 1, "rows": 2}  # enum Wanted


class _Side:
    """Rows, weights and results of one side, alive as long as their addresses are in use."""

    def __init__(self, rows: Tensor, weights: Tensor, gradient: str | None) -> None:
        self.rows, self.weights = rows.contiguous(), weights.contiguous()
        self.sums = self.gradient = None
        if gradient is not None:
            self.sums = torch.zeros(len(rows), dtype=torch.float64)
        if gradient == "rows":
            self.gradient = torch.zeros_like(self.rows)

    def addresses(self) -> tuple[int, int, int, int, int]:
        sums, gradient = (0 if t is None else t.data_ptr() for t in (self.sums, self.gradient))
        return self.rows.data_ptr(), self.weights.data_ptr(), sums, gradient, len(self.rows)


def cpp(
    X: Tensor,
    Y: Tensor | None,
    kernel: PairKernel,
    x_weights: Tensor,
    y_weights: Tensor | None,
    gradient: str | None,
    diagonal: bool,
) -> Sums:
    """Compute `rbf_sum` with the native module."""
    if isinstance(kernel, Linear):
        return linear(X, Y, x_weights, y_weights, gradient, diagonal)
    x = _Side(X, x_weights, gradient)
    y = None if Y is None or y_weights is None else _Side(Y, y_weights, gradient)
    value = 0.0
    if all(len(side.rows) for side in (x, y) if side is not None):
        value = _run(x, y, kernel, gradient, diagonal)
    of_y = (None, None) if y is None else (y.sums, y.gradient)
    scalar = torch.tensor(value, dtype=torch.float64)
    return Sums(scalar, x.sums, of_y[0], x.gradient, of_y[1])


def _run(
    x: _Side,
    y: _Side | None,
    kernel: Gaussian | Laplacian | Polynomial,
    gradient: str | None,
    diagonal: bool,
) -> float:
    from pyfeat._core import rbf_sum as run

    centre = None
    if isinstance(kernel, Gaussian):
        centre = centre_of(x.rows, None if y is None else y.rows).float()
    kind, gammas, coef0, degree = parameters(kernel)
    return run(
        x.addresses(),
        None if y is None else y.addresses(),
        d=x.rows.shape[1],
        centre=0 if centre is None else centre.data_ptr(),
        kind=kind,
        gammas=gammas,
        squarings=kernel.squarings() if isinstance(kernel, Gaussian) else [0],
        power=(coef0, degree),
        wanted=_WANTED[gradient],
        leave_out=not diagonal,
        threads=num_threads(),
    )
