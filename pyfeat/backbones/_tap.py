"""What a network returns, or its layers, as the rows of a backbone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pyfeat.backbones._engine import Inputs
from pyfeat.backbones._keras import KerasModule
from pyfeat.backbones._layers import OUTPUT, Layers, Tapped, last_map, resolve_layers
from pyfeat.backbones._modality import AudioPreprocessing, Preparation
from pyfeat.backbones._onnx import OnnxModule
from pyfeat.backbones._pretrained import Pretrained


class Averaged(nn.Module):
    """Maps averaged over height and width."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return (n, d)."""
        return as_rows(self.module(*inputs), len(inputs[0]))


def tap(
    module: nn.Module, layers: Layers, pooling: str, preparation: Preparation, example: Inputs
) -> tuple[nn.Module, list[str], tuple[tuple[int, ...], ...]]:
    """Return a module of the rows that layers give, their names, and the shape of each.

    Tokens of texts and recordings (`pooling="none"`) are filled up with zeros, to the most tokens
    that a text may have, or as many as a window has.

    Raises
    ------
    TypeError, ValueError
        If there are no such layers, or they have no such pooling.
    """
    if isinstance(module, (KerasModule, OnnxModule)):
        graph = module.tapped(layers, pooling)
        rows = graph.pooled(*example)
        return graph, list(graph.names), tuple(tuple(row.shape[1:]) for row in rows)
    names = resolve_layers(module, layers, example)
    if pooling != "auto":
        names = [last_map(module, example) if name == OUTPUT else name for name in names]
    tapped = Tapped(module, names, pooling)
    if pooling == "none" and example[0].ndim == 2:
        tapped.lengths = _lengths(tapped, preparation, example)
    rows = tapped.pooled(*example)
    for name, row in zip(names, rows, strict=True):
        if len(row) != len(example[0]):  # windows of an image, for example
            rule = "give one map, sequence of tokens or row for an input"
            raise ValueError(f"layers must {rule}, got {len(row)} from {name!r}")
    shapes = tuple(tuple(row.shape[1:]) for row in rows)
    return tapped, names, shapes


def with_first_windows(found: Pretrained) -> Pretrained:
    """Return a model that sees the first window of a recording only: tokens are not averaged."""
    if not isinstance(found.preprocessing, AudioPreprocessing):
        return found
    return replace(found, preprocessing=replace(found.preprocessing, windows="first"))


def _lengths(tapped: Tapped, preparation: Preparation, example: Inputs) -> list[int | None]:
    """Return to how many tokens each layer is filled up; None: its shape is always the same.

    Raises
    ------
    ValueError
        If a layer gives something else than tokens (n, l, d), l growing with the input.
    """
    half = tuple(t[:, : -(-t.shape[1] // 2)] for t in example)
    found: list[int | None] = []
    both = zip(tapped.names, tapped.pooled(*example), tapped.pooled(*half), strict=True)
    for name, whole, part in both:
        if whole.shape == part.shape:
            found.append(None)
        elif whole.ndim == 3 and whole.shape[2] == part.shape[2]:
            most = getattr(preparation, "max_length", whole.shape[1])
            found.append(int(most))
        else:
            got = f"{tuple(whole.shape)} from {name!r}"
            raise ValueError(f"pooling must not be 'none' but for tokens (n, l, d), got {got}")
    return found


def as_rows(output: Any, n: int) -> Tensor:
    """Return (n, d) as it is, and (n, c, h, w) averaged over h and w.

    Raises
    ------
    ValueError
        If `output` is anything else, is empty, or holds no real floating point numbers.
    """
    rule = f"return shape ({n}, d) or ({n}, c, h, w), no side 0"
    if not isinstance(output, Tensor):
        raise ValueError(f"backbone must {rule}, got {type(output).__name__}")
    shape = tuple(output.shape)
    if output.ndim not in {2, 4} or len(output) != n or 0 in shape:
        raise ValueError(f"backbone must {rule}, got {shape}")
    if not output.is_floating_point():
        raise ValueError(f"backbone must return real floating point numbers, got {output.dtype}")
    return output if output.ndim == 2 else output.mean(dim=(2, 3))
