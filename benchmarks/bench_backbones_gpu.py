"""Forward passes alone on a GPU: rows of ours beside eager torch and `torch.compile`.

Inputs lie on the GPU, rows stay there. Weights are random, the same in every process: speed does
not depend on them; rounding does, for such a network makes much of little differences. The error
that stands beside a speed is 1 - the smallest cosine to eager float32. FLOP are those of the
products and convolutions; the shares of what plain products reach, in bfloat16 and in 8-bit floats,
are in the report.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from bench_backbones import TRUE, Run, cosine_gap, floats, later, module_of, spec_of
from bench_softmax_xent import waiting
from device import devices
from harness import Case, Contestant
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyfeat.backbones import ENGINES, load_backbone
from pyfeat.backbones._precision import exact_float32
from pyfeat.ops import Preprocessing

# Images of one call: powers of two, which ours are filled up to.
IMAGES = {
    "vit_base_patch16_224": 256,
    "resnet50": 256,
    "vit_small_patch16_224": 256,
    "vit_large_patch14_224": 128,
}
TRUE_OF = {"fp32": 1e-5, "bf16": TRUE, "fp16": TRUE, "fp8": 0.005}
PART = 16  # images of a pass in float32


def cases(quick: bool) -> Iterator[Case]:
    if "cuda" in devices():
        for name, n in IMAGES.items():
            yield image_case(name, 16 if quick else n)


def image_case(name: str, n: int) -> Case:
    return Case(
        name=f"{name}, {n} images, cuda",
        contestants=[
            *(ours(name, n, precision) for precision in TRUE_OF if has(name, precision)),
            *(
                Contestant(f"timm {way} bf16", later(lambda mode=mode: peer(name, n, mode)), TRUE)
                for way, mode in (("eager", None), ("torch.compile max-autotune", "max-autotune"))
            ),
        ],
        expected=lambda: exact_rows(name, n),
        error=lambda result, expected: cosine_gap(result.float().cpu(), expected),
        unit="1 - smallest cosine to eager fp32",
        items=n,
        flop=n * flop_of(name),
        device="cuda",
    )


def has(name: str, precision: str) -> bool:
    return precision != "fp8" or name.startswith("vit_")


def ours(name: str, n: int, precision: str) -> Contestant:
    def make() -> Run:
        backbone = load_backbone(module_of(name), preprocessing=Preprocessing(), device="cuda")
        fast, batch = backbone.with_engine("torch", precision), given(name, n)
        return waiting(lambda: fast(batch))

    why = ENGINES["torch"].refuses(precision, torch.device("cuda"))
    title = f"pyfeat, torch {precision}"
    return (
        Contestant(title, skip=why) if why else Contestant(title, later(make), TRUE_OF[precision])
    )


def given(name: str, n: int) -> Tensor:
    return floats(n, spec_of(name)).cuda()


def peer(name: str, n: int, mode: str | None) -> Run:
    """Return timm's module in bfloat16, weights and inputs, as it is or compiled."""
    module: Any = copy.deepcopy(module_of(name)).cuda().bfloat16()
    batch = given(name, n).bfloat16()
    if name == "resnet50":
        module = module.to(memory_format=torch.channels_last)
        batch = batch.contiguous(memory_format=torch.channels_last)
    run = module if mode is None else torch.compile(module, mode=mode)

    @torch.inference_mode()
    def rows() -> Tensor:
        return run(batch).float()

    return waiting(rows)


def exact_rows(name: str, n: int) -> Any:
    module = copy.deepcopy(module_of(name)).cuda()
    with torch.inference_mode(), exact_float32(torch.device("cuda")):
        return torch.cat([module(part) for part in given(name, n).split(PART)]).cpu().numpy()


def flop_of(name: str) -> int:
    """Return the FLOP of one image, of which multiplying and adding are two."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module_of(name)(torch.zeros(1, 3, 224, 224))
    return int(counter.get_total_flops())
