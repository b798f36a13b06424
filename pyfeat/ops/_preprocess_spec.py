"""The settings of `preprocess`, and where they put an image of a given size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RADIUS = {"bilinear": 1.0, "bicubic": 2.0}
MODES = ("crop", "stretch", "pad")


@dataclass(frozen=True)
class Preprocessing:
    """What happens between the pixels of an image and a backbone.

    Part of the identity of a row: two settings that differ give features that must not be mixed.

    Parameters
    ----------
    resize : int, default=256
        Side after resizing, in pixels; which one is up to `mode`. At least 1.
    crop : int, default=224
        Side of the square cut from the centre, in pixels. Range [1, resize].
    interpolation : {"bicubic", "bilinear"}, default="bicubic"
        Filter, widened by the factor of a reduction (antialiased).
    mean, std : tuple of 3 float
        Mean and standard deviation of R, G and B, for pixel values in [0, 1]; by default those of
        ImageNet. Finite, `std` above 0.
    mode : {"crop", "stretch", "pad"}, default="crop"
        "crop": the shorter side becomes `resize`, the aspect ratio is kept. "stretch": both sides
        become `resize`; with `crop` equal to `resize` nothing of the image is lost. "pad": the
        longer side becomes `resize`, the aspect ratio is kept, and what is missing of the square
        is background (see `fill`).
    hflip : bool, default=False
        Whether left and right are swapped, for an augmented view.

    Attributes
    ----------
    fill : tuple of 3 int
        Background of "pad": `mean` as a byte, which is about 0 after normalisation, so that a
        backbone sees nothing there rather than a black bar.

    Raises
    ------
    ValueError
        If a value is out of range.
    TypeError
        If `resize` or `crop` is not an integer, or `hflip` not a bool.

    Examples
    --------
    >>> Preprocessing(resize=232).to_parts()["resize"]
    232
    >>> Preprocessing(224, 224, mode="pad").fill
    (124, 116, 104)
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    mode: str = "crop"
    hflip: bool = False

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            if not isinstance(getattr(self, name), int | np.integer):
                raise TypeError(f"{name} must be an integer, got {getattr(self, name)!r}")
            object.__setattr__(self, name, int(getattr(self, name)))
        if self.resize < 1:
            raise ValueError(f"resize must be at least 1, got {self.resize}")
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop must be in [1, resize={self.resize}], got {self.crop}")
        for name, known in (("interpolation", sorted(RADIUS)), ("mode", list(MODES))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for name in ("mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} must be three finite numbers, got {getattr(self, name)}")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")
        if not isinstance(self.hflip, bool | np.bool_):
            raise TypeError(f"hflip must be a bool, got {self.hflip!r}")
        object.__setattr__(self, "hflip", bool(self.hflip))

    @property
    def fill(self) -> tuple[int, int, int]:
        r, g, b = (min(max(round(255 * v), 0), 255) for v in self.mean)
        return r, g, b

    def to_parts(self) -> dict[str, Any]:
        """Return the settings as JSON values, for a fingerprint.

        `mode` and `hflip` are named only where they are not the default: rows that were stored
        before there was a choice keep their fingerprint.
        """
        parts = {**asdict(self), "mean": [*self.mean], "std": [*self.std], "antialias": True}
        if self.mode == "crop":
            del parts["mode"]
        if not self.hflip:
            del parts["hflip"]
        return parts

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


@dataclass(frozen=True)
class Cut:
    """One direction: outputs [first, first + count) of `n_out`, which `n_in` pixels are resized to.

    The first of them is pixel `at` of the result; the pixels before and after are background.
    """

    n_in: int
    n_out: int
    first: int
    count: int
    at: int


def geometry(h: int, w: int, spec: Preprocessing) -> tuple[int, int, int, int]:
    """Return the size after resizing and the corner of the crop: height, width, top, left.

    A corner is negative where background comes first.
    """
    if spec.mode == "stretch":
        height = width = spec.resize
    elif spec.mode == "pad":
        ratio = max(h, w) / spec.resize  # rounded first, as in timm: 450 x 480 to 232 is 217 high
        height, width = max(round(h / ratio), 1), max(round(w / ratio), 1)
    else:
        longer = int(spec.resize * max(h, w) / min(h, w))
        height, width = (longer, spec.resize) if w <= h else (spec.resize, longer)
    return height, width, _corner(height, spec.crop), _corner(width, spec.crop)


def _corner(side: int, crop: int) -> int:
    # An odd pixel: of a cut it goes to the even side, of a background to the end.
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def cuts(h: int, w: int, spec: Preprocessing) -> tuple[Cut, Cut]:
    """Return what is cut down and across, before any flip."""
    height, width, top, left = geometry(h, w, spec)
    return _cut(h, height, top, spec.crop), _cut(w, width, left, spec.crop)


def _cut(n_in: int, n_out: int, first: int, crop: int) -> Cut:
    return Cut(n_in, n_out, max(first, 0), min(n_out, crop), max(-first, 0))
