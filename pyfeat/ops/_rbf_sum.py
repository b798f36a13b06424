"""Sums of a kernel over all pairs of rows, with gradients, without the matrix of pairs."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyfeat.ops._check import as_tensor, like, why_not_cpp, why_not_cuda, why_not_triton
from pyfeat.ops._dispatch import Backend, choose, never_refuses
from pyfeat.ops._rbf_sum_cpp import cpp
from pyfeat.ops._rbf_sum_device import CUDA, on_device
from pyfeat.ops._rbf_sum_kernels import (
    MOST_PARAMETER,
    Gaussian,
    Laplacian,
    PairKernel,
    Polynomial,
)
from pyfeat.ops._rbf_sum_reference import Sums, reference

Rows = np.ndarray[Any, Any] | Tensor
Gradient = Literal["weights", "rows"] | None
_MOST_ROWS = 2**21  # a grid has at most 65535 tiles across; int32 counts rows
_LEVELS = (None, "weights", "rows")


class RbfSum(NamedTuple):
    """Result of `rbf_sum`; what was not asked for is None.

    Attributes
    ----------
    value : float64 scalar
        Sum over i, j of x_weights[i] y_weights[j] k(x_i, y_j).
    x_sums : shape (n,)
        Sum over j of y_weights[j] k(x_i, y_j): the derivative of `value` with respect to
        `x_weights`; when Y is None, half of it.
    y_sums : shape (m,)
        Sum over i of x_weights[i] k(x_i, y_j); None when Y is None.
    x_gradient : shape (n, d)
        Derivative of `value` with respect to X; when Y is None, of both roles of X together.
    y_gradient : shape (m, d)
        Derivative with respect to Y; None when Y is None.
    """

    value: Any
    x_sums: Any = None
    y_sums: Any = None
    x_gradient: Any = None
    y_gradient: Any = None


def rbf_sum(
    X: Rows,
    Y: Rows | None = None,
    *,
    kernel: PairKernel,
    x_weights: Rows | None = None,
    y_weights: Rows | None = None,
    gradient: Gradient = None,
    diagonal: bool = True,
    backend: str | None = None,
) -> RbfSum:
    """Sum a kernel over all pairs of rows: what MMD, kernel mean matching and witnesses need.

    Parameters
    ----------
    X : ndarray or Tensor of shape (n, d), float32 or float64
        Rows. Not changed. Any strides; n and d may be 0.
    Y : ndarray or Tensor of shape (m, d), dtype and device of X, optional
        Rows of the other side; by default X itself, at half the work.
    kernel : Gaussian, Laplacian, Polynomial or Linear
        What is summed.
    x_weights, y_weights : ndarray or Tensor of shape (n,) and (m,), optional
        Weights, of any sign; by default 1. Taken in the dtype of X. `y_weights` needs Y.
    gradient : {None, "weights", "rows"}, default=None
        What to return besides the value: nothing; the sums of each row, which are the gradient with
        respect to the weights; or these and the gradient with respect to the rows.
    diagonal : bool, default=True
        When Y is None: whether pairs of a row with itself count. False is for unbiased estimates.
    backend : {"cuda", "triton", "cpp", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    sums : RbfSum
        Value, sums and gradients. Arrays for arrays, else tensors on the device of X; `value` is
        float64, the rest has the dtype of X. Where an input requires a gradient, `value` has one,
        once differentiable; the other results have none.

    Raises
    ------
    TypeError
        If X, Y or the weights are no arrays or tensors of such dtypes, or `kernel` is no kernel.
    ValueError
        If shapes, dtypes or devices do not fit, `y_weights` or ``diagonal=False`` does not go with
        Y, or `gradient` is another word.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    MMD^2 of [1]_, eq. 5, is ``rbf_sum(X).value / n**2 + rbf_sum(Y).value / m**2 -
    2 * rbf_sum(X, Y).value / (n * m)``; eq. 3 has ``diagonal=False`` and n (n - 1), m (m - 1). The
    witness function at x_i is ``x_sums / m`` against one sample minus that against the other, and
    kernel mean matching's kappa is ``x_sums * n / m``.

    The reference computes in float64. The other backends take float32: each kernel value is a
    float32 number, summed in float32 over a tile of at most some hundred rows and from there in
    float64. A Gaussian distance is |x|^2 + |y|^2 - 2 <x, y>, at least 0, of rows from which a point
    amid them (the median of some) was subtracted: a common offset costs no digits. Its error is
    about sqrt(d) eps (|x|^2 + |y|^2), eps = 6e-8, and gamma times that is the relative error of
    one kernel value; so tight clusters far from each other lose digits. On "cpp", which sums such
    distances from differences, only their gradient with respect to rows does. In a chain of
    bandwidths whose ratio is two or four a term is the square of the one before, with twice its
    relative error. The Laplacian has no product form: its distances are summed feature by feature,
    at several times the cost. The derivative of an absolute difference is 0 where it is 0. Linear
    sums need no pairs.

    A row that holds NaN or an infinity, or whose squared length (Gaussian: about that point) is
    above 1e37, makes every pair it is in NaN, whatever its weight. Kernel values that exceed
    float32 are infinite; those below 1e-38 may count as 0.

    Memory of "cpp", besides the results: per thread about 8 bytes for each number of at most 1120
    rows, twice that for the gradient with respect to rows; and at most 32 MiB for each of X and Y,
    whose rows are packed once where that is enough; but never n * m. It releases the GIL and gives
    the same bits for any number of threads.

    References
    ----------
    .. [1] Gretton et al. A kernel two-sample test. JMLR 13, 2012, eqs. 3 and 5.

    Examples
    --------
    >>> from pyfeat.ops import Gaussian
    >>> X = np.array([[0.0], [1.0]], dtype=np.float32)
    >>> sums = rbf_sum(X, kernel=Gaussian(np.log(2.0)), gradient="weights")
    >>> round(float(sums.value), 6), sums.x_sums.round(6).tolist()
    (3.0, [1.5, 1.5])
    """
    x, y = as_tensor(X, "X"), None if Y is None else as_tensor(Y, "Y")
    _check_rows(x, y)
    if not isinstance(kernel, PairKernel):
        raise TypeError(f"kernel must be a kernel of pyfeat.ops, got {type(kernel).__name__}")
    if gradient not in _LEVELS:
        raise ValueError(f"gradient must be one of {list(_LEVELS)}, got {gradient!r}")
    if y is None and y_weights is not None:
        raise ValueError("y_weights must be None where Y is None, got weights")
    if y is not None and not diagonal:
        raise ValueError("diagonal must be True where Y is given, got False")
    wx = _weights(x_weights, "x_weights", x)
    wy = None if y is None else _weights(y_weights, "y_weights", y)
    plain = [None if t is None else t.detach() for t in (x, y, wx, wy)]
    arguments = (plain[0], plain[1], kernel, plain[2], plain[3], gradient, diagonal)
    chosen = choose("rbf_sum", BACKENDS, backend, *arguments)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, y, wx, wy)):
        found = _Differentiable.apply(chosen, kernel, gradient, diagonal, x, y, wx, wy)
    else:
        found = _finished(chosen.run(*arguments), x.dtype)
    return RbfSum(*(None if t is None else like(X, t) for t in found))


def _check_rows(x: Tensor, y: Tensor | None) -> None:
    for name, rows in (("X", x), ("Y", y)):
        if rows is None:
            continue
        if rows.ndim != 2:
            raise ValueError(f"{name} must have shape (n, d), got {tuple(rows.shape)}")
        if rows.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must have dtype float32 or float64, got {rows.dtype}")
    if y is None:
        return
    if y.shape[1] != x.shape[1]:
        raise ValueError(f"Y must have {x.shape[1]} columns as X has, got {y.shape[1]}")
    if y.dtype != x.dtype:
        raise TypeError(f"Y must have dtype {x.dtype} as X has, got {y.dtype}")
    if y.device != x.device:
        raise ValueError(f"Y must be on {x.device} as X is, got {y.device}")


def _weights(weights: Rows | None, name: str, rows: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
    w = as_tensor(weights, name)
    if tuple(w.shape) != (len(rows),):
        raise ValueError(f"{name} must have shape ({len(rows)},), got {tuple(w.shape)}")
    if w.is_complex() or w.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {w.dtype}")
    if w.device != rows.device:
        raise ValueError(f"{name} must be on {rows.device} as the rows are, got {w.device}")
    return w.to(rows.dtype)


def _finished(sums: Sums, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    value, *rest = sums
    return (value, *(None if t is None else t.to(dtype) for t in rest))


class _Differentiable(torch.autograd.Function):
    """The value with the op's own gradient, whatever backend computes it."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
        chosen, kernel, gradient, diagonal, x, y, wx, wy = arguments
        rows = any(ctx.needs_input_grad[4:6])
        level = "rows" if rows or gradient == "rows" else "weights"
        found = chosen.run(x, y, kernel, wx, wy, level, diagonal)
        value, *rest = _finished(found, x.dtype)
        ctx.save_for_backward(*rest)
        ctx.itself = y is None
        kept = {None: 0, "weights": 2, "rows": 4}[gradient]
        shown = tuple(t if i < kept else None for i, t in enumerate(rest))
        ctx.mark_non_differentiable(*(t for t in shown if t is not None))
        return (value, *shown)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x_sums, y_sums, x_gradient, y_gradient = ctx.saved_tensors
        of_x = 2 * x_sums if ctx.itself else x_sums
        of_inputs = (x_gradient, y_gradient, of_x, y_sums)
        wanted = ctx.needs_input_grad[4:]
        return (None,) * 4 + tuple(
            (upstream * t).to(t.dtype) if need and t is not None else None
            for need, t in zip(wanted, of_inputs, strict=True)
        )


def _cpp_refuses(X: Any, Y: Any = None, kernel: Any = None, *rest: Any) -> str | None:
    weights = [w for w in rest[:2] if isinstance(w, Tensor | np.ndarray)]
    return why_not_cpp(**_named(X, Y, weights)) or _why_not_float32(X, kernel)


def _triton(*arguments: Any) -> Sums:
    from pyfeat.ops._triton.rbf_sum import DEVICE

    return on_device(DEVICE, *arguments)


def _cuda(*arguments: Any) -> Sums:
    return on_device(CUDA, *arguments)


def _triton_refuses(X: Any, Y: Any = None, kernel: Any = None, *rest: Any) -> str | None:
    return _device_refuses(why_not_triton, X, Y, kernel, *rest)


def _cuda_refuses(X: Any, Y: Any = None, kernel: Any = None, *rest: Any) -> str | None:
    return _device_refuses(why_not_cuda, X, Y, kernel, *rest)


def _device_refuses(why_not: Any, X: Any, Y: Any, kernel: Any, *rest: Any) -> str | None:
    weights = [w for w in rest[:2] if isinstance(w, Tensor | np.ndarray)]
    names = _named(X, Y, weights)
    if max((len(t) for t in names.values()), default=0) > _MOST_ROWS:
        return (
            f"X and Y must have at most {_MOST_ROWS} rows, got {[len(t) for t in names.values()]}"
        )
    reason: str | None = why_not(**names) or _why_not_float32(X, kernel)
    return reason


def _named(X: Any, Y: Any, weights: list[Any]) -> dict[str, Tensor]:
    """Return tensors by name, without their gradients: the op brings its own backward."""
    names = dict(zip(("X", "Y", "x_weights", "y_weights"), (X, Y, *weights), strict=False))
    return {n: as_tensor(t, n).detach() for n, t in names.items() if t is not None}


def _why_not_float32(X: Any, kernel: Any) -> str | None:
    dtype = as_tensor(X, "X").dtype
    if dtype != torch.float32:
        return f"X must have dtype float32, got {dtype}"
    if isinstance(kernel, Gaussian | Laplacian | Polynomial) and kernel.largest() > MOST_PARAMETER:
        return f"kernel must have parameters of at most {MOST_PARAMETER:g}, got {kernel}"
    return None


BACKENDS = (
    Backend("cuda", _cuda, _cuda_refuses),
    Backend("triton", _triton, _triton_refuses),
    Backend("cpp", cpp, _cpp_refuses),
    Backend("reference", reference, never_refuses),
)
