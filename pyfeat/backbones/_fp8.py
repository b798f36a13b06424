"""Precision "fp8": the products of a transformer in 8-bit floats, all else in bfloat16."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from pyfeat.backbones._fp8_layouts import parts_of, suits
from pyfeat.backbones._fp8_modules import Fp8Block, Fp8Linear
from pyfeat.backbones._freeze import FORWARD_ERRORS
from pyfeat.backbones._layers import trace_shapes
from pyfeat.errors import BackendError
from pyfeat.ops._check import why_not_triton
from pyfeat.ops._fp8_linear import LEAST_FP8

# How far a block is from the original at most, relative to what it adds to its rows: one that
# computes something else is further away, rounding to e4m3 costs 0.1. To it comes the rounding of
# the sum to bfloat16; rows are small beside what is added, so that it shows.
_FAR, _ROUNDING = 0.3, 2.0**-8
_TOKENS, _SIZE = 16, 2.0**-6
# Numbers of the smallest matrix outside a block whose product is worth the rounding of its rows.
_LEAST_NUMBERS = 2**14


def why_not_fp8(where: torch.device) -> str | None:
    """Return why a device cannot multiply 8-bit floats, or None."""
    if where.type != "cuda":
        return "8-bit floats are for GPUs"
    found = torch.cuda.get_device_capability(where)
    if found < LEAST_FP8:
        least, have = (".".join(map(str, version)) for version in (LEAST_FP8, found))
        return f"the GPU must have compute capability {least} or more, got {have}"
    return why_not_triton()


def put_fp8_into(
    own: nn.Module, exact: nn.Module, example: tuple[Tensor, ...], backend: str
) -> nn.Module:
    """Return a network with its transformer in 8-bit floats.

    Parameters
    ----------
    own : nn.Module
        A copy of `exact` in bfloat16. Changed in place: blocks of a transformer that are known
        (see `_fp8_layouts`) become `Fp8Block`, other linear layers of tokens `Fp8Linear`. Each
        stays where it was, with its hooks.
    exact : nn.Module
        In evaluation mode and in float32: the weights that are rounded.
    example : tuple of Tensor
        Inputs, in float32.
    backend : {"triton", "reference"}
        Of the ops.

    Raises
    ------
    BackendError
        If there is nothing to change.

    Notes
    -----
    A block is run beside the original on noise, and left alone unless both agree. Layers of pooled
    rows stay as they are: they take no time. So does what the network does not run.
    """
    ran = dict(trace_shapes(exact, example))
    converted: dict[str, nn.Module] = {}
    made: dict[nn.Module, nn.Module | None] = {}  # what is in several places stays one
    for name, layer in exact.named_modules(remove_duplicate=False):
        if any(not outer or name.startswith(f"{outer}.") for outer in converted):
            continue
        if layer not in made:
            made[layer] = _made(layer, name, ran, backend)
        if (new := made[layer]) is not None:
            converted[name] = new
    if not converted:
        rule = "have transformer blocks, or linear layers of tokens, of sides divisible by 16"
        raise BackendError(f"engine 'torch' cannot run fp8: the network must {rule}")
    for name, new in converted.items():
        own = _put(own, name, new)
    return own


def _made(layer: nn.Module, name: str, ran: dict[str, Any], backend: str) -> nn.Module | None:
    """Return what a layer becomes, or None."""
    if type(layer) is nn.Linear:
        n_tokens = math.prod(ran.get(name, ())[1:-1])
        plain = not layer._forward_pre_hooks and layer.weight.numel() >= _LEAST_NUMBERS
        if n_tokens < 2 or not plain or not suits(layer.weight):
            return None
        return Fp8Linear((layer.weight, layer.bias), backend)
    # What ends the pass, where a hook stops it, is not among what ran: its parts are.
    inside = f"{name}." if name else ""
    if not any(other.startswith(inside) for other in ran) or (parts := parts_of(layer)) is None:
        return None
    block = Fp8Block(parts, "reference")
    if not _do_the_same(layer, block, parts.qkv[0]):
        return None
    block.use(backend)
    return block


def _do_the_same(layer: nn.Module, block: Fp8Block, weight: Tensor) -> bool:
    """Return whether a block computes what a layer does; note what type that returns."""
    noise = torch.randn(1, _TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(0))
    x = (noise * _SIZE).to(weight.device)
    try:
        with torch.no_grad():
            wanted = layer(x, *[None] * _n_wanted(layer))
            got = block(x)
    except FORWARD_ERRORS:
        return False
    block.as_tuple = isinstance(wanted, tuple)
    if block.as_tuple:
        wanted = wanted[0] if len(wanted) == 1 else None
    if not isinstance(wanted, Tensor) or wanted.shape != got.shape:
        return False
    added = wanted if block.is_post else wanted - x
    bound = _FAR * added.norm(dim=-1) + _ROUNDING * wanted.norm(dim=-1)
    return bool(((got.float() - wanted).norm(dim=-1) <= bound).all())


def _n_wanted(layer: nn.Module) -> int:
    """Return how many arguments a layer must be given beside x: masks, which may be None."""
    found = inspect.signature(layer.forward).parameters.values()
    positional = [p for p in found if p.kind is p.POSITIONAL_OR_KEYWORD]
    return sum(p.default is p.empty for p in positional) - 1


def _put(own: nn.Module, name: str, new: nn.Module) -> nn.Module:
    old = own.get_submodule(name)
    for kind in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
        setattr(new, kind, getattr(old, kind))
    if not name:
        return new
    parent, _, child = name.rpartition(".")
    setattr(own.get_submodule(parent), child, new)
    return own
