"""Weights of rows and of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.class_weight import compute_class_weight


def check_sample_weight(sample_weight: ArrayLike | None, n: int) -> NDArray[np.float64]:
    """Return a new array of n weights, all 1 by default.

    Raises
    ------
    ValueError
        If there are not n of them, one is negative or not finite, or all are 0.
    """
    if sample_weight is None:
        return np.ones(n)
    weights = np.array(sample_weight, dtype=np.float64)
    if weights.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), got {weights.shape}")
    if not np.isfinite(weights).all() or weights.min() < 0.0:
        raise ValueError(f"sample_weight must hold finite numbers from 0 up, got {weights}")
    if weights.max() == 0.0:
        raise ValueError("sample_weight must hold a positive number, got weights that are all zero")
    return weights


def class_weight_of_rows(
    class_weight: Mapping[Any, float] | str | None,
    classes: NDArray[Any],
    codes: NDArray[Any],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return, for every row, the weight of its class.

    Parameters
    ----------
    class_weight : mapping or "balanced", optional
        "balanced" makes the weights of every class sum to the same total.
    classes : ndarray of shape (k,)
    codes : ndarray of shape (n,)
        Position of the label of each row in `classes`.
    weights : ndarray of shape (n,)
        Weights of the rows.

    Raises
    ------
    ValueError
        If `class_weight` is another word, names a class that is not there, or gives a weight that
        is negative or not finite.
    """
    if class_weight is None:
        return np.ones(len(codes))
    if class_weight == "balanced":
        totals = np.bincount(codes, weights=weights, minlength=len(classes))
        of_class = np.divide(
            totals.sum() / len(classes), totals, out=np.ones_like(totals), where=totals > 0.0
        )
    elif isinstance(class_weight, Mapping):
        of_class = compute_class_weight(dict(class_weight), classes=classes, y=classes)
        if not np.isfinite(of_class).all() or of_class.min() < 0.0:
            raise ValueError(
                f"class_weight must hold finite numbers from 0 up, got {dict(class_weight)}"
            )
    else:
        raise ValueError(f'class_weight must be a dict or "balanced", got {class_weight!r}')
    by_row: NDArray[np.float64] = np.asarray(of_class, dtype=np.float64)[codes]
    return by_row


def total_weight(weights: NDArray[np.float64]) -> float:
    """Return the sum of the weights of the rows.

    Raises
    ------
    ValueError
        If it is 0 or overflows.
    """
    with np.errstate(over="ignore"):
        total = float(weights.sum())
    if not 0.0 < total < float("inf"):
        rule = "add up to a positive, finite number over the labelled rows"
        raise ValueError(f"sample_weight times class_weight must {rule}, got {total}")
    return total
