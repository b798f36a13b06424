"""Decoded pixels to a normalised tensor: resize 256, centre crop 224, bicubic, antialiased.

Every contestant starts from what its decoder would hand it (an array, a PIL image or a tensor,
channels last in memory) and ends with float32 (3, 224, 224).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from harness import Case, Contestant, in_threads
from PIL import Image

from pyfeat import _core
from pyfeat._config import num_threads
from pyfeat.ops import Preprocessing, preprocess
from pyfeat.ops._preprocess import _geometry

SPEC = Preprocessing()
SIZES = ((375, 500), (480, 640), (1500, 2000))  # (h, w)
CALLS_PER_THREAD = 8
REFERENCE = "pyfeat reference"  # alone on one thread: it is not there to be fast
ONE_LEVEL = 1.001  # Pillow's box and torchvision's 16-bit weights may round a pixel the other way

Run = Callable[[], Any]


def cases(quick: bool) -> Iterator[Case]:
    for h, w in SIZES[:1] if quick else SIZES:
        image = photo(h, w)
        entries = contestants(image)
        expected = preprocess(image, SPEC, backend="reference")
        for threads in sorted({1, num_threads()}):
            calls = 1 if threads == 1 else threads * CALLS_PER_THREAD
            yield Case(
                name=f"{w}x{h}, {threads} thread{'s' * (threads > 1)}",
                contestants=[
                    Contestant(name, run if calls == 1 else in_threads(run, threads, calls), bound)
                    for name, run, bound in entries
                    if threads == 1 or name != REFERENCE
                ],
                expected=expected,
                error=levels,
                unit="largest difference in 255ths of a pixel",
                items=calls,
                bytes=calls * (image.nbytes + expected.nbytes),
                threads=threads,
            )


def photo(h: int, w: int) -> np.ndarray:
    """Return an image with soft areas, hard edges and a little noise."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((w, h))
    image = np.asarray(soft).astype(np.int16) + rng.integers(-6, 7, (h, w, 3))
    image[h // 3 : h // 2, w // 4 : w // 2] = 255
    return image.clip(0, 255).astype(np.uint8)


def levels(result: Any, expected: torch.Tensor) -> float:
    std = torch.tensor(SPEC.std)[:, None, None]
    return float(((torch.as_tensor(result) - expected) * std * 255).abs().max())


def contestants(image: np.ndarray) -> list[tuple[str, Run, float]]:
    """Return (name, run, bound)."""
    entries: list[tuple[str, Run, float]] = [
        (f"pyfeat cpp[{isa}]", ours(image, isa), 0.0) for isa in _core.isas()
    ]
    entries.append(("pyfeat reference", lambda: preprocess(image, SPEC, backend="reference"), 0.0))
    entries.append(("Pillow, one box + numpy", pillow_one_box(image), ONE_LEVEL))
    entries.append(("Pillow + torchvision", torchvision_on_pillow(image), ONE_LEVEL))
    entries.append(("torchvision v2 on tensors", torchvision_on_tensors(image), ONE_LEVEL))
    return entries


def ours(image: np.ndarray, isa: str) -> Run:
    def run() -> torch.Tensor:
        _core.set_isa(isa)
        return preprocess(image, SPEC, backend="cpp")

    return run


def pillow_one_box(image: np.ndarray) -> Run:
    h, w, _ = image.shape
    pixels = Image.fromarray(image)
    height, width, top, left = _geometry(h, w, SPEC)
    down, across = h / height, w / width
    right, bottom = left + SPEC.crop, top + SPEC.crop
    box = (left * across, top * down, right * across, bottom * down)
    factor = (1 / (255 * np.array(SPEC.std))).astype(np.float32)[:, None, None]
    shift = (np.array(SPEC.mean) / np.array(SPEC.std)).astype(np.float32)[:, None, None]

    def run() -> np.ndarray:
        cut = pixels.resize((SPEC.crop, SPEC.crop), Image.Resampling.BICUBIC, box=box)
        planes = np.asarray(cut).transpose(2, 0, 1).astype(np.float32, order="C")
        planes *= factor
        planes -= shift
        return planes

    return run


def torchvision_on_pillow(image: np.ndarray) -> Run:
    from torchvision import transforms

    pixels = Image.fromarray(image)
    pipeline = transforms.Compose(
        [
            transforms.Resize(SPEC.resize, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SPEC.crop),
            transforms.ToTensor(),
            transforms.Normalize(SPEC.mean, SPEC.std),
        ]
    )
    return lambda: pipeline(pixels)


def torchvision_on_tensors(image: np.ndarray) -> Run:
    from torchvision.transforms import InterpolationMode, v2

    pixels = torch.from_numpy(image).permute(2, 0, 1)
    pipeline = v2.Compose(
        [
            v2.Resize(SPEC.resize, InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(SPEC.crop),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(SPEC.mean, SPEC.std),
        ]
    )
    return lambda: pipeline(pixels)
