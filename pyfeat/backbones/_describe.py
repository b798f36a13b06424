"""What a backbone is made of: its input, its layers, what they cost; weights are not needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pyfeat.backbones._backbone import freeze
from pyfeat.backbones._freeze import probe
from pyfeat.backbones._layers import OUTPUT, block_names, tensor_of
from pyfeat.backbones._load import take_module, take_named
from pyfeat.backbones._modality import AudioPreprocessing, Preparation, Tokenization, example_inputs
from pyfeat.backbones._precision import exact_float32

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class LayerDescription:
    """One layer that `layers=` takes.

    Parameters
    ----------
    name : str
    kind : str
        Class of the layer.
    shape : tuple of int
        What it gives for one input: (d,), (l, c), (c, h, w) or (h, w, c).
    parameters : int
        Numbers it has learned, those of its own layers included.
    flops : int
        Floating point operations of one input up to here: what a row of this layer costs.
    index : int or None
        Negative number that means the same layer; None where it has none.
    is_block : bool
        Whether it is one of those that follow each other, which are counted by the index.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    flops: int
    index: int | None
    is_block: bool


@dataclass(frozen=True)
class BackboneDescription:
    """What `describe` found.

    Parameters
    ----------
    name, source : str
        Full name, and where it comes from.
    modality : {"image", "text", "audio"}
    input : dict of str to int
        What one input is: "size" in pixels; "tokens" of the input that was counted and the most
        there may be, "max_tokens"; or "samples" of a window and "sample_rate".
    preprocessing : dict of JSON values
    dim : int
        Number of columns of a row.
    parameters : int
        Numbers it has learned, without the classifier.
    flops : int
        Floating point operations of one input: two for each multiplication with its addition.
    chunk : int or None
        How many inputs are computed at a time on a CPU.
    layers : list of LayerDescription
        In the order in which they end; the last one is "output", the row itself.
    """

    name: str
    source: str
    modality: str
    input: dict[str, int]
    preprocessing: dict[str, Any]
    dim: int
    parameters: int
    flops: int
    chunk: int | None
    layers: list[LayerDescription]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        values = asdict(self)
        for layer in values["layers"]:
            layer["shape"] = list(layer["shape"])
        return values


def describe(
    backbone: str | nn.Module, *, preprocessing: Preparation | None = None
) -> BackboneDescription:
    """Return what a backbone takes, gives and costs, layer by layer.

    Parameters
    ----------
    backbone : str or nn.Module
        As for `load_backbone`. The weights of torchvision's and timm's models are not needed, and
        not downloaded: the network is built with random numbers in their place.
    preprocessing : Preprocessing, optional
        As for `load_backbone`: another size of the input costs another number of operations.

    Returns
    -------
    description : BackboneDescription

    Raises
    ------
    ImportError, OSError, TypeError, ValueError
        As from `load_backbone`.

    Notes
    -----
    One input of noise is run on the CPU. Counted are matrix products, convolutions and attention,
    as they run after freezing: TensorFlow's SAME padding, made static, adds a row of zeros to some
    kernels. Additions, norms and activations count nothing, and neither do recurrent layers.

    Listed are the layers that ran, and gave one map, sequence of tokens or row for the input.

    Examples
    --------
    >>> from torch import nn
    >>> found = describe(nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.ReLU()))
    >>> [(layer.name, layer.shape) for layer in found.layers]
    [('0', (8, 14, 14)), ('1', (8, 14, 14)), ('output', (8,))]
    >>> found.flops == 2 * 14**2 * 8 * 3 * 16**2
    True
    """
    if isinstance(backbone, str):
        with torch.random.fork_rng(devices=[]):  # random weights leave the caller's numbers alone
            found = take_named(backbone, preprocessing, weights=False)
    elif isinstance(backbone, nn.Module):
        found = take_module(backbone, preprocessing)
    else:
        raise TypeError(f"backbone must be a name or an nn.Module, got {type(backbone).__name__}")
    module = found.module.eval().requires_grad_(False).float()
    example = example_inputs(found.preprocessing, 1)
    with torch.no_grad():
        probe(module, example)
    blocks = block_names(module, example)
    sizes = {name: (type(m).__name__, _count(m)) for name, m in module.named_modules()}
    ran = _run_counted(module, example)
    frozen = freeze(found, _CPU)
    counted = _run_counted(frozen._module, example)
    total = counted.pop("")[1]
    layers, flops = [], 0
    for name, (shape, _) in list(ran.items())[:-1]:  # the last one to end is the network
        # Freezing took some layers away: nothing is counted between them and those before.
        flops = counted.get(name, counted.get(f"module.{name}", (shape, flops)))[1]
        if len(shape) in {2, 3, 4} and shape[0] == 1:
            index = blocks.index(name) - len(blocks) if name in blocks[:-1] else None
            kind, size = sizes[name]
            is_block = name in blocks
            layers.append(LayerDescription(name, kind, shape[1:], size, flops, index, is_block))
    kind, size = sizes[""]
    layers.append(LayerDescription(OUTPUT, kind, (frozen.dim,), size, total, -1, False))
    return BackboneDescription(
        name=frozen.name,
        source=found.source,
        modality=frozen.modality,
        input=_input_of(found.preprocessing, example),
        preprocessing=found.preprocessing.to_parts(),
        dim=frozen.dim,
        parameters=size,
        flops=total,
        chunk=frozen.chunk,
        layers=layers,
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _input_of(preparation: Preparation, example: tuple[Tensor, ...]) -> dict[str, int]:
    size = int(example[0].shape[-1])
    if isinstance(preparation, Tokenization):
        return {"tokens": size, "max_tokens": preparation.max_length}
    if isinstance(preparation, AudioPreprocessing):
        return {"samples": size, "sample_rate": preparation.sample_rate}
    return {"size": size}


def _run_counted(
    module: nn.Module, example: tuple[Tensor, ...]
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return shape, and operations up to its end, of every layer that ran; "" is the network."""
    ran: dict[str, tuple[tuple[int, ...], int]] = {}
    counter = FlopCounterMode(display=False)

    def hook(name: str) -> Any:
        def note(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            first = tensor_of(output)
            if isinstance(first, Tensor) and first.is_floating_point():
                ran.setdefault(name, (tuple(first.shape), counter.get_total_flops()))

        return note

    handles = [m.register_forward_hook(hook(n)) for n, m in module.named_modules()]
    try:
        with torch.no_grad(), exact_float32(_CPU), _attention_in_steps(), counter:
            module(*example)
    finally:
        for handle in handles:
            handle.remove()
    return ran


@contextmanager
def _attention_in_steps() -> Iterator[None]:
    """Keep `nn.MultiheadAttention` from its one fused call, in which nothing is counted."""
    mha: Any = torch.backends.mha
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(before)
