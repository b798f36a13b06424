"""What `transform` accepts, as one list of named inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pyfeat._identity import array_key, content_key
from pyfeat.errors import InputError
from pyfeat.extract._decode import image_from_array, image_from_pil, read_file
from pyfeat.ops import Preprocessing, decode_preprocess, preprocess

CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Input:
    """One image in whatever form it came.

    Parameters
    ----------
    name : str
        Path, or the position in the input, for messages.
    value : path-like, bytes, PIL image or ndarray
    """

    name: str
    value: Any

    def content(self) -> bytes | NDArray[Any]:
        """Return the bytes of a file, or the array of pixels: what the key is taken of.

        Raises
        ------
        InputError
            If it cannot be read, or is nothing that holds an image.
        """
        if isinstance(self.value, (str, os.PathLike)):
            return read_file(Path(self.value))
        if isinstance(self.value, (bytes, bytearray, memoryview)):
            return bytes(self.value)
        if isinstance(self.value, Image.Image):
            return image_from_pil(self.value, self.name)
        if isinstance(self.value, np.ndarray) or hasattr(self.value, "__array__"):
            return image_from_array(np.asarray(self.value), self.name)
        kind = type(self.value).__name__
        raise InputError(self.name, f"must be a path, bytes, a PIL image or an array, got {kind}")

    def tensor(
        self, content: bytes | NDArray[Any], preprocessing: Preprocessing, decode: str
    ) -> Tensor:
        """Return what a backbone takes, made of what `content` returned; `decode` is the mode.

        Raises
        ------
        InputError
            If the content is a file that cannot be decoded.
        """
        if isinstance(content, bytes):
            return decode_preprocess(content, preprocessing, mode=decode, name=self.name)
        return preprocess(content, preprocessing)


def key_of(content: bytes | NDArray[Any]) -> bytes:
    """Return the key of an input's content."""
    return content_key(content) if isinstance(content, bytes) else array_key(content)


def as_inputs(X: Any) -> list[Input]:
    """Return the inputs of `transform` one by one.

    Parameters
    ----------
    X : iterable of path-like, bytes, PIL image or uint8 array; or one array
        Lists, object arrays, pandas and polars columns; one array of shape (n, h, w, c) is a batch,
        one of shape (h, w, c) a single image.

    Returns
    -------
    inputs : list of Input

    Raises
    ------
    ValueError
        If X is a single path, or a table or array that is not one column of inputs.
    TypeError
        If X cannot be iterated.
    """
    if isinstance(X, (str, bytes, bytearray, os.PathLike, Image.Image)):
        raise ValueError(f"X must be a list of inputs, got a single {type(X).__name__}: write [X]")
    values = _column(X)
    return [Input(_name(v, i), v) for i, v in enumerate(values)]


def _column(X: Any) -> Iterable[Any]:
    if hasattr(X, "columns") and hasattr(X, "shape"):  # a pandas or polars table
        if X.shape[1] != 1:
            raise ValueError(f"X must have one column of inputs, got {X.shape[1]} columns")
        return list(X[X.columns[0]])
    if isinstance(X, np.ndarray) or (hasattr(X, "detach") and hasattr(X, "numpy")):
        return _array_column(np.asarray(X))
    if not isinstance(X, Iterable):
        raise TypeError(f"X must be a list of inputs, got {type(X).__name__}")
    return X


def _array_column(X: NDArray[Any]) -> Iterable[Any]:
    if X.dtype.kind in "OU":
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1:
            raise ValueError(f"X must have one column of inputs, got shape {X.shape}")
        return list(X)
    if X.ndim == 4:
        return list(X)
    if X.ndim == 3 and X.shape[2] in CHANNELS:
        return [X]
    raise ValueError(
        f"X must have shape (n, h, w, c) or (h, w, c) when it is one array, got {X.shape}"
    )


def _name(value: Any, position: int) -> str:
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else f"X[{position}]"
