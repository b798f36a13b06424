"""What a caller hands in, read: files, PIL images and arrays become bytes or RGB pixels."""

from __future__ import annotations

import os
import stat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyfeat.errors import InputError
from pyfeat.ops._decode_reference import input_errors, rgb_of

_ARRAY_RULE = "array must be uint8 of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4)"


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a regular file.

    Parameters
    ----------
    path : path-like
        A pipe or a device is refused at once, without waiting for its data.

    Raises
    ------
    InputError
        If there is no such file, it is no regular file, it may not or cannot be read, or is empty.
    """
    name = os.fspath(path)
    try:
        # O_NONBLOCK: opening a pipe would wait for a writer.
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            with open(descriptor, "rb", closefd=False) as f:
                content = f.read() if stat.S_ISREG(mode) else None
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise InputError(name, "there is no such file") from None
    except IsADirectoryError:
        raise InputError(name, "it is a directory") from None
    except OSError as error:
        raise InputError(name, f"it cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise InputError(name, "it does not fit in memory") from None
    except ValueError as error:  # a null byte in the name
        raise InputError(name, f"it cannot be read: {error}") from error
    if not content:
        raise InputError(name, "it is not a regular file" if content is None else "it is empty")
    return content


def image_from_pil(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Return the pixels of a PIL image, treated like those of a file (see `pyfeat.ops.decode`).

    Raises
    ------
    InputError
        If it cannot be loaded, is closed, or holds floating point.
    """
    with input_errors(name):
        return rgb_of(image, name)


def image_from_array(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Return an array as (h, w, 3): grey levels repeated, alpha dropped.

    Parameters
    ----------
    array : ndarray of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), uint8
        Not changed. RGB is returned as it is, RGBA as a view.
    name : str
        Position, for messages.

    Raises
    ------
    InputError
        If dtype or shape are others, or there are no pixels.
    """
    if array.dtype != np.uint8:
        raise InputError(name, f"{_ARRAY_RULE}, got {array.dtype}")
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {1, 3, 4})
    if not fits or array.size == 0:
        raise InputError(name, f"{_ARRAY_RULE}, got shape {array.shape}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return array[:, :, :3]
