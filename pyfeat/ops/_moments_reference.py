"""What moments are, how two sets of them are merged, and the definition of the op `moments`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyfeat._rows import is_stream, row_blocks

# Large enough that the d x d product of a block outweighs adding it to the sum.
REFERENCE_BLOCK_ROWS = 4096


class Moments(NamedTuple):
    """Weighted first and second moments of rows, in float64.

    With groups, every field has a leading axis of length `n_groups`.

    Attributes
    ----------
    total : float, or ndarray or Tensor of shape (n_groups,)
        Sum of the weights.
    mean : ndarray or Tensor of shape (..., d)
        0 where there are no rows.
    scatter : ndarray or Tensor of shape (..., d, d), or (..., d) with `diagonal`
        sum_i w_i (x_i - mean)(x_i - mean)^T, or its diagonal.
    """

    total: Any
    mean: Any
    scatter: Any

    def merge(self, other: Moments) -> Moments:
        """Return the moments of the rows of both, group by group.

        Parameters
        ----------
        other : Moments
            Of the same shapes and kind: arrays, or tensors on one device.

        Returns
        -------
        moments : Moments

        Raises
        ------
        ValueError
            If the shapes differ.

        Notes
        -----
        t = ta + tb, gap = mean_b - mean_a, mean = mean_a + gap tb / t,
        scatter = scatter_a + scatter_b + (ta tb / t) gap gap^T (eq. 2.1 of [1]_).

        References
        ----------
        .. [1] Chan, Golub, LeVeque. Updating formulae and a pairwise algorithm for computing
           sample variances. COMPSTAT 1982.

        Examples
        --------
        >>> import numpy as np
        >>> from pyfeat.ops import moments
        >>> both = moments(np.array([[1.0], [2.0]])).merge(moments(np.array([[6.0]])))
        >>> both.total, both.mean, both.scatter
        (3.0, array([3.]), array([[14.]]))
        """
        shapes = [tuple(part.shape) for part in (self.mean, self.scatter)]
        others = [tuple(part.shape) for part in (other.mean, other.scatter)]
        if shapes != others:
            raise ValueError(
                f"other must have mean and scatter of shapes {shapes[0]} and {shapes[1]}, "
                f"got {others[0]} and {others[1]}"
            )
        total = self.total + other.total
        share = _column(other.total / (total + (total == 0)))  # 0 where nobody has a row
        gap = other.mean - self.mean
        mean = self.mean + gap * share
        if shapes[0] == shapes[1]:
            spread, factor = gap * gap, _column(self.total) * share
        else:
            spread = gap[..., :, None] * gap[..., None, :]
            factor = _column(_column(self.total) * share)
        return Moments(total, mean, self.scatter + other.scatter + factor * spread)

    def covariance(self, ddof: float = 0.0) -> Any:
        """Return scatter / (total - ddof), or its diagonal, the variances.

        Parameters
        ----------
        ddof : float, default=0.0
            1 for the unbiased estimate from rows of weight 1.

        Returns
        -------
        covariance : ndarray or Tensor, shape of `scatter`
            Where total - ddof is below 1 and ddof is not 0, it is divided by 1; where there are
            no rows it is 0.
        """
        least = 1.0 if ddof else 0.0
        divisor = self.total - ddof
        divisor = divisor + (least - divisor) * (divisor < least)
        divisor = divisor + (divisor == 0)
        for _ in range(self.scatter.ndim - np.ndim(divisor) if np.ndim(divisor) else 0):
            divisor = divisor[..., None]
        return self.scatter / divisor

    def gram(self) -> Any:
        """Return sum_i w_i x_i x_i^T, or its diagonal: scatter + total mean mean^T."""
        mean, total = self.mean, _column(self.total)
        if self.mean.shape == self.scatter.shape:
            return self.scatter + total * mean * mean
        return self.scatter + _column(total) * (mean[..., :, None] * mean[..., None, :])


def _column(values: Any) -> Any:
    """Return values of shape (g,) as (g, 1), (g, 1) as (g, 1, 1), and a number as it is."""
    return values[..., None] if np.ndim(values) else values


def reference(
    X: Any,
    weights: Tensor | None,
    groups: Tensor | None,
    n_groups: int | None,
    diagonal: bool,
    scales: Tensor | None,
) -> Moments:
    """Return the moments as tensors, group by group, each block in two passes, all in float64."""
    d = X.shape[1]
    found: list[Moments] = [_nothing(d, diagonal, X) for _ in range(n_groups or 1)]
    for positions, rows in _float64_blocks(X, scales):
        w = torch.ones_like(rows[:, 0]) if weights is None else weights[positions].double()
        kept = w != 0
        for g in range(n_groups or 1):
            chosen = kept if groups is None else kept & (groups[positions] == g)
            if bool(chosen.any()):
                found[g] = found[g].merge(_of_block(rows[chosen], w[chosen], diagonal))
    if n_groups is None:
        return found[0]
    return Moments(*(torch.stack(part) for part in zip(*found, strict=True)))


def _of_block(rows: Tensor, w: Tensor, diagonal: bool) -> Moments:
    total = w.sum()
    near = (w @ rows) / total
    centred = rows - near
    # `near` is off by the rounding of a long sum; what is left of the mean is short.
    rest = (w @ centred) / total
    centred = centred - rest
    if diagonal:
        return Moments(total, near + rest, w @ centred.square())
    return Moments(total, near + rest, _gram(centred * w.sqrt()[:, None]))


def _gram(rows: Tensor) -> Tensor:
    """Return rows^T rows."""
    if not rows.is_cpu or rows.requires_grad:
        return rows.T @ rows
    # numpy sees that the product is symmetric and computes half of it; torch does not.
    array = rows.numpy()
    with np.errstate(over="ignore", invalid="ignore"):  # `moments` says so in its own words
        return torch.from_numpy(array.T @ array)


def _nothing(d: int, diagonal: bool, X: Any) -> Moments:
    device = X.device if isinstance(X, Tensor) else None
    mean = torch.zeros(d, dtype=torch.float64, device=device)
    scatter = mean if diagonal else torch.zeros((d, d), dtype=torch.float64, device=device)
    return Moments(mean.new_zeros(()), mean, scatter)


def _float64_blocks(X: Any, scales: Tensor | None) -> Iterator[tuple[Any, Tensor]]:
    for positions, block in stored_blocks(X, REFERENCE_BLOCK_ROWS):
        rows = block.double()
        yield positions, rows if scales is None else rows * scales[positions, None].double()


def stored_blocks(X: Any, max_rows: int) -> Iterator[tuple[Any, Tensor]]:
    """Yield (positions, rows) as they are stored, positions as an index into (n,).

    Raises
    ------
    ValueError
        If a row of a stream holds NaN or infinity.
    """
    if not is_stream(X):
        for start in range(0, len(X), max_rows):
            rows = X[start : start + max_rows]
            yield slice(start, start + len(rows)), rows
        return
    for positions, block in row_blocks(X, max_rows):
        rows = block if isinstance(block, Tensor) else _shared(block)
        refuse_non_finite(rows)
        yield torch.from_numpy(np.asarray(positions, dtype=np.int64)), rows


def _shared(block: Any) -> Tensor:
    from pyfeat.ops._check import as_tensor

    return as_tensor(block, "X")


def refuse_non_finite(rows: Tensor) -> None:
    """Raise scikit-learn's ValueError if a row holds NaN or infinity."""
    if not rows.is_floating_point():
        return
    from pyfeat import _tensors  # scikit-learn comes with it

    # A sum carries every NaN and infinity along; in float32 that of float16 does not overflow.
    if not bool(torch.isfinite(rows.sum(dtype=_tensors.working_dtype(rows)))):
        _tensors.refuse_non_finite(rows.to(_tensors.working_dtype(rows)))
