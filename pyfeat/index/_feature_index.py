"""Nearest rows, by faiss."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyfeat._estimator_file import load_estimator, save_estimator
from pyfeat._identity import Space, check_rows_space, space_of
from pyfeat._tensors import Rows, block_rows, check_rows, tensor_blocks, to_numpy

KINDS = ("exact",)
METRICS = ("cosine", "inner_product", "l2")

# Between rows no longer than this, |x|^2 + |y|^2 + 2 |x y|, which faiss adds up, is at most 2^126:
# finite in float32 with room for rounding.
_LONGEST = 2.0**62


class FeatureIndex(BaseEstimator):  # type: ignore[misc]
    """Find the nearest rows among rows that were put in.

    Parameters
    ----------
    kind : {"exact"}, default="exact"
        "exact" compares a query with every row.
    metric : {"cosine", "inner_product", "l2"}, default="cosine"

    Attributes
    ----------
    index_ : faiss.Index
        Rows as float32, of unit length for "cosine", in the order in which they came.
    positions_ : ndarray of shape (n,), int64
        Position in X of each row of `index_`.
    ids_ : ndarray of shape (n,)
        Name of each row of X.
    metric_ : str
        `metric` when the rows came; setting `metric` later counts from the next `fit`.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (d,)
        Only if X had column names.
    space_ : Space or None
        Where the rows came from, if they said so.

    Notes
    -----
    Two faces: `kneighbors` keeps scikit-learn's conventions (distances that grow, positions),
    `search` keeps faiss's (scores, ids). Arrays give arrays, tensors give tensors on their device;
    ids that are text are an array in any case. A store view is read in blocks. Memory: 4 n d bytes.

    Rows are kept, and compared, in float32. "cosine" takes rows of any scale, and gives an all-zero
    row the cosine 0, hence the distance 1, to every row, itself included. "l2" and "inner_product"
    take rows up to a length of 2^62; products below the range of float32 count as 0, so Euclidean
    distances below about 1e-19 do.

    References
    ----------
    .. [1] Douze et al. The Faiss library. arXiv:2401.08281, 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from pyfeat.index import FeatureIndex
    >>> index = FeatureIndex(metric="l2").fit(np.eye(3), ids=["x", "y", "z"])
    >>> scores, ids = index.search([[0.0, 2.0, 0.0]], k=1)
    >>> scores.tolist(), ids.tolist()
    ([[1.0]], [['y']])
    """

    index_: Any
    positions_: NDArray[np.int64]
    ids_: NDArray[Any]
    n_features_in_: int
    metric_: str
    space_: Space | None

    def __init__(self, kind: str = "exact", *, metric: str = "cosine") -> None:
        self.kind = kind
        self.metric = metric

    def fit(self, X: Any, y: Any = None, *, ids: ArrayLike | Tensor | None = None) -> FeatureIndex:
        """Put rows in; those of an earlier `fit` are dropped once all new ones are in.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (n, d)
        y : ignored
        ids : array-like or Tensor of shape (n,), optional
            What `search` names rows by: integers or text. By default their positions.

        Returns
        -------
        self : FeatureIndex

        Raises
        ------
        ImportError
            If faiss is not installed.
        ValueError
            If `kind` or `metric` is unknown, X has no rows, holds NaN or has rows too long for the
            metric, or ids have another shape.
        TypeError
            If ids are neither integers nor text.
        """
        # Filled beside the old rows, so that a fit that fails leaves them as they were.
        filled = vars(clone(self)._fill(X, ids))
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        self.__dict__.update(filled)
        return self

    def _fill(self, X: Any, ids: ArrayLike | Tensor | None) -> FeatureIndex:
        self._check_parameters()
        rows = check_rows(self, X, reset=True)
        n, d = rows.shape
        self.ids_ = np.arange(n) if ids is None else _checked_ids(to_numpy(ids), n)
        self.metric_ = self.metric
        self.index_ = _empty_index(self.metric_, d)
        self.positions_ = np.empty(n, dtype=np.int64)
        everywhere = torch.arange(n)
        for positions, block in tensor_blocks(rows, block_rows(rows)):
            start = self.index_.ntotal
            self.index_.add(self._comparable(block))
            self.positions_[start : self.index_.ntotal] = everywhere[positions].numpy()
        self.space_ = space_of(X)
        return self

    def kneighbors(self, X: Any = None, n_neighbors: int = 5, return_distance: bool = True) -> Any:
        """Return the nearest rows by position, nearest first.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (m, d), optional
            Queries. By default the rows that were put in, none its own neighbour.
        n_neighbors : int, default=5
            Range [1, n], or [1, n - 1] without X.
        return_distance : bool, default=True

        Returns
        -------
        distances : ndarray or Tensor of shape (m, n_neighbors), float32
            1 - cosine for "cosine", the Euclidean distance for "l2", and the negative product for
            "inner_product". Only if `return_distance`.
        positions : ndarray or Tensor of shape (m, n_neighbors), int64

        Raises
        ------
        TypeError
            If `n_neighbors` is no integer.
        ValueError
            If `n_neighbors` is out of range, or X has another width, holds NaN or has rows too long
            for the metric.
        SpaceError
            If X says that it comes from another space than the rows.
        """
        check_is_fitted(self)
        n = self.index_.ntotal
        n_neighbors = _checked_count("n_neighbors", n_neighbors, n if X is not None else n - 1)
        if X is None:
            scores, found = self._own_neighbours(n_neighbors)
        else:
            scores, found = self._search(self._queries(X), n_neighbors)
        positions = _like(X, self.positions_[found])
        return (_like(X, self._distances(scores)), positions) if return_distance else positions

    def search(self, X: Any, k: int) -> tuple[Any, Any]:
        """Return the best rows by id, best first.

        Parameters
        ----------
        X : array-like, Tensor or store view of shape (m, d)
        k : int
            Range [1, n].

        Returns
        -------
        scores : ndarray or Tensor of shape (m, k), float32
            faiss's: the cosine, the inner product, or the squared Euclidean distance.
        ids : ndarray or Tensor of shape (m, k)

        Raises
        ------
        TypeError
            If k is no integer.
        ValueError
            If k is out of range, or X has another width, holds NaN or has rows too long for the
            metric.
        SpaceError
            If X says that it comes from another space than the rows.
        """
        check_is_fitted(self)
        k = _checked_count("k", k, self.index_.ntotal)
        scores, found = self._search(self._queries(X), k)
        return _like(X, scores), _like(X, self.ids_[self.positions_[found]])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write rows, ids, parameters and the space to one safetensors file.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        NotFittedError
            If there is nothing to save.
        """
        check_is_fitted(self)
        rows = self.index_.reconstruct_n(0, self.index_.ntotal)
        arrays = {"rows": rows, "positions": self.positions_, "ids": self.ids_}
        save_estimator(path, self, arrays, {"metric": self.metric_})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureIndex:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path-like

        Returns
        -------
        index : FeatureIndex
            Fitted.

        Raises
        ------
        ImportError
            If faiss is not installed.
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file holds something else.
        """
        index, arrays, facts = load_estimator(path, cls)
        index.metric_ = facts["metric"]
        index.index_ = _empty_index(index.metric_, index.n_features_in_)
        index.index_.add(arrays["rows"])
        index.positions_, index.ids_ = arrays["positions"], arrays["ids"]
        return index

    def _check_parameters(self) -> None:
        for name, allowed in (("kind", KINDS), ("metric", METRICS)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")

    def _queries(self, X: Any) -> Rows:
        check_rows_space(self.space_, X, "X")
        return check_rows(self, X, reset=False)

    def _comparable(self, block: Tensor) -> NDArray[np.float32]:
        rows = (_unit(block) if self.metric_ == "cosine" else block).float()
        lengths = torch.linalg.vector_norm(rows, dim=1)
        if (lengths > _LONGEST).any():
            rule = f"have rows no longer than 2^62 = {_LONGEST:.2g} for metric {self.metric_!r}"
            raise ValueError(f"X must {rule}, got {lengths.max().item():.2g}")
        return np.ascontiguousarray(rows.cpu().numpy())

    def _search(self, rows: Rows, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores = torch.empty((rows.shape[0], k), dtype=torch.float32)
        found = torch.empty((rows.shape[0], k), dtype=torch.int64)
        for positions, block in tensor_blocks(rows, block_rows(rows)):
            best = self.index_.search(self._comparable(block), k)
            scores[positions], found[positions] = map(torch.from_numpy, best)
        return scores.numpy(), found.numpy()

    def _own_neighbours(self, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        n = self.index_.ntotal
        scores, found = np.empty((n, k), dtype=np.float32), np.empty((n, k), dtype=np.int64)
        size = block_rows(np.empty((0, self.n_features_in_), dtype=np.float32))
        for start in range(0, n, size):
            numbers = np.arange(start, min(start + size, n))
            rows = self.index_.reconstruct_n(start, len(numbers))
            near_scores, near = self.index_.search(rows, k + 1)
            others = near != numbers[:, None]
            # Among more than k copies of one row, a row may miss itself: then the last is dropped.
            others[others.all(axis=1), -1] = False
            where = self.positions_[numbers]
            scores[where] = near_scores[others].reshape(-1, k)
            found[where] = near[others].reshape(-1, k)
        return scores, found

    def _distances(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.metric_ == "cosine":
            return (1.0 - scores).clip(0.0, 2.0)
        return np.sqrt(scores.clip(min=0.0)) if self.metric_ == "l2" else -scores


def _empty_index(metric: str, d: int) -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        install = 'pip install "pyfeat[index]", or "pyfeat[gpu]" on a CUDA machine'
        raise ImportError(f"FeatureIndex needs faiss: {install}") from None
    build: Callable[[int], Any] = faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP
    return build(d)


def _unit(rows: Tensor) -> Tensor:
    """Return rows of length 1, or 0 where they are all zero."""
    # Squares of what is left of a row after division by its peak neither overflow nor vanish.
    peaks = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / peaks.where(peaks > 0, 1)
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1)
    return unit


def _checked_ids(ids: ArrayLike, n: int) -> NDArray[Any]:
    names = np.asarray(ids)
    if names.shape != (n,):
        raise ValueError(f"ids must have shape ({n},), got {names.shape}")
    if names.dtype == object:
        if any(not isinstance(name, (str, os.PathLike)) for name in names):
            raise TypeError("ids must be integers or text, got other objects")
        return np.array([os.fspath(name) for name in names])
    if names.dtype.kind not in "iuU":
        raise TypeError(f"ids must be integers or text, got {names.dtype}")
    return names.astype(names.dtype.newbyteorder("="))  # torch takes no other byte order


def _checked_count(name: str, value: int, largest: int) -> int:
    try:
        count = operator.index(value)  # faiss takes no integer of numpy
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not 1 <= count <= largest:
        raise ValueError(f"{name} must be in [1, {largest}], got {count}")
    return count


def _like(X: Any, values: NDArray[Any]) -> Any:
    if isinstance(X, Tensor) and values.dtype.kind != "U":
        return torch.from_numpy(values).to(X.device)
    return values
