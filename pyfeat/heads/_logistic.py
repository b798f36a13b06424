"""Logistic regression on rows: scikit-learn's objective and contract, on any device or a stream."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyfeat._estimator_file import load_estimator, save_estimator
from pyfeat._identity import Space, check_rows_space, space_of
from pyfeat._tensors import (
    Rows,
    block_rows,
    check_rows,
    device_of,
    like_input,
    tensor_blocks,
    to_numpy,
    working_dtype,
)
from pyfeat.heads._lbfgs import Minimum
from pyfeat.heads._softmax import Problem, solve
from pyfeat.heads._weights import check_sample_weight, class_weight_of_rows


class LogisticHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
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
        Rows with this label are left out of `fit`. -1 is what target rows are masked with behind
        `pyfeat.align.CORAL`. By default every label is a class.

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
    rows, 22 times the parameters, and (d, d) where that pays.

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
            If a parameter is out of range, X or y have another shape or hold NaN, or y holds fewer
            than two classes.
        """
        self._check_parameters()
        rows = check_rows(self, X, reset=True)
        labels = self._check_labels(y, rows)
        weights = check_sample_weight(to_numpy(sample_weight), len(labels))
        kept = self._kept(labels)
        weights[~kept] = 0.0
        self.classes_ = np.unique(labels[kept])
        if len(self.classes_) < 2:
            raise ValueError(
                f"y must hold at least 2 classes, got {len(self.classes_)} class: "
                f"{self.classes_.tolist()}"
            )
        # The code of a masked row is arbitrary: its weight is 0.
        codes = np.searchsorted(self.classes_, labels).clip(max=len(self.classes_) - 1)
        weights *= class_weight_of_rows(self.class_weight, self.classes_, codes, weights)
        found = self._minimise(rows, codes, weights)
        theta = found.x.to(working_dtype(rows)).cpu().numpy()
        self.coef_ = np.ascontiguousarray(theta[:, :-1])
        self.intercept_ = np.ascontiguousarray(theta[:, -1])
        self.n_iter_ = np.array([found.n_iter], dtype=np.int32)
        self.space_ = space_of(X)
        return self

    def decision_function(self, X: Any) -> Any:
        """Return X coef^T + intercept.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (n, d)

        Returns
        -------
        scores : ndarray or Tensor of shape (n, k), or (n,) for two classes
            float32, or float64 if X is.

        Raises
        ------
        ValueError
            If X has other columns than the fitted rows, or holds NaN.
        SpaceError
            If X says that it comes from another space than the fitted rows.
        """
        rows = self._check_fitted(X)
        scores = self._scores(rows, lambda z: z)
        return like_input(rows, scores[:, 0] if len(self.classes_) == 2 else scores)

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class, shape (n, k); see `decision_function`."""
        rows = self._check_fitted(X)
        return like_input(rows, self._scores(rows, _log_probabilities).exp_())

    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithm of `predict_proba`, without its underflow."""
        rows = self._check_fitted(X)
        return like_input(rows, self._scores(rows, _log_probabilities))

    def predict(self, X: Any) -> Any:
        """Return the most probable class of each row, shape (n,); see `decision_function`.

        A tensor gives a tensor if the classes are numbers or bools, and an array if they are text.
        """
        rows = self._check_fitted(X)
        codes = self._scores(rows, _winner)[:, 0]
        if isinstance(rows, Tensor) and self.classes_.dtype.kind in "biuf":
            return torch.from_numpy(self.classes_).to(rows.device)[codes]
        return self.classes_[codes.cpu().numpy()]

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | Tensor | None = None) -> float:
        """Return the share (or weight) of rows that `predict` gets right."""
        predicted = to_numpy(self.predict(X))
        return float(accuracy_score(to_numpy(y), predicted, sample_weight=to_numpy(sample_weight)))

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

    def _check_parameters(self) -> None:
        for name in ("C", "tol", "max_iter"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")

    def _check_labels(self, y: Any, rows: Rows) -> NDArray[Any]:
        if y is None:
            raise ValueError("LogisticHead requires y to be passed, but the target y is None")
        labels: NDArray[Any] = column_or_1d(to_numpy(y), warn=True)
        check_consistent_length(rows, labels)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        return labels

    def _kept(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        if self.masked_label is None:
            return np.ones(len(labels), dtype=bool)
        # As objects, numbers and text compare without a fuss.
        return np.asarray(labels.astype(object) != self.masked_label, dtype=bool)

    def _minimise(self, rows: Rows, codes: NDArray[Any], weights: NDArray[Any]) -> Minimum:
        device, total = device_of(rows), float(weights.sum())
        problem = Problem(
            X=rows,
            labels=torch.from_numpy(codes.astype(np.int64)).to(device),
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

    def _check_fitted(self, X: Any) -> Rows:
        check_is_fitted(self)
        check_rows_space(self.space_, X, "X")
        return check_rows(self, X, reset=False)

    def _scores(self, rows: Rows, finish: Callable[[Tensor], Tensor]) -> Tensor:
        device, dtype = device_of(rows), working_dtype(rows)
        weight = torch.from_numpy(self.coef_).to(device, dtype).T
        bias = torch.from_numpy(self.intercept_).to(device, dtype)
        out = None
        for positions, block in tensor_blocks(rows, block_rows(rows)):
            part = finish(torch.addmm(bias, block, weight))
            if out is None:
                out = part.new_empty((rows.shape[0], part.shape[1]))
            out[positions] = part
        return out  # type: ignore[return-value]  # check_rows refuses empty X


def _log_probabilities(z: Tensor) -> Tensor:
    if z.shape[1] == 1:
        return torch.nn.functional.logsigmoid(torch.cat([-z, z], dim=1))
    return torch.log_softmax(z, dim=1)


def _winner(z: Tensor) -> Tensor:
    return (z > 0).long() if z.shape[1] == 1 else z.argmax(dim=1, keepdim=True)
