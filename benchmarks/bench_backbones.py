"""Forward passes alone, inputs in memory to rows, with every engine on a CPU.

The error that stands beside a speed is 1 - the smallest cosine to eager float32; 0.003 is allowed.
EfficientNet-Lite0 has its own weights, the others random ones, the same in every process: speed
does not depend on them, and rounding hardly. Images are photos in memory, resized to 224 x 224: as
bytes for engines of ours that take them (they normalise in the clock), else as normalised float32.
Contestants are made when they are first called: a case that is left out costs nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from bench_preprocess import photo
from elsewhere import elsewhere, tuned_malloc
from harness import Case, Contestant
from torch import Tensor, nn

from pyfeat._config import num_threads
from pyfeat.backbones import ENGINES, Backbone, load_backbone
from pyfeat.ops import Preprocessing, preprocess_batch

TRUE = 0.003  # the least cosine is 0.997
# Images of one call: multiples of every batch below.
IMAGES = {
    "efficientnet_lite0": 64,
    "mobilenetv3_small_100": 128,
    "resnet50": 32,
    "vgg16": 16,
    "vit_small_patch16_224": 32,
}
FREEZING = {"TORCHINDUCTOR_FREEZING": "1"}
OURS = (
    ("openvino", "bf16"),
    ("openvino", "fp32"),
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("onnxruntime", "fp32"),
)

Run = Callable[[], Any]


def cases(quick: bool) -> Iterator[Case]:
    for name, n in IMAGES.items():
        yield image_case(name, 16 if quick else n)


def later(make: Callable[[], Run]) -> Run:
    """Return a callable that makes what it calls when it is first called."""
    made: list[Run] = []

    def run() -> Any:
        if not made:
            made.append(make())
        return made[0]()

    return run


def cosine_gap(result: Any, expected: Any) -> float:
    a, b = np.float64(result), np.float64(expected)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(1 - cosine.min())


def image_case(name: str, n: int) -> Case:
    threads = num_threads()
    away = [
        Contestant(
            "timm eager, tuned malloc", _alone("eager", name, n, tuned_malloc(threads)), TRUE
        ),
        Contestant(
            "timm eager bf16, tuned malloc",
            _alone("eager_bf16", name, n, tuned_malloc(threads)),
            TRUE,
        ),
        *(
            Contestant(
                f"torch.compile, freezing, {kind}",
                _alone("compiled", name, n, tuned_malloc(threads) | FREEZING, kind),
                TRUE,
            )
            for kind in ("fp32", "bf16")
        ),
    ]
    return Case(
        name=f"{name}, {n} images, {threads} threads",
        contestants=[
            *ours(lambda: backbone_of(name), lambda b: images_ours(b, n), threads),
            Contestant("timm eager", later(lambda: eager(name, n)), TRUE),
            *away,
            *by_hand_openvino(name, n, threads),
            Contestant("ONNX Runtime by hand", later(lambda: by_hand_onnx(name, n, threads)), TRUE),
        ],
        expected=lambda: eager(name, n)(),
        error=cosine_gap,
        unit="1 - smallest cosine to eager fp32",
        items=n,
        threads=threads,
        torch_threads=threads,
    )


def ours(
    load: Callable[[], Backbone], run_of: Callable[[Backbone], Run], threads: int
) -> list[Contestant]:
    """Return one contestant for each engine and precision, or why it cannot run."""

    def make(engine: str, precision: str) -> Run:
        before = dict(os.environ)
        os.environ["PYFEAT_NUM_THREADS"] = str(threads)  # engines are made with as many
        try:
            return run_of(load().with_engine(engine, precision))
        finally:
            os.environ.clear()
            os.environ.update(before)

    found = []
    for engine, precision in OURS:
        name = f"pyfeat, {engine} {precision}"
        why = ENGINES[engine].refuses(precision, torch.device("cpu"))
        run = later(lambda pair=(engine, precision): make(*pair))
        found.append(Contestant(name, skip=why) if why else Contestant(name, run, TRUE))
    return found


def images_ours(backbone: Backbone, n: int) -> Run:
    batch = (
        torch.from_numpy(pixels(n)) if backbone.takes_bytes else floats(n, backbone.preprocessing)
    )
    return lambda: backbone(batch).numpy()


@lru_cache
def pixels(n: int) -> np.ndarray:
    """Return photos (n, 3, 224, 224) as bytes."""
    image = photo(375, 500)
    shifted = [np.roll(image, 13 * i, axis=1) for i in range(n)]
    return preprocess_batch(shifted, Preprocessing(), dtype=torch.uint8).numpy()


@lru_cache
def floats(n: int, spec: Preprocessing) -> Tensor:
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    return (torch.from_numpy(pixels(n)).float() / 255 - mean) / std


@lru_cache
def module_of(name: str) -> nn.Module:
    """Return timm's module without its classifier, vgg16 from torchvision."""
    torch.manual_seed(0)
    if name == "efficientnet_lite0":
        from pyfeat.backbones._lite import load_classifier

        module = load_classifier(name)
        module.reset_classifier(0)
    elif name == "vgg16":
        from torchvision.models import vgg16

        module = vgg16(weights=None)
        module.classifier[6] = nn.Identity()
    else:
        import timm

        module = timm.create_model(name, num_classes=0)
    return module.eval().requires_grad_(False)


@lru_cache
def backbone_of(name: str) -> Backbone:
    if name == "efficientnet_lite0":
        return load_backbone(name, device="cpu")
    return load_backbone(module_of(name), preprocessing=Preprocessing(), device="cpu")


def spec_of(name: str) -> Preprocessing:
    from pyfeat.backbones._lite import lite_preprocessing

    return lite_preprocessing(name) if name == "efficientnet_lite0" else Preprocessing()


def eager(name: str, n: int, dtype: torch.dtype = torch.float32) -> Run:
    """Return the plain way, in batches of 16."""
    module, batch = module_of(name), floats(n, spec_of(name))

    def run() -> np.ndarray:
        on = dtype != torch.float32
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=on):
            return torch.cat([module(part).float() for part in batch.split(16)]).numpy()

    return run


def eager_bf16(name: str, n: int) -> Run:
    module_of(name).to(memory_format=torch.channels_last)
    return eager(name, n, torch.bfloat16)


def compiled(name: str, n: int, kind: str) -> Run:
    """Return torch.compile with constants folded in; bfloat16 by autocast, as its users do."""
    torch.set_num_threads(num_threads())
    module, batch = module_of(name), floats(n, spec_of(name))
    run_compiled = torch.compile(module)

    def run() -> np.ndarray:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            return torch.cat([run_compiled(part).float() for part in batch.split(16)]).numpy()

    return run


def _alone(factory: str, name: str, n: int, settings: dict[str, str], *more: Any) -> Run:
    return later(lambda: elsewhere(f"bench_backbones:{factory}", settings, name, n, *more))


def by_hand_openvino(name: str, n: int, threads: int) -> list[Contestant]:
    """Return OpenVINO as its documentation says, in both modes and several batch sizes."""
    try:
        import openvino  # noqa: F401
    except ImportError:
        return [Contestant("OpenVINO by hand", skip="openvino is not installed")]
    ways = [("bf16", *way) for way in _WAYS] + [("f32", *way) for way in _WAYS_FP32]
    return [
        Contestant(
            f"OpenVINO by hand, {p}, {mode}, batch {size}",
            later(lambda way=(p, mode, size, threads): openvino_run(name, n, way)),
            TRUE,
        )
        for p, mode, size in ways
    ]


@lru_cache
def converted(name: str) -> Any:
    import openvino

    return openvino.convert_model(module_of(name), example_input=torch.zeros(1, 3, 224, 224))


_WAYS = (("THROUGHPUT", 1), ("THROUGHPUT", 4), ("THROUGHPUT", 8), ("LATENCY", 1), ("LATENCY", 16))
_WAYS_FP32 = (("THROUGHPUT", 1), ("LATENCY", 16))


def openvino_run(name: str, n: int, way: tuple[str, str, int, int]) -> Run:
    """Return a function that runs a model over photos, several requests at a time."""
    import openvino

    precision, mode, size, threads = way
    array = floats(n, spec_of(name)).numpy()
    own = converted(name).clone()
    own.reshape([size, *array.shape[1:]])
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": mode,
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
    }
    if mode == "THROUGHPUT":
        config["PERFORMANCE_HINT_NUM_REQUESTS"] = threads
    queue = openvino.AsyncInferQueue(openvino.Core().compile_model(own, "CPU", config))

    def run() -> np.ndarray:
        rows: list[Any] = [None] * math.ceil(n / size)

        def keep(request: Any, i: int) -> None:
            rows[i] = request.get_output_tensor(0).data.copy()

        queue.set_callback(keep)
        for i in range(len(rows)):
            queue.start_async([array[i * size : (i + 1) * size]], i)
        queue.wait_all()
        return np.concatenate(rows)

    return run


def by_hand_onnx(name: str, n: int, threads: int) -> Run:
    import io

    import onnxruntime

    file: Any = io.BytesIO()
    example = torch.zeros(16, 3, 224, 224)
    torch.onnx.export(module_of(name), (example,), file, input_names=["x"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    parts = [part.numpy() for part in floats(n, spec_of(name)).split(16)]
    return lambda: np.concatenate([session.run(None, {"x": part})[0] for part in parts])
