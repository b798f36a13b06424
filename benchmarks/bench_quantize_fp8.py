"""Rows to 8-bit floats, with and without a LayerNorm: the tokens of 256 images in ViT-B/16."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from bench_softmax_xent import waiting
from device import devices
from harness import Case, Contestant

from pyfeat.ops import _layernorm_quantize, _quantize_fp8, layernorm_quantize, quantize_fp8

TOKENS = 197
# Sums of a LayerNorm differ in their order: a code may fall to its neighbour, an eighth away.
SHARE_OF_OTHER_CODES = {"quantize_fp8": 0.0, "layernorm_quantize": 1e-3}


def cases(quick: bool) -> Iterator[Case]:
    if "cuda" in devices():
        for op, d in (("quantize_fp8", 768), ("quantize_fp8", 3072), ("layernorm_quantize", 768)):
            yield op_case(op, (16 if quick else 256) * TOKENS, d)


def op_case(op: str, n: int, d: int) -> Case:
    torch.manual_seed(0)
    x = torch.randn(n, d, device="cuda").bfloat16()
    weight, bias = torch.randn(2, d, device="cuda")
    run: Any = partial(quantize_fp8, x)
    plain: Any = _quantize_fp8.to_fp8
    given: tuple[Any, ...] = (x,)
    if op == "layernorm_quantize":
        run = partial(layernorm_quantize, x, weight, bias)
        plain, given = _layernorm_quantize._reference, (x, weight, bias, 1e-5)
    compiled = torch.compile(plain)
    reference = partial(run, backend="reference")
    bound = SHARE_OF_OTHER_CODES[op]
    return Case(
        name=f"{op}, {n} x {d}, cuda",
        contestants=[
            Contestant("pyfeat triton", waiting(partial(run, backend="triton")), bound),
            Contestant("pyfeat reference", waiting(reference), bound),
            Contestant("torch.compile of it", waiting(lambda: compiled(*given)), 1e-3),
        ],
        expected=reference,
        error=share_of_other_codes,
        unit="share of other codes",
        items=n,
        bytes=n * (2 * d + d + 4),
        device="cuda",
    )


def share_of_other_codes(result: Any, expected: Any) -> float:
    left, right = (q.rows.view(torch.uint8) for q in (result, expected))
    return float((left != right).double().mean())
