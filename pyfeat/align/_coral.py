"""Correlation alignment as a transformer."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pyfeat._estimator_file import load_estimator, save_estimator
from pyfeat._identity import Space, check_rows_space, space_of
from pyfeat._tensors import (
    Rows,
    block_rows,
    check_rows,
    device_of,
    like_input,
    tensor_blocks,
    working_dtype,
)
from pyfeat.align._coral_map import CoralMap, align_moments, check_regularization
from pyfeat.align._domains import source_rows
from pyfeat.errors import DomainWarning
from pyfeat.ops import moments


class CORAL(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Give source rows the covariance of target rows; target rows stay as they are.

    A head that is then trained on the mapped source rows is used on target rows as they come.

    Parameters
    ----------
    regularization : float, default=1.0
        lambda, added to every variance. Range [0, inf).
    align_mean : bool, default=False
        Also move the mean of the source rows to that of the target rows.

    Attributes
    ----------
    map_ : ndarray of shape (d, d), float64
        Source rows x become x map_. The identity if a domain was missing.
    mean_source_, mean_target_ : ndarray of shape (d,), float64
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (d,)
        Only if X had column names.
    space_ : Space or None
        Where the fitted rows came from, if they said so.

    See Also
    --------
    coral : The map alone.

    Notes
    -----
    See `coral` for the formula. Which rows are source is told in one of three ways:

    - `sample_domain`, skada's: positive is source, negative is target. Several of each are pooled.
    - `X_target`: then every row of X is source.
    - masked labels: rows whose y is -1 (classes), NaN (numbers) or missing (text) are target.

    Rows to transform are target rows unless `sample_domain` says otherwise, so that `predict` of a
    pipeline leaves them alone. A head behind CORAL gets the masked rows as well; a `LogisticHead`
    leaves them out with `masked_label=-1`::

        make_pipeline(CORAL(), LogisticHead(masked_label=-1)).fit(X, y_masked).predict(X_new)

    The published method does not move means: it assumes rows that are centred, or z-scored, per
    domain. For other rows x A turns the mean along, and `align_mean` is the better choice.

    A store view is read in blocks; as target rows it is handed on as it is, and mapped source rows
    are a new array. `sample_domain` is requested by `fit` and `transform` when metadata routing is
    on.

    References
    ----------
    .. [1] Sun, Feng, Saenko. Return of frustratingly easy domain adaptation. AAAI 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from pyfeat.align import CORAL
    >>> X = np.array([[1.0], [-1.0], [2.0], [-2.0]])
    >>> CORAL(regularization=0.0).fit_transform(X, sample_domain=[1, 1, -1, -1])
    array([[ 2.],
           [-2.],
           [ 2.],
           [-2.]])
    """

    # skada's adapters ask for it, too; scikit-learn reads these two names.
    __metadata_request__fit = {"sample_domain": True}  # noqa: RUF012
    __metadata_request__transform = {"sample_domain": True}  # noqa: RUF012

    map_: NDArray[np.float64]
    mean_source_: NDArray[np.float64]
    mean_target_: NDArray[np.float64]
    n_features_in_: int
    space_: Space | None

    def __init__(self, *, regularization: float = 1.0, align_mean: bool = False) -> None:
        self.regularization = regularization
        self.align_mean = align_mean

    def fit(
        self, X: Any, y: Any = None, *, sample_domain: Any = None, X_target: Any = None
    ) -> CORAL:
        """Learn the map from source rows to target rows.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (n, d)
        y : array-like or Tensor of shape (n,), optional
            Asked only for masked labels, and only without the other two.
        sample_domain : int, array-like or Tensor of shape (n,), optional
            Positive is source, negative is target; one number is that of every row.
        X_target : array-like, Tensor or store view of shape (m, d), optional

        Returns
        -------
        self : CORAL

        Warns
        -----
        DomainWarning
            If there is no source or no target row: the map is then the identity.

        Raises
        ------
        ValueError
            If X, `sample_domain` or `X_target` has another shape or holds NaN, or both of the
            latter are given.
        SpaceError
            If X and `X_target` say that they come from different spaces.
        """
        self._fit(X, y, sample_domain, X_target)
        return self

    def fit_transform(
        self, X: Any, y: Any = None, *, sample_domain: Any = None, X_target: Any = None
    ) -> Any:
        """Fit, and return X with its source rows mapped.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (n, d)
        y : array-like or Tensor of shape (n,), optional
        sample_domain : int, array-like or Tensor of shape (n,), optional
        X_target : array-like, Tensor or store view of shape (m, d), optional
            As in `fit`.

        Returns
        -------
        X_aligned : ndarray, Tensor or store view of shape (n, d)
            X itself, not copied, if no row is mapped.

        Warns
        -----
        DomainWarning
            If there is no source or no target row: nothing is mapped.

        Raises
        ------
        ValueError
            If X, `sample_domain` or `X_target` has another shape or holds NaN, or both of the
            latter are given.
        SpaceError
            If X and `X_target` say that they come from different spaces.
        """
        rows, is_source = self._fit(X, y, sample_domain, X_target)
        return self._mapped(rows, is_source)

    def transform(self, X: Any, *, sample_domain: Any = None) -> Any:
        """Map the source rows of X.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (n, d)
        sample_domain : int, array-like or Tensor of shape (n,), optional
            Positive is source, negative is target; one number is that of every row.
            By default every row is target.

        Returns
        -------
        X_aligned : ndarray, Tensor or store view of shape (n, d)
            X itself, not copied, if every row is target.

        Raises
        ------
        ValueError
            If X has other columns than the fitted rows, or holds NaN.
        SpaceError
            If X says that it comes from another space than the fitted rows.
        """
        check_is_fitted(self)
        check_rows_space(self.space_, X, "X")
        rows = check_rows(self, X, reset=False)
        return self._mapped(rows, source_rows(rows.shape[0], sample_domain))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map, the parameters and the space to one safetensors file.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        NotFittedError
            If there is nothing to save.
        """
        check_is_fitted(self)
        arrays = {n: getattr(self, f"{n}_") for n in ("map", "mean_source", "mean_target")}
        save_estimator(path, self, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CORAL:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        coral : CORAL
            Fitted.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file holds something else.
        """
        aligner, arrays, _ = load_estimator(path, cls)
        for name, array in arrays.items():
            setattr(aligner, f"{name}_", array)
        return aligner

    def _fit(
        self, X: Any, y: Any, sample_domain: Any, X_target: Any
    ) -> tuple[Rows, NDArray[np.bool_] | None]:
        check_regularization(self.regularization)
        rows = check_rows(self, X, reset=True)
        self.space_ = space_of(X)
        found: CoralMap | None
        is_source: NDArray[np.bool_] | None
        if X_target is None:
            is_source = source_rows(rows.shape[0], sample_domain, y)
            found = self._split(rows, is_source)
        elif sample_domain is None:
            check_rows_space(self.space_, X_target, "X_target")
            target = check_rows(self, X_target, reset=False)
            is_source = np.ones(rows.shape[0], dtype=bool)
            found = align_moments(
                moments(rows), moments(target, name="X_target"), self.regularization
            )
        else:
            raise ValueError("X_target must be left out when sample_domain is given, got both")
        if found is None:
            warnings.warn(
                "CORAL needs source and target rows and found only one kind: nothing is mapped; "
                "give sample_domain, X_target, or labels that are masked with -1 or NaN",
                DomainWarning,
                stacklevel=3,
            )
            d = rows.shape[1]
            self.map_, is_source = np.eye(d), None
            self.mean_source_ = self.mean_target_ = np.zeros(d)
        else:
            self.map_, self.mean_source_, self.mean_target_ = found
        return rows, is_source

    def _split(self, rows: Rows, is_source: NDArray[np.bool_] | None) -> CoralMap | None:
        if is_source is None or is_source.all() or not is_source.any():
            return None
        chosen = torch.from_numpy(is_source).to(device_of(rows))
        return align_moments(moments(rows, chosen), moments(rows, ~chosen), self.regularization)

    def _mapped(self, rows: Rows, is_source: NDArray[np.bool_] | None) -> Any:
        if is_source is None or not is_source.any():
            return rows
        device, dtype = device_of(rows), working_dtype(rows)
        linear = torch.from_numpy(self.map_).to(device, dtype)
        offset = torch.zeros_like(linear[0])
        if self.align_mean:
            moved = self.mean_target_ - self.mean_source_ @ self.map_
            offset = torch.from_numpy(moved).to(device, dtype)
        chosen = torch.from_numpy(is_source).to(device)
        out = torch.empty(tuple(rows.shape), dtype=dtype, device=device)
        for positions, block in tensor_blocks(rows, block_rows(rows)):
            source = chosen[positions]
            part = block.clone()
            part[source] = torch.addmm(offset, block[source], linear)
            out[positions] = part
        return like_input(rows, out)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
