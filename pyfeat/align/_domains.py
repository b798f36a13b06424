"""Which rows are source and which are target: skada's convention [1].

.. [1] Gnassounou et al. SKADA: scikit adaptation. https://scikit-adaptation.github.io
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._tensors import is_missing, label_array, to_numpy

MASKED_CLASS = -1


def source_rows(n: int, sample_domain: Any = None, y: Any = None) -> NDArray[np.bool_] | None:
    """Return which of n rows are source, or None if nothing tells.

    Parameters
    ----------
    n : int
        Number of rows.
    sample_domain : int, array-like or Tensor of shape (n,), optional
        Integers: positive is a source domain, negative a target domain. One number is that of
        every row.
    y : array-like or Tensor of shape (n,), optional
        Asked only without `sample_domain`: target rows are those with a masked label. Among
        classes that is -1 and among numbers NaN; among objects, such as text, it is -1 and what
        is missing (None, NaN, pandas' NA).

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
    labels = label_array(y)
    if len(labels) != n:
        raise ValueError(f"y must have {n} rows like X, got {len(labels)}")
    masked = np.asarray(_masked(labels).reshape(n, -1).all(axis=1))
    return ~masked if masked.any() else None


def _checked_domains(n: int, domains: NDArray[Any]) -> NDArray[Any]:
    if domains.ndim == 0:
        domains = np.full(n, domains)
    if domains.shape != (n,):
        raise ValueError(f"sample_domain must have shape ({n},), got {domains.shape}")
    if domains.dtype.kind not in "iuf" or (domains != np.trunc(domains)).any():
        raise ValueError(f"sample_domain must hold integers, got {domains}")
    if (domains == 0).any():
        rule = "be positive (source) or negative (target)"
        raise ValueError(f"sample_domain must {rule}, got 0 in row {int(np.argmin(domains != 0))}")
    return domains


def _masked(labels: NDArray[Any]) -> NDArray[np.bool_]:
    missing = is_missing(labels)
    if labels.dtype.kind == "f" and (missing.any() or (labels != np.trunc(labels)).any()):
        return missing  # numbers to regress on: -1 is a value like any other
    if labels.dtype.kind not in "ifO":
        return missing
    masked = missing.copy()
    masked[~missing] = labels[~missing] == MASKED_CLASS
    return masked
