"""Bytes of JPEG files to rows on a GPU: decoding, resizing and the network, without a store.

Photos are those of `bench_extract`, read before the clock starts. Weights are random, the same for
all. The script and the chain by hand run their network in bfloat16, compiled; the chain decodes on
the GPU, by nvJPEG. Their pixels differ from Pillow's by a few levels, which counts as error.
"""

from __future__ import annotations

import copy
import io
import shutil
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from bench_backbones import Run, cosine_gap, later, module_of
from bench_backbones_gpu import TRUE_OF, has
from bench_extract import photos, transform_of
from device import devices
from harness import Case, Contestant
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyfeat import FeatureExtractor
from pyfeat._config import num_threads
from pyfeat.backbones import ENGINES
from pyfeat.ops import Preprocessing

MODELS = ("resnet50", "vit_base_patch16_224")
SPEC = Preprocessing(interpolation="bicubic")
QUICK, LEAST = 32, 1024  # files; a GPU is done with 200 before it is awake
BATCH = 256
OTHER_PIXELS = 2e-2


def cases(quick: bool) -> Iterator[Case]:
    if "cuda" not in devices():
        return
    folder = Path(tempfile.mkdtemp(prefix="pyfeat-bench-"))
    try:
        files = [Path(path).read_bytes() for path in photos(folder)]
    finally:
        shutil.rmtree(folder)
    files = files[:QUICK] if quick else files * -(-LEAST // len(files))
    for name in MODELS:
        yield Case(
            name=f"{name}, {len(files)} JPEG, {num_threads()} threads, cuda",
            contestants=contestants(name, files),
            expected=lambda name=name: ours(name, files, "fp32")(),
            error=cosine_gap,
            unit="1 - smallest cosine to pyfeat fp32",
            items=len(files),
            threads=num_threads(),
            torch_threads=num_threads(),
            device="cuda",
        )


def contestants(name: str, files: list[bytes]) -> list[Contestant]:
    found = []
    for precision in (p for p in TRUE_OF if has(name, p)):
        title, why = f"pyfeat, torch {precision}", why_not(precision)
        run = later(lambda precision=precision: ours(name, files, precision))
        found.append(
            Contestant(title, skip=why) if why else Contestant(title, run, TRUE_OF[precision])
        )
    return [
        *found,
        Contestant("timm + DataLoader", later(lambda: script(name, files)), OTHER_PIXELS),
        Contestant("nvJPEG by hand", later(lambda: by_hand(name, files)), OTHER_PIXELS),
    ]


def why_not(precision: str) -> str | None:
    why: str | None = ENGINES["torch"].refuses(precision, torch.device("cuda"))
    return why


def ours(name: str, files: list[bytes], precision: str) -> Run:
    extractor = FeatureExtractor(
        module_of(name), preprocessing=SPEC, precision=precision, device="cuda", batch_size=BATCH
    )
    return lambda: extractor.transform(files)


@lru_cache(maxsize=1)
def compiled(name: str) -> Any:
    module = copy.deepcopy(module_of(name)).cuda().bfloat16()
    return torch.compile(module.to(memory_format=torch.channels_last))


def rows_of(name: str, batch: Tensor) -> Tensor:
    given = batch.to("cuda", torch.bfloat16, memory_format=torch.channels_last)
    rows: Tensor = compiled(name)(given).float()
    return rows


class Files(Dataset):  # type: ignore[type-arg]
    """What such a script has: bytes, Pillow and a transform."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files
        self.transform = transform_of(SPEC)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        return self.transform(Image.open(io.BytesIO(self.files[i])).convert("RGB"))


def script(name: str, files: list[bytes]) -> Run:
    def run() -> Any:
        loader = DataLoader(Files(files), BATCH, num_workers=num_threads(), pin_memory=True)
        with torch.inference_mode():
            return torch.cat([rows_of(name, batch) for batch in loader]).cpu().numpy()

    return run


def by_hand(name: str, files: list[bytes]) -> Run:
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as f

    way = InterpolationMode(SPEC.interpolation)
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]

    def pixels(image: Tensor) -> Tensor:
        image = f.resize(image, [SPEC.resize], interpolation=way, antialias=True)
        image = f.center_crop(image, [SPEC.crop, SPEC.crop])
        return f.normalize(f.to_dtype(image, torch.float32, scale=True), SPEC.mean, SPEC.std)

    def run() -> Any:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(tensors), BATCH):
                part = decode_jpeg(tensors[start : start + BATCH], ImageReadMode.RGB, "cuda")
                rows.append(rows_of(name, torch.stack([pixels(image) for image in part])))
        return torch.cat(rows).cpu().numpy()

    return run
