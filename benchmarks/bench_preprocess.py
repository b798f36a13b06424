"""Decoded pixels to a normalised tensor: resize 256, centre crop 224, bicubic, antialiased.

Every contestant starts from what its decoder would hand it (an array, a PIL image or a tensor,
channels last in memory) and ends with (3, 224, 224): float32, in one case each bfloat16 and bytes.
A batch is images of different sizes; where there is a GPU, they lie in its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import device
import numpy as np
import torch
from harness import Case, Contestant, in_threads, largest_difference
from PIL import Image

from pyfeat import _core
from pyfeat._config import num_threads
from pyfeat.ops import Preprocessing, preprocess, preprocess_batch
from pyfeat.ops._preprocess_spec import geometry

SPEC = Preprocessing()
SIZES = ((375, 500), (480, 640), (1500, 2000))  # (h, w)
CALLS_PER_THREAD = 8
REFERENCE = "pyfeat reference"  # alone on one thread: it is not there to be fast
ONE_LEVEL = 1.001  # Pillow's box and torchvision's 16-bit weights may round a pixel the other way

Run = Callable[[], Any]


def cases(quick: bool) -> Iterator[Case]:
    if "cpu" in device.devices():
        yield from one_size(quick)
    yield from batches(quick)


def one_size(quick: bool) -> Iterator[Case]:
    plan = [(size, torch.float32) for size in SIZES]
    plan += [(SIZES[0], torch.uint8), (SIZES[1], torch.bfloat16)]
    for (h, w), dtype in (plan[0], plan[-1]) if quick else plan:
        image = photo(h, w)
        entries = contestants(image, dtype)
        expected = preprocess(image, SPEC, dtype=dtype, backend="reference")
        kind = "" if dtype == torch.float32 else f", {str(dtype).removeprefix('torch.')}"
        for threads in sorted({1, num_threads()}):
            calls = 1 if threads == 1 else threads * CALLS_PER_THREAD
            yield Case(
                name=f"{w}x{h}{kind}, {threads} thread{'s' * (threads > 1)}",
                contestants=[
                    replace(entry, run=in_threads(entry.run, threads, calls))
                    if entry.run and calls > 1
                    else entry
                    for entry in entries
                    if threads == 1 or entry.name != REFERENCE
                ],
                expected=expected,
                error=levels if dtype != torch.uint8 else largest_difference,
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
    difference = torch.as_tensor(result).cpu().float() - expected.float()
    return float((difference * std * 255).abs().max())


def contestants(image: np.ndarray, dtype: torch.dtype) -> list[Contestant]:
    bound = ONE_LEVEL
    if dtype == torch.uint8:
        return byte_contestants(image)
    if dtype == torch.bfloat16:  # two values one level apart may be rounded apart
        largest = max((1 - mean) / std for mean, std in zip(SPEC.mean, SPEC.std, strict=True))
        bound += torch.finfo(dtype).eps * largest * max(SPEC.std) * 255
    reference = partial(preprocess, image, SPEC, dtype=dtype, backend="reference")
    return [
        *(Contestant(f"pyfeat cpp[{isa}]", ours(image, isa, dtype)) for isa in _core.isas()),
        Contestant(REFERENCE, reference),
        Contestant("Pillow, one box + numpy", cast(pillow_one_box(image), dtype), bound),
        Contestant("Pillow + torchvision", cast(torchvision_on_pillow(image), dtype), bound),
        Contestant("torchvision v2 on tensors", cast(torchvision_on_tensors(image), dtype), bound),
        compiled("torch.compile on tensors", torch_on_tensors(image, dtype), bound),
    ]


def byte_contestants(image: np.ndarray) -> list[Contestant]:
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    height, width, top, left = geometry(*image.shape[:2], SPEC)
    window = (..., slice(top, top + SPEC.crop), slice(left, left + SPEC.crop))
    reference = partial(preprocess, image, SPEC, dtype=torch.uint8, backend="reference")
    resize = partial(
        torch.nn.functional.interpolate,
        pixels[None],
        (height, width),
        mode="bicubic",
        antialias=True,
    )
    return [
        *(Contestant(f"pyfeat cpp[{isa}]", ours(image, isa, torch.uint8)) for isa in _core.isas()),
        Contestant(REFERENCE, reference),
        Contestant("Pillow, one box", one_box(image), ONE_LEVEL),
        Contestant("torch interpolate", lambda: resize()[0][window].contiguous(), ONE_LEVEL),
    ]


def batches(quick: bool) -> Iterator[Case]:
    """Images of several sizes in one call, on the CPU and on a GPU."""
    sizes = [(375, 500), (500, 375), (333, 500), (480, 640)] * (2 if quick else 8)
    images = [photo(h, w) for h, w in sizes]
    threads = num_threads()
    expected = preprocess_batch(images, SPEC, backend="reference")
    case = partial(
        Case,
        expected=expected,
        error=levels,
        unit="largest difference in 255ths of a pixel",
        items=len(images),
        bytes=sum(image.nbytes for image in images) + expected.nbytes,
        threads=threads,
        torch_threads=threads,
    )
    if "cpu" in device.devices():
        ours = [Contestant(f"pyfeat cpp[{isa}]", batch_with(images, isa)) for isa in _core.isas()]
        pillow = Contestant("Pillow in threads", pillow_in_threads(images, threads), ONE_LEVEL)
        yield case(name=f"batch of {len(images)}, {threads} threads", contestants=[*ours, pillow])
    if "cuda" in device.devices():
        on_device = [torch.from_numpy(image).cuda() for image in images]
        yield case(
            name=f"batch of {len(images)}, GPU",
            device="cuda",
            contestants=[
                *(
                    Contestant(f"pyfeat {name}", waited(batch_on(on_device, name)))
                    for name in ("cuda", "triton")
                ),
                Contestant("torch interpolate", waited(torch_on_gpu(on_device)), ONE_LEVEL),
            ],
        )


def batch_with(images: list[np.ndarray], isa: str) -> Run:
    def run() -> torch.Tensor:
        _core.set_isa(isa)
        return preprocess_batch(images, SPEC, backend="cpp")

    return run


def batch_on(images: list[torch.Tensor], backend: str) -> Run:
    return partial(preprocess_batch, images, SPEC, backend=backend)


def pillow_in_threads(images: list[np.ndarray], threads: int) -> Run:
    pool = ThreadPoolExecutor(threads)
    runs = [pillow_one_box(image) for image in images]
    return lambda: np.stack(list(pool.map(lambda run: run(), runs)))


def torch_on_gpu(images: list[torch.Tensor]) -> Run:
    mean = torch.tensor(SPEC.mean, device="cuda")[:, None, None]
    std = torch.tensor(SPEC.std, device="cuda")[:, None, None]

    def one(image: torch.Tensor) -> torch.Tensor:
        height, width, top, left = geometry(image.shape[0], image.shape[1], SPEC)
        resized = torch.nn.functional.interpolate(
            image.permute(2, 0, 1)[None].float(), (height, width), mode="bicubic", antialias=True
        )
        cut = resized[0, :, top : top + SPEC.crop, left : left + SPEC.crop]
        return (cut.round().clamp(0, 255) / 255 - mean) / std

    return lambda: torch.stack([one(image) for image in images])


def waited(run: Run) -> Run:
    """Wait for the GPU inside the clock; the result comes back outside of it, when it is judged."""

    def run_and_wait() -> Any:
        result = run()
        torch.cuda.synchronize()
        return result

    return run_and_wait


def cast(run: Run, dtype: torch.dtype) -> Run:
    return run if dtype == torch.float32 else lambda: torch.as_tensor(run()).to(dtype)


def compiled(name: str, run: Run, bound: float) -> Contestant:
    """Compile a contestant now, while no clock runs."""
    torch.set_num_threads(1)  # compiled code is made for one number of threads
    fast = torch.compile(run, fullgraph=True, dynamic=False)
    try:
        fast()
    except (RuntimeError, OSError) as error:  # what torch raises without a C++ compiler
        lines = str(error).strip().splitlines() or [""]
        return Contestant(name, skip=f"cannot compile: {type(error).__name__}: {lines[0]}")
    return Contestant(name, fast, bound)


def ours(image: np.ndarray, isa: str, dtype: torch.dtype) -> Run:
    def run() -> torch.Tensor:
        _core.set_isa(isa)
        return preprocess(image, SPEC, dtype=dtype, backend="cpp")

    return run


def one_box(image: np.ndarray) -> Run:
    h, w, _ = image.shape
    pixels = Image.fromarray(image)
    height, width, top, left = geometry(h, w, SPEC)
    down, across = h / height, w / width
    right, bottom = left + SPEC.crop, top + SPEC.crop
    box = (left * across, top * down, right * across, bottom * down)

    def run() -> np.ndarray:
        cut = pixels.resize((SPEC.crop, SPEC.crop), Image.Resampling.BICUBIC, box=box)
        return np.ascontiguousarray(np.asarray(cut).transpose(2, 0, 1))

    return run


def pillow_one_box(image: np.ndarray) -> Run:
    resize = one_box(image)
    factor = (1 / (255 * np.array(SPEC.std))).astype(np.float32)[:, None, None]
    shift = (np.array(SPEC.mean) / np.array(SPEC.std)).astype(np.float32)[:, None, None]

    def run() -> np.ndarray:
        planes = resize().astype(np.float32)
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


def torch_on_tensors(image: np.ndarray, dtype: torch.dtype) -> Run:
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    height, width, top, left = geometry(*image.shape[:2], SPEC)
    mean = torch.tensor(SPEC.mean)[:, None, None]
    std = torch.tensor(SPEC.std)[:, None, None]

    def run() -> torch.Tensor:
        resized = torch.nn.functional.interpolate(
            pixels, (height, width), mode="bicubic", antialias=True
        )
        cut = resized[0, :, top : top + SPEC.crop, left : left + SPEC.crop]
        return ((cut.float() / 255 - mean) / std).to(dtype)

    return run
