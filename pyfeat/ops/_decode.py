"""The bytes of an image file to pixels, and straight on to what a backbone takes."""

from __future__ import annotations

import io
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features
from torch import Tensor

from pyfeat.ops._decode_reference import (
    DAMAGED,
    TOO_LARGE,
    decode_by_pillow,
    orientation_of,
    reduction,
    silence_pillow,
)
from pyfeat.ops._dispatch import Backend, choose, never_refuses
from pyfeat.ops._preprocess import Preprocessing, preprocess

Content = bytes | bytearray | memoryview
DECODE_MODES = ("exact", "fast")

_JPEG_START = b"\xff\xd8\xff"


def decode(
    data: Content,
    *,
    mode: str = "exact",
    target: int | None = None,
    name: str = "data",
    backend: str | None = None,
) -> NDArray[np.uint8]:
    """Return the pixels of an image file.

    Parameters
    ----------
    data : bytes, bytearray or memoryview
        The content of the file, in any format that Pillow reads by itself. Of an animation the
        first frame. Not changed.
    mode : {"exact", "fast"}, default="exact"
        "exact" gives Pillow's own pixels. "fast" decodes a JPEG at 1/2, 1/4 or 1/8 of its size,
        the smallest whose short side is not below `target`; other files as "exact" does.
    target : int, optional
        Least length of the short side that is needed, in pixels, at least 1. None: the whole size.
        Nothing is enlarged. Means nothing in mode "exact".
    name : str, default="data"
        What to call the file in messages.
    backend : {"cpp", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    pixels : ndarray of shape (h, w, 3), uint8
        RGB, upright (EXIF orientation applied), alpha dropped without blending; contiguous,
        writable.

    Raises
    ------
    InputError
        If the file is empty, no image, damaged, truncated, or larger than Pillow's limit
        (`PIL.Image.MAX_IMAGE_PIXELS`, twice); or if its pixels are floating point.
    TypeError
        If `data` is not bytes-like, or `target` not an integer.
    ValueError
        If `mode` is another one, or `target` below 1.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    "reference" is Pillow. "cpp" reads the header of a JPEG file with Pillow and its pixels with
    libjpeg-turbo, the library that Pillow itself uses, through the package simplejpeg: the same
    accurate inverse DCT and the same smooth upsampling of chroma, hence the same bits. What it
    finds the least fault with (a warning is enough), CMYK, files of several images and all other
    formats go to Pillow, whose verdict counts: both backends accept the same files.

    In mode "fast" the inverse DCT of an 8 x 8 block gives 4 x 4, 2 x 2 or one pixel, from the
    lowest frequencies alone. A side n becomes ceil(n / factor). Images with a side below 16 pixels
    are decoded whole.

    16-bit grey levels become round(x / 257). Pillow's own warnings about damaged metadata are
    silenced in this process from the first call on: they say nothing about the pixels.

    The decoder holds no lock of the interpreter while it works; reading a header does. Calls may
    run in several threads at once. Memory: the pixels, once for "cpp", twice for "reference".

    Examples
    --------
    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (640, 480), (255, 0, 0)).save(file, "JPEG")
    >>> decode(file.getvalue()).shape
    (480, 640, 3)
    >>> decode(file.getvalue(), mode="fast", target=100).shape
    (120, 160, 3)
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"data must be bytes-like, got {type(data).__name__}")
    if mode not in DECODE_MODES:
        raise ValueError(f"mode must be one of {list(DECODE_MODES)}, got {mode!r}")
    if target is not None and (
        isinstance(target, bool) or not isinstance(target, int | np.integer)
    ):
        raise TypeError(f"target must be an integer, got {target!r}")
    if target is not None and target < 1:
        raise ValueError(f"target must be at least 1, got {target}")
    content, covered = bytes(data), None if mode == "exact" else target
    chosen = choose("decode", BACKENDS, backend, content, covered, name)
    pixels: NDArray[np.uint8] = chosen.run(content, covered, name)
    return pixels


def decode_preprocess(
    data: Content,
    spec: Preprocessing,
    *,
    mode: str = "exact",
    name: str = "data",
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Decode, resize, centre-crop and normalise one image file.

    Parameters
    ----------
    data : bytes, bytearray or memoryview
        The content of the file (see `decode`).
    spec : Preprocessing
        Sizes, filter and normalisation (see `preprocess`).
    mode : {"exact", "fast"}, default="exact"
        "fast" decodes a JPEG at the smallest of 1/2, 1/4, 1/8 whose short side is not below
        `spec.resize`. Rows of the two modes must not be mixed.
    name : str, default="data"
        What to call the file in messages.
    dtype : {torch.float32, torch.bfloat16, torch.float16, torch.uint8}, default=torch.float32
        Type of the result (see `preprocess`).
    out : Tensor of shape (3, spec.crop, spec.crop), `dtype`, contiguous, optional
        Where to write, for example one slot of a batch.
    backend : {"cpp", "reference"}, optional
        Force a backend for both steps.

    Returns
    -------
    pixels : Tensor of shape (3, spec.crop, spec.crop), `dtype`
        ``preprocess(decode(data, mode=mode, target=spec.resize), spec)``, bit for bit.

    Raises
    ------
    InputError
        If the file cannot be decoded.
    TypeError, ValueError, BackendError
        As `decode` and `preprocess` do.

    Notes
    -----
    Both steps work without the interpreter's lock, on the calling thread: as many threads as there
    are cores keep them all busy.

    In mode "fast" the resize starts from a smaller image, whose sides were rounded up: the picture
    shifts by less than one pixel of the decoded size.

    Examples
    --------
    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (640, 480), (255, 0, 0)).save(file, "JPEG")
    >>> decode_preprocess(file.getvalue(), Preprocessing()).shape
    torch.Size([3, 224, 224])
    """
    pixels = decode(data, mode=mode, target=spec.resize, name=name, backend=backend)
    return preprocess(pixels, spec, dtype=dtype, out=out, backend=backend)


def _cpp(content: bytes, target: int | None, name: str) -> NDArray[np.uint8]:
    pixels = _by_turbo(content, target) if content.startswith(_JPEG_START) else None
    return decode_by_pillow(content, target, name) if pixels is None else pixels


def _by_turbo(content: bytes, target: int | None) -> NDArray[np.uint8] | None:
    """Return the pixels of a JPEG file that is sound and plain, else None."""
    import simplejpeg

    silence_pillow()
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.format != "JPEG" or image.mode not in ("L", "RGB"):
                return None
            width, height = image.size
            orientation = orientation_of(image)
        # Before any memory is asked for: the size that Pillow has checked is the one decoded.
        if simplejpeg.decode_jpeg_header(content)[:2] != (height, width):
            return None
        factor = reduction(height, width, target)
        least = (-(-height // factor), -(-width // factor)) if factor > 1 else (0, 0)
        pixels = simplejpeg.decode_jpeg(
            content, "RGB", min_height=least[0], min_width=least[1], min_factor=factor
        )
    except (*DAMAGED, *TOO_LARGE):
        return None
    return _upright(pixels, orientation)


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation not in range(2, 9):
        return pixels
    # 5 to 8: rows and columns change places. Then row 0 or column 0 goes to the other end.
    turned = pixels.transpose(1, 0, 2) if orientation >= 5 else pixels
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


@lru_cache(maxsize=1)
def _why_no_turbo() -> str | None:
    if find_spec("simplejpeg") is None:
        return "simplejpeg is not installed"
    version = features.version("libjpeg_turbo")
    if version is None or int(version.partition(".")[0]) < 3:
        return f"Pillow must be built with libjpeg-turbo 3 or later, got {version}"
    return None


def _cpp_refuses(*_: object) -> str | None:
    return _why_no_turbo()


def _reference(content: bytes, target: int | None, name: str) -> NDArray[np.uint8]:
    return decode_by_pillow(content, target, name)


BACKENDS = (
    Backend("cpp", _cpp, _cpp_refuses),
    Backend("reference", _reference, never_refuses),
)
