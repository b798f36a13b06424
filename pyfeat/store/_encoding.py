"""Rows of floats as the bytes that a store keeps, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat import _core
from pyfeat._config import num_threads
from pyfeat.store._layout import ITEM_BYTES, SCALE_BYTES

# csrc/cpu/item.h has the same numbering.
ITEM = {"float32": 0, "float16": 1, "bfloat16": 2, "int8": 3}


def encode(rows: NDArray[Any], dtype: str) -> NDArray[np.uint8]:
    """Return rows as a tail has them.

    Parameters
    ----------
    rows : ndarray of shape (n, d), floating point
    dtype : {"float32", "float16", "bfloat16", "int8"}

    Returns
    -------
    raw : ndarray of shape (n, row bytes), uint8
        For int8 the float32 scale and then the codes, by the rules of `pyfeat.ops.quantize_rows`:
        the codes of a row that holds NaN or infinity are 0, and its scale is NaN.
    """
    n, d = rows.shape
    width = d * ITEM_BYTES[dtype]
    if dtype in ("float32", "float16"):
        return np.ascontiguousarray(rows, dtype).view(np.uint8).reshape(n, width)
    values = np.ascontiguousarray(rows, np.float32)
    raw = np.empty((n, width), np.uint8)
    scales = np.empty((n, 1), np.float32)
    _core.quantize_rows(
        values.ctypes.data,
        ITEM["float32"],
        d,
        n,
        d,
        ITEM[dtype],
        raw.ctypes.data,
        scales.ctypes.data,
        num_threads(),
    )
    return np.concatenate([scales.view(np.uint8), raw], axis=1) if SCALE_BYTES[dtype] else raw


def decode(raw: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """Return rows from what `encode` gave.

    Parameters
    ----------
    raw : ndarray of shape (n, row bytes), uint8, contiguous
    dtype : {"float32", "float16", "bfloat16", "int8"}

    Returns
    -------
    rows : ndarray of shape (n, d), float32, or float16 where `dtype` is that
        Of an int8 row scale * code, rounded to float32.
    """
    if dtype in ("float32", "float16"):
        return raw.view(dtype)
    n, size = raw.shape
    skipped = SCALE_BYTES[dtype]
    d = (size - skipped) // ITEM_BYTES[dtype]
    scales = np.ascontiguousarray(raw[:, :skipped])
    rows = np.empty((n, d), np.float32)
    _core.dequantize_rows(
        raw.ctypes.data + skipped,
        ITEM[dtype],
        size // ITEM_BYTES[dtype],
        n,
        d,
        scales.ctypes.data if skipped else 0,
        ITEM["float32"],
        rows.ctypes.data,
        num_threads(),
    )
    return rows


def as_kept(rows: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return rows as a store of that dtype gives them back, bit for bit.

    Parameters
    ----------
    rows : ndarray of shape (n, d), floating point
    dtype : {"float32", "float16", "bfloat16", "int8"}

    Returns
    -------
    rows : ndarray of shape (n, d), float32, or float16 where `dtype` is that

    Notes
    -----
    int8 is rounded once: the scale of a row that was read may, rounded again, differ in its last
    bit.

    Examples
    --------
    >>> as_kept(np.array([[0.5, -2.0, 1.0]], np.float32), "int8").round(3)
    array([[ 0.504, -2.   ,  1.008]], dtype=float32)
    """
    return decode(encode(rows, dtype), dtype)
