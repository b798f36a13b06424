"""Multinomial logistic regression in plain torch: what the other backends are judged against."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
MIN_BLOCK_ROWS = 256


class Rows(NamedTuple):
    """Row i is scales[i] * items[i] - shift; shapes (n, d), (n,) and (d,), the latter optional."""

    items: Tensor
    scales: Tensor | None
    shift: Tensor | None

    def block(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Return some of the rows, (b, d)."""
        x = self.items[first:last].to(dtype)
        if self.scales is not None:
            x = x * self.scales[first:last, None].to(dtype)
        return x if self.shift is None else x - self.shift.to(dtype)

    @property
    def dtype(self) -> torch.dtype:
        """What products run in."""
        return torch.float64 if self.items.dtype == torch.float64 else torch.float32

    def size_of_block(self, width: int) -> int:
        """Return how many rows with `width` results each to compute with at a time."""
        room = BLOCK_BYTES.get(self.items.device.type, BLOCK_BYTES["cpu"])
        return max(MIN_BLOCK_ROWS, room // (self.dtype.itemsize * (self.items.shape[1] + width)))


class Sums(NamedTuple):
    """Sums over rows in float64, without the penalty.

    Attributes
    ----------
    loss : Tensor of shape (P,)
    gradient : Tensor of shape (P, outputs, d + 1)
    spread : Tensor of shape (P, outputs)
    curved : Tensor of shape (P, outputs, d + 1) or None
        The Hessian times the direction.
    """

    loss: Tensor
    gradient: Tensor
    spread: Tensor
    curved: Tensor | None


def reference(
    rows: Rows,
    labels: Tensor,
    theta: Tensor,
    weights: Tensor | None,
    direction: Tensor | None,
    bf16: bool,
) -> Sums:
    """Return the sums over rows, block by block; see `softmax_xent`."""
    n, dtype = len(rows.items), rows.dtype
    low = theta.to(dtype)
    turn = None if direction is None else direction.to(dtype)
    each = torch.full((1, n), 1.0 / max(n, 1), dtype=dtype, device=theta.device)
    w = each if weights is None else weights.to(dtype)
    w = w if w.ndim == 2 else w[None]  # (1 or P, n)
    labels = labels.to(torch.int64)
    zero = torch.zeros_like(theta, dtype=torch.float64)
    total = Sums(zero[:, 0, 0], zero, zero[:, :, 0], None if turn is None else zero)
    step = rows.size_of_block(2 * theta.shape[0] * theta.shape[1])
    for first in range(0, n, step):
        x = rows.block(first, first + step, dtype)
        part = _block(x, labels[first : first + step], low, w[:, first : first + step], turn, bf16)
        curved = None if part.curved is None or total.curved is None else total.curved + part.curved
        total = Sums(
            total.loss + part.loss,
            total.gradient + part.gradient,
            total.spread + part.spread,
            curved,
        )
    return total


def _block(
    x: Tensor, labels: Tensor, theta: Tensor, w: Tensor, turn: Tensor | None, bf16: bool
) -> Sums:
    rounded = _rounded(x, bf16)  # (b, d)
    z = _scores(rounded, theta, bf16)  # (P, b, outputs)
    if z.shape[2] == 1:
        y = labels.to(z.dtype)
        losses = -torch.nn.functional.logsigmoid((2 * y - 1) * z[..., 0])  # (P, b)
        p = z.sigmoid()
        residual = w[..., None] * (p - y[:, None])
        spread = w[..., None] * p * (-z).sigmoid()
    else:
        log_p = torch.log_softmax(z, dim=2)
        losses = -log_p.gather(2, labels.expand(len(z), -1)[..., None])[..., 0]
        p = log_p.exp()
        residual = w[..., None] * (p - torch.nn.functional.one_hot(labels, z.shape[2]))
        spread = w[..., None] * (p - p * p)
    curved = None
    if turn is not None:
        t = _scores(rounded, turn, bf16)
        if z.shape[2] == 1:
            curved = _onto_rows(spread * t, rounded, bf16)
        else:
            mean = (p * t).sum(dim=2, keepdim=True)
            curved = _onto_rows(w[..., None] * p * (t - mean), rounded, bf16)
    return Sums(
        (w * losses).sum(dim=1, dtype=torch.float64),
        _onto_rows(residual, rounded, bf16),
        spread.sum(dim=1, dtype=torch.float64),
        curved,
    )


def _rounded(values: Tensor, bf16: bool) -> Tensor:
    return values.bfloat16().to(values.dtype) if bf16 else values


def _scores(x: Tensor, theta: Tensor, bf16: bool) -> Tensor:
    """Return x W^T + b for every problem, (P, b, outputs), from one product."""
    problems, outputs, width = theta.shape
    weight = _rounded(theta[..., :-1].reshape(problems * outputs, width - 1), bf16)
    z = (x @ weight.T).reshape(len(x), problems, outputs) + theta[..., -1]
    return z.transpose(0, 1)


def _onto_rows(residual: Tensor, x: Tensor, bf16: bool) -> Tensor:
    """Return [residual^T x | sum of residual] in float64, (P, outputs, d + 1)."""
    onto = _rounded(residual, bf16).transpose(1, 2) @ x
    sums = residual.sum(dim=1, dtype=torch.float64)
    return torch.cat([onto.double(), sums[..., None]], dim=2)
