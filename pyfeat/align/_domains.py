"""Which rows are source and which are target: skada's convention [1].

.. [1] Gnassounou et al. SKADA: scikit adaptation. https://scikit-adaptation.github.io
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._tensors import to_numpy

MASKED_CLASS = -1


def source_rows(n: int, sample_domain: Any = None, y: Any = None) -> NDArray[np.bool_] | None:
    """Return which of n rows are source, or None if nothing tells.

    Parameters
    ----------
    n : int
        Number of rows.
    sample_domain : array-like or Tensor of shape (n,), optional
        Integers: positive is a source domain, negative a target domain.
    y : array-like or Tensor of shape (n,), optional
        Asked only without `sample_domain`: target rows are those with a masked label, -1 among
        classes or NaN among numbers.

    Returns
    -------
    is_source : ndarray of shape (n,), bool, or None
        None without `sample_domain` if no label is masked.

    Raises
    ------
    ValueError
        If `sample_domain` or `y` has another length, or `sample_domain` holds a 0 or a fraction.

    Examples
    --------
    >>> source_rows(3, sample_domain=[1, 2, -1])
    array([ True,  True, False])
    >>> source_rows(3, y=[0, 4, -1])
    array([ True,  True, False])
    """
    if sample_domain is not None:
        domains = _checked_domains(n, np.asarray(to_numpy(sample_domain)))
        positive: NDArray[np.bool_] = domains > 0
        return positive
    if y is None:
        return None
    labels = np.asarray(to_numpy(y))
    if len(labels) != n:
        raise ValueError(f"y must have {n} rows like X, got {len(labels)}")
    masked = np.asarray(_masked(labels).reshape(n, -1).all(axis=1))
    return ~masked if masked.any() else None


def _checked_domains(n: int, domains: NDArray[Any]) -> NDArray[Any]:
    if domains.shape != (n,):
        raise ValueError(f"sample_domain must have shape ({n},), got {domains.shape}")
    if domains.dtype.kind not in "iuf" or (domains != np.trunc(domains)).any():
        raise ValueError(f"sample_domain must hold integers, got {domains}")
    if (domains == 0).any():
        rule = "be positive (source) or negative (target)"
        raise ValueError(f"sample_domain must {rule}, got 0 in row {int(np.argmin(domains != 0))}")
    return domains


def _masked(labels: NDArray[Any]) -> NDArray[np.bool_]:
    if labels.dtype.kind == "f":
        missing = np.isnan(labels)
        if missing.any() or (labels != np.trunc(labels)).any():
            return np.asarray(missing)  # numbers to regress on: -1 is a value like any other
    if labels.dtype.kind in "if":
        return np.asarray(labels == MASKED_CLASS)
    if labels.dtype.kind == "O":
        return np.array([_is_masked(label) for label in labels.flat]).reshape(labels.shape)
    return np.zeros(labels.shape, dtype=bool)


def _is_masked(label: Any) -> bool:
    return isinstance(label, (int, np.integer)) and label == MASKED_CLASS
