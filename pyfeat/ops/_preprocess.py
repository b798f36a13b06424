"""Decoded pixels to what a backbone takes: resize, centre crop, normalise, channels first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfeat.ops._check import why_no_core
from pyfeat.ops._dispatch import Backend, choose, never_refuses

Image = NDArray[np.uint8] | Tensor

_RADIUS = {"bilinear": 1.0, "bicubic": 2.0}
_FRACTION = 2.0**22  # weights are integers in this unit, as in Pillow


@dataclass(frozen=True)
class Preprocessing:
    """What happens between the pixels of an image and a backbone.

    Part of the identity of a row: two settings that differ give features that must not be mixed.

    Parameters
    ----------
    resize : int, default=256
        Length of the shorter side after resizing, in pixels; the aspect ratio is kept. At least 1.
    crop : int, default=224
        Side of the centre crop, in pixels. Range [1, resize].
    interpolation : {"bicubic", "bilinear"}, default="bicubic"
        Filter, widened by the factor of a reduction (antialiased).
    mean, std : tuple of 3 float
        Mean and standard deviation of R, G and B, for pixel values in [0, 1]; by default those of
        ImageNet. Finite, `std` above 0.

    Raises
    ------
    ValueError
        If a value is out of range.
    TypeError
        If `resize` or `crop` is not an integer.

    Examples
    --------
    >>> Preprocessing(resize=232).to_parts()["resize"]
    232
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            if not isinstance(getattr(self, name), int | np.integer):
                raise TypeError(f"{name} must be an integer, got {getattr(self, name)!r}")
            object.__setattr__(self, name, int(getattr(self, name)))
        if self.resize < 1:
            raise ValueError(f"resize must be at least 1, got {self.resize}")
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop must be in [1, resize={self.resize}], got {self.crop}")
        if self.interpolation not in _RADIUS:
            raise ValueError(
                f"interpolation must be one of {sorted(_RADIUS)}, got {self.interpolation!r}"
            )
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} must be three finite numbers, got {getattr(self, name)}")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")

    def to_parts(self) -> dict[str, Any]:
        """Return the settings as JSON values, for a fingerprint."""
        return {**asdict(self), "mean": [*self.mean], "std": [*self.std], "antialias": True}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Preprocessing:
        """Return the settings that `to_parts` described.

        Raises
        ------
        TypeError, KeyError
            If the parts hold other names.
        """
        values: dict[str, Any] = {n: v for n, v in parts.items() if n != "antialias"}
        values["mean"], values["std"] = tuple(values["mean"]), tuple(values["std"])
        return cls(**values)


def preprocess(
    image: Image,
    spec: Preprocessing,
    *,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Resize, centre-crop and normalise one image.

    Only the rows and columns that survive the crop are computed: an image of extreme aspect ratio
    costs no more than a square one.

    Parameters
    ----------
    image : ndarray or Tensor of shape (h, w, 3), uint8
        RGB pixels, h and w at least 1. Not changed. Any strides.
    spec : Preprocessing
        Sizes, filter and normalisation.
    dtype : {torch.float32, torch.bfloat16}, default=torch.float32
        Type of the result; bfloat16 is the float32 value rounded to nearest, ties to even.
    out : Tensor of shape (3, spec.crop, spec.crop), `dtype`, contiguous, optional
        Where to write, for example one slot of a batch. By default a new tensor on the device of
        `image`.
    backend : {"cpp", "reference"}, optional
        Force a backend; by default the fastest that can run.

    Returns
    -------
    pixels : Tensor of shape (3, spec.crop, spec.crop), `dtype`
        `out` when it was given. (v / 255 - mean) / std, v the resized pixel.

    Raises
    ------
    TypeError
        If `image` is neither array nor tensor, or holds no uint8, or `dtype` is another type.
    ValueError
        If `image` or `out` has another shape, or `out` another dtype, or is not contiguous.
    BackendError
        If the backend asked for cannot run; the message says why.

    Notes
    -----
    Geometry is that of torchvision's ``Resize(resize)`` and ``CenterCrop(crop)``: the short side
    becomes `resize`, the long side ``int(resize * long / short)``, and the crop starts at
    ``round((side - crop) / 2)``, ties to even.

    Pixels are those of Pillow's ``Image.resize`` in the pass order of Pillow 12 and earlier, bit
    for bit: first across, then down, with weights w[i, x] = f((x + 1/2 - c[i]) / s) / sum,
    c[i] = (i + 1/2) * scale, s = max(scale, 1), f the triangle or Keys' cubic with a = -1/2 [1]_,
    computed in float64 and rounded to multiples of 2^-22. Each pass sums integers, rounds and clips
    to a byte. Hence every backend and instruction set gives the same bits.

    Pillow 13 goes down first when it reduces a tall image, more than about twice as high as wide,
    and rounds other intermediate pixels: there, on photos, a few pixels differ by a few levels of
    255, on noise most of them. Here the order is fixed, so that the identity of a row does not
    depend on the version of Pillow. All other images are equal to Pillow 13's too.

    Memory of "cpp": about 3 * crop bytes per source row. It releases the GIL and may run in several
    threads at once.

    References
    ----------
    .. [1] Keys. Cubic convolution interpolation for digital image processing. IEEE Trans. ASSP
       29(6), 1981, eq. 4.

    Examples
    --------
    >>> white = np.full((40, 60, 3), 255, dtype=np.uint8)
    >>> pixels = preprocess(white, Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    >>> pixels.shape, float(pixels.min()), float(pixels.max())
    (torch.Size([3, 224, 224]), 1.0, 1.0)
    """
    _check(image, spec, dtype, out)
    chosen = choose("preprocess", BACKENDS, backend, image, spec, dtype, out)
    pixels: Tensor = chosen.run(image, spec, dtype, out)
    return pixels


def _check(image: Image, spec: Preprocessing, dtype: torch.dtype, out: Tensor | None) -> None:
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(f"image must be an ndarray or a Tensor, got {type(image).__name__}")
    if image.dtype not in (np.uint8, torch.uint8):
        raise TypeError(f"image must have dtype uint8, got {image.dtype}")
    shape = tuple(image.shape)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"image must have shape (h, w, 3) with h and w at least 1, got {shape}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    if out is None:
        return
    wanted = (3, spec.crop, spec.crop)
    if tuple(out.shape) != wanted:
        raise ValueError(f"out must have shape {wanted}, got {tuple(out.shape)}")
    if out.dtype != dtype:
        raise ValueError(f"out must have dtype {dtype}, got {out.dtype}")
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {out.stride()}")


def _geometry(h: int, w: int, spec: Preprocessing) -> tuple[int, int, int, int]:
    """Return the size after resizing and the corner of the crop: height, width, top, left."""
    longer = int(spec.resize * max(h, w) / min(h, w))
    height, width = (longer, spec.resize) if w <= h else (spec.resize, longer)
    return height, width, round((height - spec.crop) / 2), round((width - spec.crop) / 2)


def _weights(n_in: int, n_out: int, first: int, spec: Preprocessing) -> Tensor:
    """Return W (crop, n_in): output `first` + i of n_out is the sum over x of W[i, x] * source[x].

    Integers in units of 2^-22, held in float64: sums of their products with bytes stay below 2^53.
    """
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    support = _RADIUS[spec.interpolation] * stretch
    i = torch.arange(first, first + spec.crop, dtype=torch.float64)[:, None]  # (crop, 1)
    x = torch.arange(n_in, dtype=torch.float64)  # (n_in,)
    centre = (i + 0.5) * scale
    inside = (x >= (centre - support + 0.5).floor()) & (x < (centre + support + 0.5).floor())
    weights = _filter((x - centre + 0.5) * (1.0 / stretch), spec.interpolation) * inside
    # Pillow adds from left to right; another order can round a weight to the next integer.
    weights = weights / weights.cumsum(dim=1)[:, -1:] * _FRACTION
    return (weights + torch.full_like(weights, 0.5).copysign(weights)).trunc()


def _filter(x: Tensor, interpolation: str) -> Tensor:
    x = x.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1  # eq. 4 of [1] with a = -1/2
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _to_bytes(sums: Tensor) -> Tensor:
    return (sums / _FRACTION + 0.5).floor().clamp(0, 255)


def _normalise(pixels: Tensor, spec: Preprocessing, dtype: torch.dtype) -> Tensor:
    # pixels is (3, ...), whole numbers in [0, 255]
    shape = (3,) + (1,) * (pixels.ndim - 1)
    mean = torch.tensor(spec.mean, dtype=torch.float32, device=pixels.device).reshape(shape)
    std = torch.tensor(spec.std, dtype=torch.float32, device=pixels.device).reshape(shape)
    return ((pixels.float() / 255 - mean) / std).to(dtype)


def _reference(image: Image, spec: Preprocessing, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    source = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image, order="C"))
    h, w, _ = source.shape
    height, width, top, left = _geometry(h, w, spec)
    across = _weights(w, width, left, spec).to(source.device)  # (crop, w)
    down = _weights(h, height, top, spec).to(source.device)  # (crop, h)
    narrow = _to_bytes(torch.einsum("xj,ijc->ixc", across, source.double()))  # (h, crop, 3)
    pixels = _to_bytes(torch.einsum("yi,ixc->cyx", down, narrow))  # (3, crop, crop)
    result = _normalise(pixels, spec, dtype)
    return result if out is None else out.copy_(result)


@lru_cache(maxsize=16)
def _table(spec: Preprocessing, dtype: torch.dtype) -> Tensor:
    """Return the result for every byte of every channel, (3, 256): pixels have no other values."""
    return _normalise(torch.arange(256).expand(3, 256), spec, dtype)


def _cpp(image: Image, spec: Preprocessing, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    from pyfeat._core import preprocess as run

    source = image.numpy() if isinstance(image, Tensor) else image
    h, w, _ = source.shape
    if source.strides[1:] != (3, 1) or source.strides[0] < 3 * w:
        source = np.ascontiguousarray(source)
    if out is None:
        out = torch.empty((3, spec.crop, spec.crop), dtype=dtype)
    table = _table(spec, dtype)
    run(
        source,
        *_geometry(h, w, spec),
        crop=spec.crop,
        bicubic=spec.interpolation == "bicubic",
        table=table.data_ptr(),
        item_bytes=out.element_size(),
        out=out.data_ptr(),
    )
    return out


def _cpp_refuses(
    image: Image,
    spec: Preprocessing,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> str | None:
    for name, array in (("image", image), ("out", out)):
        if isinstance(array, Tensor) and array.device.type != "cpu":
            return f"{name} must be on cpu, got {array.device}"
    return why_no_core()


BACKENDS = (
    Backend("cpp", _cpp, _cpp_refuses),
    Backend("reference", _reference, never_refuses),
)
