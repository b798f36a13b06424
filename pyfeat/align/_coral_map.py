"""The map of correlation alignment: source rows get the covariance of target rows."""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyfeat._eigh import symmetric_eigh
from pyfeat._tensors import check_plain_rows, to_numpy
from pyfeat.ops import Moments, moments


class CoralMap(NamedTuple):
    """What `coral` returns, float64.

    Attributes
    ----------
    map : ndarray or Tensor of shape (d, d)
        A: a source row x becomes x A.
    mean_source : ndarray or Tensor of shape (d,)
    mean_target : ndarray or Tensor of shape (d,)
        (x - mean_source) A + mean_target aligns the means too.
    """

    map: Any
    mean_source: Any
    mean_target: Any


def coral(X_source: Any, X_target: Any, *, regularization: float = 1.0) -> CoralMap:
    """Return the linear map that gives source rows the covariance of target rows.

    Parameters
    ----------
    X_source : array-like, Tensor or store view of shape (n, d)
    X_target : array-like, Tensor or store view of shape (m, d)
    regularization : float, default=1.0
        lambda, in units of the variance of a column. Range [0, inf).

    Returns
    -------
    map, mean_source, mean_target : CoralMap
        Tensors if X_source is one, else arrays.

    Raises
    ------
    ValueError
        If the rows have different widths, hold NaN or overflow when squared, or `regularization`
        is negative or infinite.
    TypeError
        If `regularization` is not a number, or a tensor does not hold floating point numbers.

    Notes
    -----
    A = (Cs + lambda I)^(-1/2) (Ct + lambda I)^(1/2), C with n - 1 below the sum [1]_. Directions
    without variance, which only lambda = 0 leaves, map to 0. Sums, eigenvectors and A in float64,
    block products in the dtype of the rows. Memory: one block of rows and a few (d, d).

    References
    ----------
    .. [1] Sun, Feng, Saenko. Return of frustratingly easy domain adaptation. AAAI 2016,
       algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> coral(X, 3 * X, regularization=0.0).map.round(6)
    array([[3., 0.],
           [0., 3.]])
    """
    check_regularization(regularization)
    source = check_plain_rows(X_source, "X_source")
    target = check_plain_rows(X_target, "X_target")
    if source.shape[1] != target.shape[1]:
        raise ValueError(
            f"X_target must have {source.shape[1]} columns like X_source, got {target.shape[1]}"
        )
    found = align_moments(
        moments(source, name="X_source"), moments(target, name="X_target"), regularization
    )
    if isinstance(source, Tensor):
        return CoralMap(*(torch.from_numpy(part).to(source.device) for part in found))
    return found


def align_moments(source: Moments, target: Moments, regularization: float) -> CoralMap:
    """Return the map and both means as arrays, from the moments of the rows."""
    whiten = _power(torch.as_tensor(source.covariance(ddof=1)), regularization, -0.5)
    colour = _power(torch.as_tensor(target.covariance(ddof=1)), regularization, 0.5)
    parts = (whiten @ colour.to(whiten.device), source.mean, target.mean)
    return CoralMap(*(to_numpy(part) for part in parts))


def _power(covariance: Tensor, regularization: float, exponent: float) -> Tensor:
    """Return (covariance + regularization I)^exponent, 0 along directions without variance."""
    values, vectors = symmetric_eigh(covariance)
    rounding = float(values.abs().max()) * len(values) * torch.finfo(torch.float64).eps
    # Only a regularization of 0 leaves values that are nothing but rounding.
    values = values.clamp(min=0.0) + regularization
    powers = torch.where(values > rounding, values**exponent, 0.0)
    return (vectors * powers) @ vectors.T


def check_regularization(value: Any) -> None:
    """Raise unless the value is a finite number from 0 up."""
    if not isinstance(value, Real):
        raise TypeError(f"regularization must be a number, got {value!r}")
    if not 0.0 <= float(value) < float("inf"):
        raise ValueError(f"regularization must be at least 0 and finite, got {value!r}")
