"""Loss, gradient and curvature of multinomial logistic regression, many problems in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyfeat._config import num_threads
from pyfeat.ops._check import ITEMS, as_tensor, like, why_not_cpp, why_not_triton
from pyfeat.ops._dispatch import Backend, choose, never_refuses
from pyfeat.ops._softmax_xent_reference import Rows, Sums, reference

PRODUCTS = ("float32", "bfloat16")


class StoredRows(NamedTuple):
    """Rows as they lie in a store, and what makes numbers of them.

    Row i is scales[i] * items[i] - shift.

    Parameters
    ----------
    items : ndarray or Tensor of shape (n, d)
        float64, float32, float16, bfloat16 or int8.
    scales : ndarray or Tensor of shape (n,), optional
        By default 1.
    shift : ndarray or Tensor of shape (d,), optional
        By default 0; the mean of the rows makes a problem that is easier to solve.
    """

    items: Any
    scales: Any = None
    shift: Any = None


class SoftmaxXent(NamedTuple):
    """What `softmax_xent` returns, all float64.

    Attributes
    ----------
    loss : ndarray or Tensor of shape (P,)
    gradient : ndarray or Tensor of shape (P, outputs, d + 1)
        The last column belongs to the intercepts.
    spread : ndarray or Tensor of shape (P, outputs)
        sum_i w_i p_ic (1 - p_ic): the diagonal of the Hessian in the intercepts.
    curved : ndarray or Tensor of shape (P, outputs, d + 1), or None
        The Hessian times `direction`.
    """

    loss: Any
    gradient: Any
    spread: Any
    curved: Any


def softmax_xent(
    X: Any,
    labels: Any,
    theta: Any,
    *,
    weights: Any = None,
    l2: float | Sequence[float] | Any = 0.0,
    direction: Any = None,
    products: str = "float32",
    backend: str | None = None,
) -> SoftmaxXent:
    """Evaluate P problems of multinomial logistic regression on the same rows.

    A problem is a theta, a penalty and a weight for every row: K strengths and F folds make
    P = K * F problems, the rows a fold holds out having weight 0. All of them share each pass over
    the rows.

    Parameters
    ----------
    X : ndarray, Tensor or StoredRows of shape (n, d)
        float64 (backend only "reference"), float32, float16, bfloat16; int8 in `StoredRows`.
    labels : ndarray or Tensor of shape (n,), integers
        Range [0, outputs), or {0, 1} for one output.
    theta : ndarray or Tensor of shape (P, outputs, d + 1), float32 or float64
        Weights of the columns and, last, the intercepts. One output is the logistic loss of the
        label 1, two and more the softmax cross-entropy.
    weights : ndarray or Tensor of shape (n,) or (P, n), optional
        Weight of each row, used as float32 unless X is float64. By default 1 / n, the mean.
    l2 : float or array of shape (P,), default=0.0
        Strength of the penalty l2 / 2 ||W||^2; intercepts have none. Not negative.
    direction : ndarray or Tensor of theta's shape, optional
        Vector V to multiply with the Hessian.
    products : {"float32", "bfloat16"}, default="float32"
        What rows, theta and residuals are rounded to for the products, whose sums run in float32.
        float64 rows allow "float32" alone, and use float64.
    backend : {"triton", "cpp", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    result : SoftmaxXent
        Arrays if `theta` is one, else tensors on its device: loss, gradient, spread, curved.

    Raises
    ------
    TypeError
        If an argument is neither array nor tensor, or has another dtype.
    ValueError
        If shapes do not fit, a label is out of range, `l2` is negative, or `products` is unknown.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    With scores z = W x + b, probabilities p = softmax(z), or sigmoid(z) for one output,

        loss     = sum_i w_i (log sum_c exp(z_ic) - z_iy) + l2 / 2 ||W||^2
        gradient = sum_i w_i (p_i - onehot(y_i)) [x_i | 1]^T + l2 [W | 0]
        H V      = sum_i w_i (diag(p_i) - p_i p_i^T) V [x_i | 1] [x_i | 1]^T + l2 [V_W | 0]

    eq. 4.109 and 4.110 of [1]_ with weights and a penalty.

    Products and probabilities are float32, a sum over at most some thousand rows too; above that,
    and for losses, sums run in float64. The largest score of a row is taken off before its
    exponentials are made: no finite score overflows them. Any number of threads gives the same
    bits.

    A row that holds NaN or infinity, or whose scores leave float32, makes the gradient of every
    problem NaN, also where its weight is 0. Without rows, what is left is the penalty.

    Memory of "cpp": outputs * P * d float64 once, as many float32 and about
    3 KiB * (d + outputs * P) for each thread, twice the outputs with a direction; nothing has the
    size n * outputs.

    References
    ----------
    .. [1] Bishop. Pattern Recognition and Machine Learning. Springer, 2006, section 4.3.4.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[-1.0], [2.0]], dtype=np.float32)
    >>> result = softmax_xent(X, np.array([0, 1]), np.zeros((1, 2, 2)))
    >>> result.loss.round(4), result.gradient[0, :, 0]
    (array([0.6931]), array([ 0.75, -0.75]))
    """
    stored = X if isinstance(X, StoredRows) else StoredRows(X)
    rows = _checked_rows(stored)
    y, t = _integers(labels), as_tensor(theta, "theta")
    w = None if weights is None else as_tensor(weights, "weights")
    v = None if direction is None else as_tensor(direction, "direction")
    _check(rows, y, t, w, v)
    strength = _checked_strength(l2, t)
    if products not in PRODUCTS:
        raise ValueError(f"products must be one of {list(PRODUCTS)}, got {products!r}")
    bf16 = products == "bfloat16"
    if bf16 and rows.dtype == torch.float64:
        raise ValueError("products must be 'float32' for float64 rows, got 'bfloat16'")
    chosen = choose("softmax_xent", BACKENDS, backend, rows, y, t, w, v, bf16)
    sums = _with_penalty(chosen.run(rows, y, t, w, v, bf16), t, v, strength)
    return SoftmaxXent(*(None if part is None else like(theta, part) for part in sums))


def _checked_rows(stored: StoredRows) -> Rows:
    items = as_tensor(stored.items, "X")
    if items.dtype not in (torch.float64, *ITEMS):
        raise TypeError(
            f"X must hold float64, float32, float16, bfloat16 or int8, got {items.dtype}"
        )
    if items.ndim != 2:
        raise ValueError(f"X must have shape (n, d), got {tuple(items.shape)}")
    scales = None if stored.scales is None else as_tensor(stored.scales, "scales")
    shift = None if stored.shift is None else as_tensor(stored.shift, "shift")
    for name, part, length in (("scales", scales, 0), ("shift", shift, 1)):
        if part is None:
            continue
        if not part.is_floating_point():
            raise TypeError(f"{name} must hold floating point numbers, got {part.dtype}")
        if tuple(part.shape) != (items.shape[length],):
            raise ValueError(
                f"{name} must have shape ({items.shape[length]},), got {tuple(part.shape)}"
            )
    return Rows(items, scales, shift)


def _integers(labels: Any) -> Tensor:
    y = as_tensor(labels, "labels")
    if y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {y.dtype}")
    return y.to(torch.int64)  # torch has no comparisons of the longer unsigned ones


def _check(rows: Rows, y: Tensor, theta: Tensor, w: Tensor | None, v: Tensor | None) -> None:
    n, d = rows.items.shape
    if theta.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"theta must be float32 or float64, got {theta.dtype}")
    if theta.ndim != 3 or theta.shape[1] < 1 or theta.shape[2] != d + 1:
        raise ValueError(f"theta must have shape (P, outputs, {d + 1}), got {tuple(theta.shape)}")
    parts = {"X": rows.items, "scales": rows.scales, "shift": rows.shift}
    for name, part in {**parts, "labels": y, "weights": w, "direction": v}.items():
        if part is not None and part.device != theta.device:
            raise ValueError(f"{name} must be on {theta.device} as theta is, got {part.device}")
    if tuple(y.shape) != (n,):
        raise ValueError(f"labels must have shape ({n},), got {tuple(y.shape)}")
    if n and not ((least := int(y.min())) >= 0 and int(y.max()) < max(theta.shape[1], 2)):
        wrong = least if least < 0 else int(y.max())
        raise ValueError(f"labels must be in [0, {max(theta.shape[1], 2)}), got {wrong}")
    if w is not None:
        if not w.is_floating_point():
            raise TypeError(f"weights must hold floating point numbers, got {w.dtype}")
        if tuple(w.shape) not in ((n,), (len(theta), n)):
            rule = f"have shape ({n},) or ({len(theta)}, {n})"
            raise ValueError(f"weights must {rule}, got {tuple(w.shape)}")
    if v is not None and (v.shape != theta.shape or not v.is_floating_point()):
        rule = f"be floating point of shape {tuple(theta.shape)}"
        raise ValueError(f"direction must {rule}, got {v.dtype} of shape {tuple(v.shape)}")


def _checked_strength(l2: Any, theta: Tensor) -> Tensor:
    strength = torch.as_tensor(l2, dtype=torch.float64, device=theta.device)
    if strength.ndim > 1 or (strength.ndim == 1 and len(strength) != len(theta)):
        raise ValueError(
            f"l2 must be a number or have shape ({len(theta)},), got {tuple(strength.shape)}"
        )
    if not bool((strength >= 0).all()):
        raise ValueError(f"l2 must not be negative, got {l2}")
    return strength.expand(len(theta))


def _with_penalty(sums: Sums, theta: Tensor, v: Tensor | None, strength: Tensor) -> Sums:
    free = torch.ones(theta.shape[2], dtype=torch.float64, device=theta.device)
    free[-1] = 0.0
    scale = strength[:, None, None] * free  # (P, 1, d + 1)
    exact = theta.double()
    return Sums(
        sums.loss + 0.5 * (scale * exact.square()).sum(dim=(1, 2)),
        sums.gradient + scale * exact,
        sums.spread,
        None if v is None or sums.curved is None else sums.curved + scale * v.double(),
    )


def _cpp(
    rows: Rows, labels: Tensor, theta: Tensor, w: Tensor | None, v: Tensor | None, bf16: bool
) -> Sums:
    from pyfeat._core import XentRows

    problems, outputs, width = theta.shape
    items, y = rows.items.contiguous(), labels.to(torch.int64).contiguous()
    scales, shift, low_w = (
        None if part is None else part.to(torch.float32).contiguous()
        for part in (rows.scales, rows.shift, w)
    )
    both = [theta] if v is None else [theta, v]
    low = torch.cat([part.to(torch.float32) for part in both]).contiguous()
    few = problems + problems * outputs
    out = torch.zeros(few + low.numel(), dtype=torch.float64)
    native = XentRows(items.data_ptr(), ITEMS[items.dtype], _at(scales), _at(shift), *items.shape)
    native.evaluate(
        y.data_ptr(),
        _at(low_w),
        0 if w is None or w.ndim == 1 else w.shape[1],
        low.data_ptr(),
        problems,
        outputs,
        direction=v is not None,
        bf16=bf16,
        threads=num_threads(),
        out=out.data_ptr(),
    )
    loss, spread = out[:problems], out[problems:few].reshape(problems, outputs)
    onto = out[few:].reshape(len(both), problems, outputs, width)
    return Sums(loss, onto[0], spread, None if v is None else onto[1])


def _at(part: Tensor | None) -> int:
    return 0 if part is None else part.data_ptr()


def _triton(
    rows: Rows, labels: Tensor, theta: Tensor, w: Tensor | None, v: Tensor | None, bf16: bool
) -> Sums:
    from pyfeat.ops._triton.softmax_xent import run

    return run(rows, labels, theta, w, v, bf16)


def _cpp_refuses(*args: Any) -> str | None:
    return _why_not(why_not_cpp, *args)


def _triton_refuses(*args: Any) -> str | None:
    return _why_not(why_not_triton, *args)


def _why_not(
    on_device: Callable[..., str | None], rows: Any, labels: Any, theta: Any, *more: Any
) -> str | None:
    w, v = [*more, None, None][:2]
    if not isinstance(rows, Rows):
        rows = _checked_rows(rows if isinstance(rows, StoredRows) else StoredRows(rows))
    if rows.dtype == torch.float64:
        return "X must be float32, float16, bfloat16 or int8, got float64"
    tensors = {"X": rows.items, "scales": rows.scales, "shift": rows.shift}
    return on_device(**tensors, labels=labels, theta=theta, weights=w, direction=v)


BACKENDS = (
    Backend("triton", _triton, _triton_refuses),
    Backend("cpp", _cpp, _cpp_refuses),
    Backend("reference", reference, never_refuses),
)
