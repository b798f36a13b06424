"""Logistic regression on rows: scikit-learn's objective and contract, on any device or a stream."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyfeat._estimator_file import load_estimator, save_estimator
from pyfeat._identity import Space, space_of
from pyfeat._tensors import Rows, check_rows, device_of, to_numpy, working_dtype
from pyfeat.heads._check import check_labels, check_positive
from pyfeat.heads._lbfgs import Minimum
from pyfeat.heads._linear import LinearScores
from pyfeat.heads._softmax import Problem, solve
from pyfeat.heads._weights import check_sample_weight, class_weight_of_rows, total_weight


class LogisticHead(LinearScores, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Multinomial logistic regression with an L2 penalty.

    Minimises the objective of `sklearn.linear_model.LogisticRegression`: the same C gives the same
    probabilities. Rows may be an array, a tensor on any device, or a store view, which is read in
    blocks on every pass and never loaded.

    Parameters
    ----------
    C : float, default=1.0
        Inverse strength of the penalty; `numpy.inf` is none. Range (0, inf].
    class_weight : dict or "balanced", optional
        Weight of each class, multiplied with `sample_weight`. "balanced" gives every class the
        same total.
    fit_intercept : bool, default=True
        Learn one number per class that is not penalised.
    max_iter : int, default=500
        Most steps of L-BFGS; each costs about one pass over the rows.
    tol : float, default=1e-4
        Stop when the next Newton step would move the scores by at most this; see Notes.
    masked_label : int, str or bool, optional
        Rows with this label, or a missing one (None, NaN, pandas' NA), are left out of `fit`, among
        text as among numbers. -1 is what target rows are masked with behind `pyfeat.align.CORAL`.
        By default every label is a class.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
    coef_ : ndarray of shape (k, d), or (1, d) for two classes
        float32, or float64 if X was.
    intercept_ : ndarray of shape (k,), or (1,) for two classes
    n_iter_ : ndarray of shape (1,)
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (d,)
        Only if X had column names.
    space_ : Space or None
        Where the fitted rows came from, if they said so.

    Notes
    -----
    Minimised is C sum_i w_i loss_i + ||coef||^2 / 2, with the logistic loss for two classes and the
    softmax cross-entropy for more. Columns are centred as they are read and steps are
    preconditioned by the curvature at coef = 0, so that columns of different scale, or correlated
    ones, need no scaler; the penalty stays on `coef_` as returned. Products run in float32 (float64
    for float64 rows), sums over blocks and the parameters in float64. Memory beyond X: one block of
    rows, 22 times the parameters, (d, d) where that pays, and a copy of X if its rows do not lie
    one after another, as in a pandas frame.

    `tol` bounds the root mean square over the rows of the change of a class's score, in the step
    that the guess of the Hessian (class blocks h Cov + I / (C n), h the mean of p (1 - p)) makes of
    the gradient. An error of the scores moves a probability by at most a quarter of it. Unlike the
    gradient itself this means the same at every C, and it is all the same for columns in other
    units. float32 rows stop earlier where rounding leaves nothing to gain.

    Arrays give arrays, tensors give tensors on their device. Classes that are text come back as an
    array in any case.

    References
    ----------
    .. [1] Liu, Nocedal. On the limited memory BFGS method for large scale optimization.
       Mathematical Programming 45, 1989.
    .. [2] Bohning. Multinomial logistic regression algorithm. Ann. Inst. Stat. Math. 44, 1992.

    Examples
    --------
    >>> import numpy as np
    >>> from pyfeat.heads import LogisticHead
    >>> X = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> LogisticHead().fit(X, ["cat", "cat", "dog", "dog"]).predict([[3.0]])
    array(['dog'], dtype='<U3')
    """

    classes_: NDArray[Any]
    coef_: NDArray[Any]
    intercept_: NDArray[Any]
    n_iter_: NDArray[np.int32]
    n_features_in_: int
    space_: Space | None

    def __init__(
        self,
        *,
        C: float = 1.0,
        class_weight: Mapping[Any, float] | str | None = None,
        fit_intercept: bool = True,
        max_iter: int = 500,
        tol: float = 1e-4,
        masked_label: int | str | bool | None = None,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.masked_label = masked_label

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | Tensor | None = None) -> LogisticHead:
        """Learn from rows and their labels.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (n, d)
        y : array-like or Tensor of shape (n,)
            Numbers, text or bools.
        sample_weight : array-like or Tensor of shape (n,), optional
            Not negative.

        Returns
        -------
        self : LogisticHead

        Raises
        ------
        ValueError
            If a parameter is out of range, X or y have another shape or hold NaN, the squares of X
            overflow, y holds fewer than two classes, or weights are negative, not finite or all 0.
        TypeError
            If a parameter is not a number, or a tensor does not hold floating point numbers.
        """
        check_positive("C", self.C)
        check_positive("tol", self.tol)
        check_positive("max_iter", self.max_iter, Integral)
        rows = check_rows(self, X, reset=True)
        labels, kept = check_labels(y, rows, self.masked_label)
        weights = check_sample_weight(to_numpy(sample_weight), len(kept))
        weights[~kept] = 0.0
        self.classes_, known = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y must hold at least 2 classes, got {len(self.classes_)} class: "
                f"{self.classes_.tolist()}"
            )
        # The code of a masked row is arbitrary: its weight is 0.
        codes = np.zeros(len(kept), dtype=np.int64)
        codes[kept] = known
        by_class = class_weight_of_rows(self.class_weight, self.classes_, codes, weights)
        with np.errstate(over="ignore"):  # `total_weight` refuses it
            weights *= by_class
        found = self._minimise(rows, codes, weights)
        theta = found.x.to(working_dtype(rows)).cpu().numpy()
        self.coef_ = np.ascontiguousarray(theta[:, :-1])
        self.intercept_ = np.ascontiguousarray(theta[:, -1])
        self.n_iter_ = np.array([found.n_iter], dtype=np.int32)
        self.space_ = space_of(X)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learned, the parameters and the space to one safetensors file.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        NotFittedError
            If there is nothing to save.
        TypeError
            If the classes are objects other than text.
        """
        check_is_fitted(self)
        are_objects = bool(self.classes_.dtype == object)
        are_text = are_objects and all(isinstance(name, str) for name in self.classes_)
        arrays = {
            "classes": self.classes_.astype(str) if are_text else self.classes_,
            "coef": self.coef_,
            "intercept": self.intercept_,
            "n_iter": self.n_iter_,
        }
        save_estimator(path, self, arrays, {"classes_are_objects": are_objects})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LogisticHead:
        """Read a head that `save` wrote.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        head : LogisticHead
            Fitted.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file holds something else.
        """
        head, arrays, facts = load_estimator(path, cls)
        classes = arrays["classes"]
        head.classes_ = classes.astype(object) if facts["classes_are_objects"] else classes
        head.coef_, head.intercept_ = arrays["coef"], arrays["intercept"]
        head.n_iter_ = arrays["n_iter"]
        return head

    def _minimise(self, rows: Rows, codes: NDArray[Any], weights: NDArray[Any]) -> Minimum:
        device, total = device_of(rows), total_weight(weights)
        problem = Problem(
            X=rows,
            labels=torch.from_numpy(codes).to(device),
            weights=torch.from_numpy(weights / total).to(device, working_dtype(rows)),
            outputs=1 if len(self.classes_) == 2 else len(self.classes_),
            l2=1.0 / (self.C * total),
            fit_intercept=self.fit_intercept,
        )
        found = solve(problem, tol=self.tol, max_iter=self.max_iter)
        if not found.converged:
            warnings.warn(
                f"LogisticHead did not converge to tol={self.tol} in {found.n_iter} steps; "
                "raise max_iter or tol, or lower C",
                ConvergenceWarning,
                stacklevel=3,
            )
        return found
