"""Bytes to pixels: whatever a file holds becomes RGB, or an `InputError` that says why not."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pyfeat.errors import InputError

# What Pillow's readers raise for damaged files: each reports in its own way.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    AttributeError,
    ImportError,  # a reader that this build of Pillow lacks
    Warning,  # where warnings are errors and another thread has just put the filters back
    struct.error,
    zlib.error,
)
_TOO_LARGE = (Image.DecompressionBombError, MemoryError)

# These readers start other programs.
_UNSAFE_FORMATS = ("EPS", "WMF")

# The entry of `warnings.filters` that silences Pillow.
_SILENCE = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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


def decode_image(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return the pixels of an image file.

    Parameters
    ----------
    content : bytes
        The file, in any format that Pillow reads by itself. Of an animation the first frame.
    name : str
        Path or position, for messages.

    Returns
    -------
    image : ndarray of shape (h, w, 3), uint8
        RGB, upright (EXIF orientation applied), alpha dropped without blending.

    Raises
    ------
    InputError
        If the file is empty, no image, damaged, truncated, or larger than Pillow's limit
        (`PIL.Image.MAX_IMAGE_PIXELS`, twice); or if its pixels are floating point.

    Notes
    -----
    16-bit grey levels become round(x / 257). Pillow's own warnings about damaged metadata are
    silenced in this process from the first call on: they say nothing about the pixels.
    """
    if not content:
        raise InputError(name, "it is empty")
    _silence_pillow()
    try:
        Image.init()
        formats = [f for f in Image.OPEN if f not in _UNSAFE_FORMATS]
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return _to_rgb(image, name)
    except UnidentifiedImageError:
        raise InputError(name, "it is not an image in a format that Pillow reads") from None
    except InputError:
        raise
    except _TOO_LARGE as error:
        raise InputError(name, _too_large(error)) from error
    except _DAMAGED as error:
        raise InputError(name, _damage(error)) from error


def image_from_pil(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Return the pixels of a PIL image, treated like those of a file (see `decode_image`).

    Raises
    ------
    InputError
        If it cannot be loaded, is closed, or holds floating point.
    """
    _silence_pillow()
    try:
        return _to_rgb(image, name)
    except InputError:
        raise
    except _TOO_LARGE as error:
        raise InputError(name, _too_large(error)) from error
    except _DAMAGED as error:
        raise InputError(name, _damage(error)) from error


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


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    image.load()
    if 0 in image.size:
        raise InputError(name, "it has no pixels")
    upright = _UPRIGHT.get(_orientation(image))
    if upright is not None:
        image = image.transpose(upright)
    if image.mode == "F":
        raise InputError(name, "its pixels are floating point, whose range is not known")
    if image.mode.startswith("I"):
        return image_from_array(_to_8_bits(np.asarray(image), name), name)
    if image.mode == "La":  # grey premultiplied by alpha, which converts in this step only
        image = image.convert("LA")
    # The copy is writable: torch complains about memory that is not.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    # After load(): a TIFF has been turned by then, and says so.
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGED:  # broken metadata beside good pixels
        return 1


def _to_8_bits(levels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65535:
        raise InputError(name, f"its grey levels must be in [0, 65535], got [{low}, {high}]")
    # 65535 = 255 * 257, and 257 is odd: adding 128 rounds to the nearest, without ties.
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _too_large(error: BaseException) -> str:
    return f"it is too large: {error or 'out of memory'}"


def _damage(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    truncated = isinstance(error, EOFError) or "truncat" in text.lower()
    return f"it is {'truncated' if truncated else 'damaged'}: {text}"


def _silence_pillow() -> None:
    # Not catch_warnings: it swaps the filters of all threads, and images are decoded on several.
    if not warnings.filters or warnings.filters[0] != _SILENCE:
        warnings.filterwarnings("ignore", module=_SILENCE[3].pattern)
