"""The bytes of a JPEG file to a normalised tensor: resize 256, centre crop 224, bicubic.

Every contestant starts from the same bytes in memory and ends with float32 (3, 224, 224). Mode
"exact" is compared pixel by pixel with Pillow's decoder; mode "fast", and whoever else decodes at a
smaller scale, by the mean difference. Decoding at a smaller scale still reads every bit of the
file: what it can save depends on the bits per pixel, so the large photo comes in two qualities.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from bench_preprocess import ONE_LEVEL, SPEC, levels, photo
from harness import Case, Contestant, in_threads
from PIL import Image

from pyfeat import _core
from pyfeat._config import num_threads
from pyfeat.ops import decode_preprocess
from pyfeat.ops._preprocess_spec import geometry

CALLS_PER_THREAD = 8
MEAN_LEVEL = 1.0  # what "fast" may differ by on average, in 255ths

Run = Callable[[], Any]


@dataclass(frozen=True)
class Photo:
    """A file to decode: size, quality of the encoder, and whether smaller scales compete."""

    h: int
    w: int
    quality: int
    fast: bool


PHOTOS = (Photo(375, 500, 90, False), Photo(1500, 2000, 90, True), Photo(1500, 2000, 75, True))


def cases(quick: bool) -> Iterator[Case]:
    for p in PHOTOS[:2] if quick else PHOTOS:
        content = jpeg(p)
        expected = decode_preprocess(content, SPEC, backend="reference")
        entries = contestants(content, p.fast)
        bits = 8 * len(content) / (p.h * p.w)
        for threads in sorted({1, num_threads()}):
            calls = 1 if threads == 1 else threads * CALLS_PER_THREAD
            yield Case(
                name=f"{p.w}x{p.h}, {bits:.1f} bits a pixel, {threads} thread{'s' * (threads > 1)}",
                contestants=[
                    replace(e, run=in_threads(e.run, threads, calls)) if e.run and calls > 1 else e
                    for e in entries
                ],
                expected=expected,
                error=mean_levels if p.fast else levels,
                unit=f"{'mean' if p.fast else 'largest'} difference in 255ths of a pixel",
                items=calls,
                threads=threads,
            )


def jpeg(p: Photo) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo(p.h, p.w)).save(file, "JPEG", quality=p.quality)
    return file.getvalue()


def mean_levels(result: Any, expected: torch.Tensor) -> float:
    std = torch.tensor(SPEC.std)[:, None, None]
    return float(((torch.as_tensor(result) - expected) * std * 255).abs().mean())


def contestants(content: bytes, fast: bool) -> list[Contestant]:
    near = MEAN_LEVEL if fast else ONE_LEVEL
    modes = ("exact", "fast") if fast else ("exact",)
    found = [
        Contestant(f"pyfeat {m}", ours(content, m), MEAN_LEVEL if m == "fast" else 0.0)
        for m in modes
    ]
    isas = [isa for isa in _core.isas() if isa == "avx2" and isa != _core.isa()]
    found += [Contestant(f"pyfeat exact [{isa}]", ours(content, "exact", isa)) for isa in isas]
    found += [
        Contestant("Pillow + torchvision transforms", torchvision_on_pillow(content), near),
        Contestant("Pillow, one box + numpy", pillow_one_box(content, draft=False), near),
        torchvision_io(content, near),
        simplejpeg_numpy(content, near, None),
    ]
    if fast:
        found += [
            Contestant("Pillow draft, one box", pillow_one_box(content, draft=True), near),
            simplejpeg_numpy(content, near, SPEC.resize),
        ]
    return found


def ours(content: bytes, mode: str, isa: str | None = None) -> Run:
    best = isa or _core.isa()

    def run() -> torch.Tensor:
        _core.set_isa(best)
        return decode_preprocess(content, SPEC, mode=mode, backend="cpp")

    return run


def torchvision_on_pillow(content: bytes) -> Run:
    from torchvision import transforms

    pipeline = transforms.Compose(
        [
            transforms.Resize(SPEC.resize, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SPEC.crop),
            transforms.ToTensor(),
            transforms.Normalize(SPEC.mean, SPEC.std),
        ]
    )
    return lambda: pipeline(Image.open(io.BytesIO(content)).convert("RGB"))


def torchvision_io(content: bytes, bound: float) -> Contestant:
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import InterpolationMode, v2

    name = "torchvision.io + v2 antialias"
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    try:
        decode_jpeg(data)
    except RuntimeError as error:  # built without libjpeg
        return Contestant(name, skip=str(error).splitlines()[0])
    pipeline = v2.Compose(
        [
            v2.Resize(SPEC.resize, InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(SPEC.crop),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(SPEC.mean, SPEC.std),
        ]
    )
    return Contestant(name, lambda: pipeline(decode_jpeg(data, ImageReadMode.RGB)), bound)


def pillow_one_box(content: bytes, draft: bool) -> Run:
    def run() -> np.ndarray:
        image = Image.open(io.BytesIO(content))
        if draft:
            image.draft("RGB", (SPEC.resize, SPEC.resize))
        return one_box(image.convert("RGB"))

    return run


def simplejpeg_numpy(content: bytes, bound: float, target: int | None) -> Contestant:
    name = "simplejpeg" + (", scaled" if target else "") + " + Pillow's resize, one box + numpy"
    if find_spec("simplejpeg") is None:
        return Contestant(name, skip="simplejpeg is not installed")
    import simplejpeg

    least = target or 0

    def run() -> np.ndarray:
        pixels = simplejpeg.decode_jpeg(
            content, min_height=least, min_width=least, min_factor=2 if target else 1
        )
        return one_box(Image.fromarray(pixels))

    return Contestant(name, run, bound)


def one_box(image: Image.Image) -> np.ndarray:
    """Resize only what survives the crop; normalise."""
    height, width, top, left = geometry(image.height, image.width, SPEC)
    down, across = image.height / height, image.width / width
    right, bottom = left + SPEC.crop, top + SPEC.crop
    box = (left * across, top * down, right * across, bottom * down)
    cut = image.resize((SPEC.crop, SPEC.crop), Image.Resampling.BICUBIC, box=box)
    planes = np.asarray(cut).transpose(2, 0, 1).astype(np.float32, order="C")
    planes *= (1 / (255 * np.array(SPEC.std))).astype(np.float32)[:, None, None]
    planes -= (np.array(SPEC.mean) / np.array(SPEC.std)).astype(np.float32)[:, None, None]
    return planes
