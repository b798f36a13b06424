"""Bytes to pixels by Pillow: whatever a file holds becomes RGB, or an `InputError` says why not."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pyfeat.errors import InputError

# What Pillow's readers raise for damaged files: each reports in its own way.
DAMAGED = (
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
TOO_LARGE = (Image.DecompressionBombError, MemoryError)

# These readers start other programs.
_UNSAFE_FORMATS = ("EPS", "WMF")

# Both are read by Pillow's one JPEG reader; an MPO file is a JPEG file with more images behind it.
_JPEG_FORMATS = ("JPEG", "MPO")

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

# Scales of the inverse DCT that are cheaper than the whole one. 5/8 to 7/8 are dearer, 3/8 is no
# power of two that Pillow knows.
_REDUCTIONS = (8, 4, 2)
_LEAST_REDUCED = 16  # below, two of libjpeg's scales may give one size, and it takes the other


def reduction(height: int, width: int, target: int | None) -> int:
    """Return 1, 2, 4 or 8: how much smaller a JPEG may be decoded with a short side >= target."""
    short = min(height, width)
    if target is None or short < _LEAST_REDUCED:
        return 1
    return next((f for f in _REDUCTIONS if -(-short // f) >= target), 1)


def decode_by_pillow(content: bytes, target: int | None, name: str) -> NDArray[np.uint8]:
    """Return the pixels (h, w, 3) of an image file; `target` as in `reduction`.

    Raises
    ------
    InputError
        If the file is empty, no image, damaged, truncated, or too large.
    """
    if not content:
        raise InputError(name, "it is empty")
    with input_errors(name):
        Image.init()
        formats = [f for f in Image.OPEN if f not in _UNSAFE_FORMATS]
        with Image.open(io.BytesIO(content), formats=formats) as image:
            if image.format in _JPEG_FORMATS:
                factor = reduction(image.height, image.width, target)
                if factor > 1:
                    image.draft(None, (image.width // factor, image.height // factor))
            return rgb_of(image, name)


@contextmanager
def input_errors(name: str) -> Iterator[None]:
    """Turn what Pillow raises for an image into an `InputError` that names it; silence Pillow."""
    silence_pillow()
    try:
        yield
    except UnidentifiedImageError:
        raise InputError(name, "it is not an image in a format that Pillow reads") from None
    except InputError:
        raise
    except TOO_LARGE as error:
        raise InputError(name, f"it is too large: {error or 'out of memory'}") from error
    except DAMAGED as error:
        raise InputError(name, _damage(error)) from error


def rgb_of(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Load an image; return its pixels (h, w, 3), upright, without alpha.

    Raises
    ------
    InputError
        If there are no pixels, or their range is not known.
    """
    image.load()
    if 0 in image.size:
        raise InputError(name, "it has no pixels")
    # After load(): a TIFF has been turned by then, and says so.
    upright = _UPRIGHT.get(orientation_of(image))
    if upright is not None:
        image = image.transpose(upright)
    if image.mode == "F":
        raise InputError(name, "its pixels are floating point, whose range is not known")
    if image.mode.startswith("I"):
        return np.repeat(_to_8_bits(np.asarray(image), name)[:, :, None], 3, axis=2)
    if image.mode == "La":  # grey premultiplied by alpha, which converts in this step only
        image = image.convert("LA")
    # The copy is writable: torch complains about memory that is not.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, in [1, 8] where the file is sound."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGED:  # broken metadata beside good pixels
        return 1


def _to_8_bits(levels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65535:
        raise InputError(name, f"its grey levels must be in [0, 65535], got [{low}, {high}]")
    # 65535 = 255 * 257, and 257 is odd: adding 128 rounds to the nearest, without ties.
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _damage(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    truncated = isinstance(error, EOFError) or "truncat" in text.lower()
    return f"it is {'truncated' if truncated else 'damaged'}: {text}"


def silence_pillow() -> None:
    """Keep Pillow's warnings about damaged metadata from being shown or raised, from now on."""
    # Not catch_warnings: it swaps the filters of all threads, and images are decoded on several.
    if not warnings.filters or warnings.filters[0] != _SILENCE:
        warnings.filterwarnings("ignore", module=_SILENCE[3].pattern)
