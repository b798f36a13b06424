"""Parameters and labels of a head, checked."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from pyfeat._tensors import Rows, is_missing, label_array


def check_positive(name: str, value: Any, kind: type = Real) -> None:
    """Raise unless the value is a positive number.

    Raises
    ------
    TypeError
        If it is not of that kind of number.
    ValueError
        If it is not positive.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        word = "an integer" if kind is Integral else "a number"
        raise TypeError(f"{name} must be {word}, got {value!r}")
    if not value > 0:  # type: ignore[operator]
        raise ValueError(f"{name} must be positive, got {value!r}")


def check_labels(
    y: Any, rows: Rows, masked_label: int | str | bool | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the labels of the rows that are not masked, and which rows those are.

    Parameters
    ----------
    y : array-like or Tensor of shape (n,)
    rows : Rows of shape (n, d)
    masked_label : int, str, bool or None
        Rows with this label, or with none at all (None, NaN, pandas' NA), are masked. By default
        no row is.

    Returns
    -------
    labels : ndarray of shape (m,)
    kept : ndarray of shape (n,), bool

    Raises
    ------
    ValueError
        If y is None, has another shape, or holds what is neither a class nor masked.
    """
    if y is None:
        raise ValueError("LogisticHead requires y to be passed, but the target y is None")
    labels: NDArray[Any] = column_or_1d(label_array(y), warn=True)
    check_consistent_length(rows, labels)
    kept = np.ones(len(labels), dtype=bool)
    if masked_label is not None:
        kept = ~is_missing(labels)
        # As objects, numbers and text compare without a fuss.
        kept[kept] = labels[kept].astype(object) != masked_label
        labels = labels[kept]
        if labels.dtype == object and not any(isinstance(label, str) for label in labels):
            labels = np.array(labels.tolist())  # numbers that only the mask had made objects
    assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    return labels, kept
