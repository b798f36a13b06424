"""The products of a transformer in 8-bit floats, with what follows them: ViT-B/16, 256 images.

Peers multiply the same numbers: in bfloat16, and in 8-bit floats by torch's own product, with the
rest behind it, compiled where that fuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bench_softmax_xent import waiting
from device import devices, multiplies_fp8
from harness import Case, Contestant
from torch import Tensor
from torch.nn import functional

from pyfeat.ops import fp8_linear, quantize_fp8

TOKENS = 197
# Columns of the result and of the rows, and what follows.
LAYERS = {
    "qkv": (2304, 768, False, False),
    "fc1, GELU": (3072, 768, True, False),
    "fc2, residual": (768, 3072, False, True),
}
# Results, and the peers' operands, are rounded to bfloat16.
CLOSE = 2.0**-7

Run = Callable[[], Any]


def cases(quick: bool) -> Iterator[Case]:
    if "cuda" in devices():
        for name, layer in LAYERS.items():
            yield layer_case(name, (16 if quick else 256) * TOKENS, *layer)


def layer_case(name: str, n: int, m: int, k: int, gelu: bool, residual: bool) -> Case:
    torch.manual_seed(0)
    x = quantize_fp8(torch.randn(n, k, device="cuda"))
    weight = quantize_fp8(torch.randn(m, k, device="cuda") / k**0.5)
    bias = torch.randn(m, device="cuda")
    rest = torch.randn(n, m, device="cuda").bfloat16() if residual else None
    run = partial(fp8_linear, x, weight, bias, gelu=gelu, residual=rest)
    wide = [(q.rows.float() * q.scales[:, None]).bfloat16() for q in (x, weight)]
    narrow = bias.bfloat16()

    def finished(y: Tensor) -> Tensor:
        y = functional.gelu(y) if gelu else y
        return y if rest is None else y + rest

    def in_bfloat16() -> Tensor:
        return finished(functional.linear(*wide, narrow))

    def scaled() -> Tensor:
        scales = {"scale_a": x.scales[:, None], "scale_b": weight.scales[None]}
        y = torch._scaled_mm(x.rows, weight.rows.T, bias=narrow, out_dtype=torch.bfloat16, **scales)
        return finished(y)

    fp8 = multiplies_fp8("cuda")
    skip = None if fp8 else "the GPU has no 8-bit floats"
    peers = {
        "torch bf16": in_bfloat16,
        "torch.compile bf16": torch.compile(in_bfloat16, mode="max-autotune-no-cudagraphs"),
        **({"torch fp8": scaled, "torch.compile fp8": torch.compile(scaled)} if fp8 else {}),
    }
    return Case(
        name=f"{name}: {n} x {k} x {m}, cuda",
        contestants=[
            Contestant("pyfeat triton", skip=skip)
            if skip
            else Contestant("pyfeat triton", waiting(partial(run, backend="triton")), CLOSE),
            *(Contestant(peer, waiting(call), CLOSE) for peer, call in peers.items()),
        ],
        expected=lambda: run(backend="reference"),
        error=relative_distance,
        unit="distance / norm",
        items=n,
        bytes=n * k + m * k + 2 * n * m * (2 if residual else 1),
        flop=2 * n * m * k,
        device="cuda",
    )


def relative_distance(result: Tensor, expected: Tensor) -> float:
    return float((result.float() - expected.float()).norm() / expected.float().norm())
