"""Rows as torch tensors, block by block, and answers in the kind that was handed in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import assert_all_finite, check_array
from sklearn.utils.validation import validate_data
from torch import Tensor

from pyfeat._rows import RowStream, is_stream, row_blocks

Rows = NDArray[Any] | Tensor | RowStream

# Rows of one block plus what is computed from them stay in a core's share of the cache; a GPU
# wants enough rows to fill it.
BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
MIN_BLOCK_ROWS = 256
FLOATS = (np.float64, np.float32, np.float16)


def check_rows(estimator: Any, X: Any, *, reset: bool, min_samples: int = 1) -> Rows:
    """Return X as rows to compute with, after scikit-learn's checks of shape, dtype and names.

    Parameters
    ----------
    estimator : estimator
        Gets, or is held to, `n_features_in_` and `feature_names_in_`.
    X : array-like, Tensor or RowStream of shape (n, d)
        float16, float32 and float64 are kept; other numbers of an array-like become float64.
    reset : bool
        True in `fit`.
    min_samples : int, default=1
        Smallest n.

    Returns
    -------
    X : ndarray, Tensor or RowStream
        The rows of a stream are checked for NaN when they are read.

    Raises
    ------
    ValueError
        If X has another shape, holds NaN or infinity, or has other columns than the fitted ones.
    TypeError
        If X is sparse, or a tensor that does not hold real floating point numbers.
    """
    if not (isinstance(X, Tensor) or is_stream(X)):
        return validate_data(  # type: ignore[no-any-return]
            estimator, X, dtype=FLOATS, reset=reset, ensure_min_samples=min_samples
        )
    rows = check_plain_rows(X, "X", min_samples=min_samples)
    validate_data(estimator, rows, reset=reset, skip_check_array=True)
    return rows


def check_plain_rows(X: Any, name: str, *, min_samples: int = 1) -> Rows:
    """Return X as rows to compute with, where there is no estimator; see `check_rows`."""
    if not (isinstance(X, Tensor) or is_stream(X)):
        return check_array(  # type: ignore[no-any-return]
            X, dtype=FLOATS, input_name=name, ensure_min_samples=min_samples
        )
    if len(X.shape) != 2 or X.shape[0] < min_samples or X.shape[1] < 1:
        rule = f"have shape (n, d), n at least {min_samples} and d at least 1"
        raise ValueError(f"{name} must {rule}, got {tuple(X.shape)}")
    if isinstance(X, Tensor):
        if X.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TypeError(f"{name} must hold floating point numbers, got {X.dtype}")
        X = X.detach()
        refuse_non_finite(X)
    return X  # type: ignore[no-any-return]


def working_dtype(X: Rows) -> torch.dtype:
    """Return float64 for float64 rows and float32 for all others."""
    return torch.float64 if X.dtype in (torch.float64, np.dtype(np.float64)) else torch.float32


def device_of(X: Rows) -> torch.device:
    """Return where X is computed with: a tensor's own device, else the CPU."""
    return X.device if isinstance(X, Tensor) else torch.device("cpu")


def block_rows(X: Rows) -> int:
    """Return how many rows of X to compute with at a time."""
    row_bytes = X.shape[1] * torch.finfo(working_dtype(X)).bits // 8
    return max(MIN_BLOCK_ROWS, BLOCK_BYTES.get(device_of(X).type, BLOCK_BYTES["cpu"]) // row_bytes)


def tensor_blocks(X: Rows, max_rows: int) -> Iterator[tuple[slice | Tensor, Tensor]]:
    """Yield (positions, rows): rows in the working dtype, positions as an index into (n,).

    Raises
    ------
    ValueError
        If a row of a stream holds NaN or infinity.
    """
    dtype = working_dtype(X)
    if isinstance(X, Tensor):
        for start in range(0, len(X), max_rows):
            rows = X[start : start + max_rows].to(dtype)
            yield slice(start, start + len(rows)), rows
    elif is_stream(X):
        for positions, block in row_blocks(X, max_rows):
            rows = _from_numpy(block).to(dtype)
            refuse_non_finite(rows)
            yield torch.from_numpy(np.asarray(positions, dtype=np.int64)), rows
    else:
        for start in range(0, len(X), max_rows):  # type: ignore[arg-type]
            rows = _from_numpy(X[start : start + max_rows]).to(dtype)  # type: ignore[index]
            yield slice(start, start + len(rows)), rows


def like_input(X: Rows, result: Tensor) -> Any:
    """Return a tensor when X is one, else an array."""
    return result if isinstance(X, Tensor) else result.numpy()


def to_numpy(values: Any) -> Any:
    """Return a tensor as an array in main memory, and anything else as it is."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def label_array(y: Any) -> NDArray[Any]:
    """Return labels as an array, where text and numbers of a list stay what they are."""
    values = np.asarray(to_numpy(y))
    if isinstance(y, (list, tuple)) and values.dtype.kind == "U":
        objects = np.array(y, dtype=object)
        if not all(isinstance(label, str) for label in objects.flat):
            return objects
    return values


def is_missing(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which labels are None, NaN, or pandas' NA or NaT, in the shape of `labels`."""
    if labels.dtype.kind == "f":
        return np.asarray(np.isnan(labels))
    if labels.dtype.kind != "O":
        return np.zeros(labels.shape, dtype=bool)
    # Only who has imported pandas can hold its NA, which does not even compare.
    na = getattr(sys.modules.get("pandas"), "NA", None)
    found = [label is None or label is na or _is_nan(label) for label in labels.flat]
    return np.array(found, dtype=bool).reshape(labels.shape)


def _is_nan(label: Any) -> bool:
    return bool(label != label)  # noqa: PLR0124  # so it is for NaN and NaT alone


def _from_numpy(block: NDArray[Any]) -> Tensor:
    # torch cannot share memory that is read-only or runs backwards: such a block is copied.
    if block.flags.writeable and min(block.strides, default=0) >= 0:
        return torch.from_numpy(block)
    return torch.from_numpy(block.copy())


def refuse_non_finite(rows: Tensor) -> None:
    """Raise scikit-learn's ValueError if a row holds NaN or infinity."""
    # A sum carries every NaN and infinity along; only an overflow needs the second look.
    if not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():
        assert_all_finite(rows.float().cpu().numpy(), input_name="X")
