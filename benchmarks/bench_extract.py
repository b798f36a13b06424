"""Files to features: the whole chain, decoding and disk included, EfficientNet-Lite0 and ResNet-50.

Every contestant starts from a list of JPEG paths and ends with features on disk. The photos are
those of Office-Caltech10's webcam (`PYFEAT_DATA`), or generated ones of 500 x 375 where that is
unset. ResNet-50 has random weights, the same for all: speed does not depend on them.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_backbones import later
from bench_preprocess import photo
from harness import Case, Contestant
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pyfeat import FeatureExtractor
from pyfeat._config import num_threads
from pyfeat.ops import Preprocessing, decode_preprocess

N_GENERATED = 200
QUICK = 32
BATCH = 32
SAME_NUMBERS = 1e-5  # 1 - cosine of float32 features
# Of bfloat16 ones, whose error stands beside their speed: wide enough for OpenVINO's rounding,
# which is coarser than torch's. It keeps out features of another model, not those of low precision.
BFLOAT16 = 1e-2
TORCHVISION = 2e-2  # its pixels differ by up to one level too

Run = Callable[[], Any]


MODELS = ("efficientnet_lite0", "resnet50")


def cases(quick: bool) -> Iterator[Case]:
    folder = Path(tempfile.mkdtemp(prefix="pyfeat-bench-"))
    paths = photos(folder)[: QUICK if quick else None]
    sizes = {Image.open(p).size for p in paths}
    threads = num_threads()
    try:
        for name in MODELS:
            yield Case(
                name=f"{name}, {len(paths)} JPEG, {min(sizes)} to {max(sizes)}, {threads} threads",
                contestants=contestants(name, paths, folder),
                expected=lambda name=name: typical_script(name, paths, folder)(),
                error=cosine_gap,
                unit="1 - smallest cosine to the script's features",
                items=len(paths),
                threads=threads,
                torch_threads=threads,
            )
    finally:
        shutil.rmtree(folder)


def contestants(name: str, paths: list[str], folder: Path) -> list[Contestant]:
    fast = {"engine": "openvino", "precision": "bf16"}
    return [
        Contestant(
            "pyfeat openvino bf16, empty store",
            later(lambda: cold(name, paths, folder, fast)),
            BFLOAT16,
        ),
        Contestant(
            "pyfeat, empty store", later(lambda: cold(name, paths, folder, {})), SAME_NUMBERS
        ),
        Contestant(
            "pyfeat, all in the store", later(lambda: warm(name, paths, folder)), SAME_NUMBERS
        ),
        Contestant(
            "timm + DataLoader + np.save", later(lambda: typical_script(name, paths, folder)), 1e-9
        ),
        Contestant(
            "the same, bf16 and channels-last",
            later(lambda: typical_script(name, paths, folder, fast=True)),
            BFLOAT16,
        ),
        *by_hand(name, paths, folder),
    ]


def photos(folder: Path) -> list[str]:
    if root := os.environ.get("PYFEAT_DATA"):
        return sorted(map(str, Path(root, "office_caltech10_images", "webcam").rglob("*.jpg")))
    pixels = photo(375, 500)
    for i in range(N_GENERATED):
        Image.fromarray(np.roll(pixels, 13 * i, axis=1)).save(folder / f"{i:03d}.jpg", quality=90)
    return sorted(map(str, folder.glob("*.jpg")))


def cosine_gap(result: np.ndarray, expected: np.ndarray) -> float:
    a, b = np.float64(result), np.float64(expected)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(1 - cosine.min())


def cold(name: str, paths: list[str], folder: Path, settings: dict[str, Any]) -> Run:
    backbone, spec, _ = model_of(name)

    def run() -> np.ndarray:
        store = tempfile.mkdtemp(dir=folder)
        extractor = FeatureExtractor(backbone, preprocessing=spec, store=store, **settings)
        rows = extractor.transform(paths)
        shutil.rmtree(store)
        return rows

    return run


def warm(name: str, paths: list[str], folder: Path) -> Run:
    backbone, spec, _ = model_of(name)
    extractor = FeatureExtractor(backbone, preprocessing=spec, store=folder / f"warm-{name}")
    return lambda: extractor.transform(paths)


class Photos(Dataset):  # type: ignore[type-arg]
    """What such a script has: paths, Pillow and a transform."""

    def __init__(self, paths: list[str], transform: Callable[[Any], torch.Tensor]) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[i]).convert("RGB"))


@lru_cache
def model_of(name: str) -> tuple[Any, Preprocessing, torch.nn.Module]:
    """Return what our extractor takes, its preprocessing, and timm's module."""
    import timm

    from pyfeat.backbones._lite import lite_preprocessing, load_classifier

    if name == "efficientnet_lite0":
        module = load_classifier(name)
        module.reset_classifier(0)
        return name, lite_preprocessing(name), module.eval()
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=0).eval()
    return module, Preprocessing(interpolation="bicubic"), module


def transform_of(spec: Preprocessing) -> Any:
    """Return timm's transform."""
    import timm.data

    return timm.data.create_transform(
        (3, spec.crop, spec.crop),
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop / spec.resize,
    )


def typical_script(name: str, paths: list[str], folder: Path, fast: bool = False) -> Run:
    _, spec, module = model_of(name)
    transform, model = transform_of(spec), module
    if fast:
        model = copy.deepcopy(module).to(memory_format=torch.channels_last)

    def run() -> np.ndarray:
        loader = DataLoader(Photos(paths, transform), BATCH, num_workers=num_threads())
        rows = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=fast):
            for batch in loader:
                layout = torch.channels_last if fast else torch.contiguous_format
                rows.append(model(batch.to(memory_format=layout)).float().numpy())
        features = np.concatenate(rows)
        np.save(folder / "features.npy", features)
        return features

    return run


def by_hand(name: str, paths: list[str], folder: Path) -> list[Contestant]:
    """Return the best chains put together from other libraries, and one with our decode."""
    if find_spec("openvino") is None:
        return [Contestant("OpenVINO by hand", skip="openvino is not installed")]
    return [
        Contestant(
            "torchvision.io in threads + OpenVINO bf16",
            later(lambda: in_threads(name, paths, folder, torchvision_pixels)),
            TORCHVISION,
        ),
        Contestant(
            "our decode in threads + OpenVINO bf16",
            later(lambda: in_threads(name, paths, folder, our_pixels)),
            BFLOAT16,
        ),
    ]


def torchvision_pixels(path: str, spec: Preprocessing) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_image, read_file
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as f

    image = decode_image(read_file(path), ImageReadMode.RGB)
    way = InterpolationMode(spec.interpolation)
    image = f.resize(image, [spec.resize], interpolation=way, antialias=True)
    image = f.center_crop(image, [spec.crop, spec.crop])
    return f.normalize(f.to_dtype(image, torch.float32, scale=True), spec.mean, spec.std).numpy()


def our_pixels(path: str, spec: Preprocessing) -> np.ndarray:
    return decode_preprocess(Path(path).read_bytes(), spec).numpy()


def in_threads(
    name: str, paths: list[str], folder: Path, pixels: Callable[[str, Preprocessing], np.ndarray]
) -> Run:
    import openvino

    _, spec, module = model_of(name)
    converted = openvino.convert_model(
        module, example_input=torch.zeros(1, 3, spec.crop, spec.crop)
    )
    converted.reshape([1, 3, spec.crop, spec.crop])
    config = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16"}
    compiled = openvino.Core().compile_model(converted, "CPU", config)

    def run() -> np.ndarray:
        queue = openvino.AsyncInferQueue(compiled)
        rows: list[np.ndarray] = [np.empty(0)] * len(paths)

        def keep(request: Any, i: int) -> None:
            rows[i] = request.get_output_tensor(0).data[0].copy()

        queue.set_callback(keep)
        with ThreadPoolExecutor(num_threads()) as pool:
            for i, image in enumerate(pool.map(lambda path: pixels(path, spec), paths)):
                queue.start_async({0: image[None]}, i)
        queue.wait_all()
        features = np.stack(rows)
        np.save(folder / "features.npy", features)
        return features

    return run
