"""What `transform` accepts, as one list of named inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyfeat._identity import array_key, content_key
from pyfeat.errors import InputError
from pyfeat.extract._readers import Content, Reader

CHANNELS = (1, 3, 4)


@runtime_checkable
class Readable(Protocol):
    """Where bytes are, to be read when their turn comes: a member of a tar, a cell, an address.

    Small, and can be pickled: a job hands it to the thread or the process that reads it.
    """

    def read(self) -> bytes:
        """Return the bytes of the file, UTF-8 of a text; raise InputError if they cannot be read.

        Any number of threads may call it, any number of times.
        """
        ...


@dataclass(frozen=True)
class Input:
    """One input in whatever form it came.

    Parameters
    ----------
    name : str
        Path, or the position in the input, for messages.
    value : path-like, bytes, str, PIL image, ndarray or Readable
    """

    name: str
    value: Any


def content_of(reader: Reader, item: Input) -> Content:
    """Return what the key of an input is taken of.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    value = item.value
    if isinstance(value, Readable):
        value = value.read()
        if not isinstance(value, bytes):
            raise InputError(item.name, f"must be read as bytes, got {type(value).__name__}")
        if not value:
            raise InputError(item.name, "it is empty")
    return reader.content(value, item.name)


def key_of(content: Content) -> bytes:
    """Return the key of an input's content."""
    return content_key(content) if isinstance(content, (bytes, str)) else array_key(content)


def as_inputs(X: Any, modality: str = "image") -> list[Input]:
    """Return the inputs of `transform` one by one.

    Parameters
    ----------
    X : iterable of path-like, bytes, PIL image or uint8 array; or one array
        Lists, object arrays, pandas and polars columns; one array of shape (n, h, w, c) is a batch,
        one of shape (h, w, c) a single image.
    modality : {"image", "text", "audio", "video"}
        What the backbone takes: to one of texts, a str is a text and no path; to one of videos, an
        array (n, t, h, w, 3) is a batch and (t, h, w, 3) a single video.

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
    values = _column(X, modality)
    return [Input(_name(v, i, modality), v) for i, v in enumerate(values)]


def _column(X: Any, modality: str) -> Iterable[Any]:
    if hasattr(X, "columns") and hasattr(X, "shape"):  # a pandas or polars table
        if X.shape[1] != 1:
            raise ValueError(f"X must have one column of inputs, got {X.shape[1]} columns")
        return list(X[X.columns[0]])
    if isinstance(X, np.ndarray) or (hasattr(X, "detach") and hasattr(X, "numpy")):
        return _array_column(np.asarray(X), modality)
    if not isinstance(X, Iterable):
        raise TypeError(f"X must be a list of inputs, got {type(X).__name__}")
    return X


def _array_column(X: NDArray[Any], modality: str) -> Iterable[Any]:
    if X.dtype.kind in "OU":
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1:
            raise ValueError(f"X must have one column of inputs, got shape {X.shape}")
        return list(X)
    if modality == "video" and X.ndim in {4, 5}:
        return list(X) if X.ndim == 5 else [X]
    if X.ndim == 4 or (modality == "audio" and X.ndim == 2):
        return list(X)
    if X.ndim == 3 and X.shape[2] in CHANNELS:
        return [X]
    shapes = "(n, samples)" if modality == "audio" else "(n, h, w, c) or (h, w, c)"
    raise ValueError(f"X must have shape {shapes} when it is one array, got {X.shape}")


def _name(value: Any, position: int, modality: str) -> str:
    is_path = isinstance(value, os.PathLike) or (isinstance(value, str) and modality != "text")
    return os.fspath(value) if is_path else f"X[{position}]"
