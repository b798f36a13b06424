"""Files to features with EfficientNet-Lite0: the whole chain, decoding and disk included.

Every contestant starts from a list of JPEG paths and ends with features on disk. The photos are
those of Office-Caltech10's webcam (`PYFEAT_DATA`), or generated ones where that is unset.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_preprocess import photo
from harness import Case, Contestant
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pyfeat import FeatureExtractor
from pyfeat._config import num_threads
from pyfeat.backbones import load_backbone
from pyfeat.ops import preprocess

N_GENERATED = 200
QUICK = 32
BATCH = 32
SAME_NUMBERS = 1e-5  # 1 - cosine of float32 features
# Of bfloat16 ones, whose error stands beside their speed: wide enough for OpenVINO's rounding,
# which is coarser than torch's. It keeps out features of another model, not those of low precision.
BFLOAT16 = 1e-2

Run = Callable[[], Any]


def cases(quick: bool) -> Iterator[Case]:
    folder = Path(tempfile.mkdtemp(prefix="pyfeat-bench-"))
    paths = photos(folder)[: QUICK if quick else None]
    sizes = {Image.open(p).size for p in paths}
    expected = typical_script(paths, folder)()
    threads = num_threads()
    try:
        yield Case(
            name=f"{len(paths)} JPEG, {min(sizes)} to {max(sizes)}, {threads} threads",
            contestants=[
                Contestant("pyfeat, empty store", cold(paths, folder), SAME_NUMBERS),
                Contestant("pyfeat, all in the store", warm(paths, folder), SAME_NUMBERS),
                Contestant("timm + DataLoader + np.save", typical_script(paths, folder), 1e-9),
                Contestant(
                    "the same, bf16 and channels-last",
                    typical_script(paths, folder, fast=True),
                    BFLOAT16,
                ),
                openvino_contestant(paths, folder),
            ],
            expected=expected,
            error=cosine_gap,
            unit="1 - smallest cosine to the script's features",
            items=len(paths),
            threads=threads,
            torch_threads=threads,
        )
    finally:
        shutil.rmtree(folder)


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


def cold(paths: list[str], folder: Path) -> Run:
    def run() -> np.ndarray:
        store = tempfile.mkdtemp(dir=folder)
        rows = FeatureExtractor(store=store).transform(paths)
        shutil.rmtree(store)
        return rows

    return run


def warm(paths: list[str], folder: Path) -> Run:
    extractor = FeatureExtractor(store=folder / "warm")
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


def timm_model() -> tuple[torch.nn.Module, Any]:
    """Return timm's model with the weights of the package, and timm's transform for it."""
    import timm.data

    from pyfeat.backbones._lite import load_classifier

    model = load_classifier("efficientnet_lite0").eval()
    model.reset_classifier(0)
    spec = load_backbone("efficientnet_lite0").preprocessing
    transform = timm.data.create_transform(
        (3, spec.crop, spec.crop),
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop / spec.resize,
    )
    return model, transform


def typical_script(paths: list[str], folder: Path, fast: bool = False) -> Run:
    model, transform = timm_model()
    if fast:
        model = model.to(memory_format=torch.channels_last)

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


def openvino_contestant(paths: list[str], folder: Path) -> Contestant:
    name = "OpenVINO bf16, two requests + our decode"
    if find_spec("openvino") is None:
        return Contestant(name, skip="openvino is not installed")
    import openvino

    model, _ = timm_model()
    spec = load_backbone("efficientnet_lite0").preprocessing
    converted = openvino.convert_model(model, example_input=torch.zeros(1, 3, spec.crop, spec.crop))
    converted.reshape([1, 3, spec.crop, spec.crop])
    compiled = openvino.Core().compile_model(
        converted,
        "CPU",
        {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16"},
    )

    def run() -> np.ndarray:
        queue = openvino.AsyncInferQueue(compiled)
        rows: list[np.ndarray] = [np.empty(0)] * len(paths)

        def keep(request: Any, i: int) -> None:
            rows[i] = request.get_output_tensor(0).data[0].copy()

        queue.set_callback(keep)
        for i, path in enumerate(paths):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            queue.start_async({0: preprocess(pixels, spec).numpy()[None]}, i)
        queue.wait_all()
        features = np.stack(rows)
        np.save(folder / "features.npy", features)
        return features

    return Contestant(name, run, BFLOAT16)
