"""Scores, probabilities and classes from the coefficients of a fitted linear classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyfeat._identity import Space, check_rows_space
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


class LinearScores:
    """What a classifier with `classes_`, `coef_`, `intercept_` and `space_` says about rows."""

    classes_: NDArray[Any]
    coef_: NDArray[Any]
    intercept_: NDArray[Any]
    space_: Space | None

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
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (n, d)

        Returns
        -------
        probabilities : ndarray or Tensor of shape (n, k)
            In the order of `classes_`; float32, or float64 if X is. Range [0, 1], rows sum to 1.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If X has other columns than the fitted rows, or holds NaN.
        SpaceError
            If X says that it comes from another space than the fitted rows.
        """
        rows = self._check_fitted(X)
        return like_input(rows, self._scores(rows, _log_probabilities).exp_())

    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithm of `predict_proba`, without its underflow.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (n, d)

        Returns
        -------
        log_probabilities : ndarray or Tensor of shape (n, k)
            In the order of `classes_`; float32, or float64 if X is. Range (-inf, 0].

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If X has other columns than the fitted rows, or holds NaN.
        SpaceError
            If X says that it comes from another space than the fitted rows.
        """
        rows = self._check_fitted(X)
        return like_input(rows, self._scores(rows, _log_probabilities))

    def predict(self, X: Any) -> Any:
        """Return the most probable class of each row.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (n, d)

        Returns
        -------
        labels : ndarray or Tensor of shape (n,)
            Values of `classes_`. A tensor if X is one and the classes are numbers or bools.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If X has other columns than the fitted rows, or holds NaN.
        SpaceError
            If X says that it comes from another space than the fitted rows.
        """
        rows = self._check_fitted(X)
        codes = self._scores(rows, _winner)[:, 0]
        if isinstance(rows, Tensor) and self.classes_.dtype.kind in "biuf":
            return torch.from_numpy(self.classes_).to(rows.device)[codes]
        return self.classes_[codes.cpu().numpy()]

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | Tensor | None = None) -> float:
        """Return the share of rows that `predict` gets right.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (n, d)
        y : array-like or Tensor of shape (n,)
            True labels.
        sample_weight : array-like or Tensor of shape (n,), optional
            What each row counts.

        Returns
        -------
        accuracy : float
            Range [0, 1].

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If X has other columns than the fitted rows or holds NaN, or y another length.
        SpaceError
            If X says that it comes from another space than the fitted rows.
        """
        predicted = to_numpy(self.predict(X))
        return float(accuracy_score(to_numpy(y), predicted, sample_weight=to_numpy(sample_weight)))

    def _check_fitted(self, X: Any) -> Rows:
        check_is_fitted(self)
        check_rows_space(self.space_, X, "X")
        return check_rows(self, X, reset=False)

    def _prepared(self, block: Tensor) -> Tensor:
        """Return rows as they are multiplied with `coef_`."""
        return block

    def _scores(self, rows: Rows, finish: Callable[[Tensor], Tensor]) -> Tensor:
        device, dtype = device_of(rows), working_dtype(rows)
        weight = torch.from_numpy(self.coef_).to(device, dtype).T
        bias = torch.from_numpy(self.intercept_).to(device, dtype)
        out = None
        for positions, block in tensor_blocks(rows, block_rows(rows)):
            part = finish(torch.addmm(bias, self._prepared(block), weight))
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
