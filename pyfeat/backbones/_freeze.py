"""Make a frozen module fast without changing its rows beyond rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyfeat.backbones._weights import class_name

# Folding is sound for the plain classes only: others may change their weights as they run.
_CONVS = ("torch.nn.modules.conv.Conv2d", "timm.layers.conv2d_same.Conv2dSame")
_NORMS = ("torch.nn.modules.batchnorm.BatchNorm2d", "timm.layers.norm_act.BatchNormAct2d")
_SAME_PADDING = _CONVS[1]

# glibc gives blocks of 32 MiB and more back to the system at once: every forward pass would then
# pay for the page faults of its largest activations again (a factor of 2 for a convolutional
# network). Fewer images at a time stay below it; 4 already fill the cores, of texts 8: short ones
# have few tokens for a product.
_MALLOC_LIMIT = 32 * 2**20
_MAX_CHUNK = 4
_MAX_CHUNK_OF_TEXTS = 8

# What the code of a module raises for inputs that it was not made for.
FORWARD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass
class _Trace:
    """What one forward pass showed."""

    rows: Any = None
    largest: int = 0
    input_shapes: dict[nn.Module, torch.Size] = field(default_factory=dict)
    calls: dict[nn.Module, int] = field(default_factory=dict)
    pairs: dict[nn.Module, nn.Module] = field(default_factory=dict)


def make_fast(module: nn.Module, example: tuple[Tensor, ...], device: torch.device) -> None:
    """Rewrite a module in evaluation mode for inference at one size of inputs, in place.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode, on `device`. Changed in place: batch norms are folded into the
        convolutions they follow; on a CPU, TensorFlow's SAME padding becomes static and weights
        become channels-last. Layers with hooks stay as they are.
    example : tuple of Tensor
        Inputs of noise, on `device`.
    device : torch.device

    Notes
    -----
    The rewritten module is run beside the original on the example. Unless the rows agree
    to 64 eps sqrt(n) of their largest value, where n counts the rewritten weights and layers, the
    module is left as it was: a network may use what lies between a convolution and its batch norm.
    """
    trace = _run_traced(module, example)
    undo = _fold_batch_norms(module, trace)
    if device.type == "cpu":
        undo += _make_padding_static(module, trace)
    if undo and not _agree(trace.rows, module(*example), len(undo)):
        for restore in reversed(undo):
            restore()
    if device.type == "cpu" and any(isinstance(m, nn.Conv2d) for m in module.modules()):
        module.to(memory_format=torch.channels_last)


def chunk_of(module: nn.Module, example: tuple[Tensor, ...]) -> int:
    """Return how many inputs to compute at a time on a CPU."""
    most = _MAX_CHUNK if example[0].is_floating_point() else _MAX_CHUNK_OF_TEXTS
    return _chunk(largest_activation(module, example), most)


def largest_activation(module: nn.Module, example: tuple[Tensor, ...]) -> int:
    """Return the bytes of one input in the largest tensor that a layer gives."""
    with torch.inference_mode():
        return _run_traced(module, example).largest // len(example[0])


def _chunk(bytes_per_input: int, most: int = _MAX_CHUNK) -> int:
    fit = min(most, (_MALLOC_LIMIT - 1) // max(bytes_per_input, 1))
    return 1 << max(fit.bit_length() - 1, 0)


def _run_traced(module: nn.Module, example: tuple[Tensor, ...]) -> _Trace:
    """Run one forward pass and note sizes, and which batch norm is fed by which convolution."""
    trace = _Trace()
    outputs: dict[int, tuple[Tensor, nn.Module]] = {}  # holds the tensors, so that ids stay unique

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not (inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)):
            return
        trace.calls[layer] = trace.calls.get(layer, 0) + 1
        trace.input_shapes[layer] = inputs[0].shape
        trace.largest = max(trace.largest, output.numel() * output.element_size())
        if class_name(layer) in _CONVS:
            outputs[id(output)] = (output, layer)
        elif class_name(layer) in _NORMS and id(inputs[0]) in outputs:
            trace.pairs[layer] = outputs[id(inputs[0])][1]

    # A layer that already has hooks may be rewritten by them (weight norm, pruning): left alone.
    layers = [
        m for m in module.modules() if not (m._modules or m._forward_pre_hooks or m._forward_hooks)
    ]
    layers += [
        m
        for m in module.modules()
        if class_name(m) == _NORMS[1] and not (m._forward_pre_hooks or m._forward_hooks)
    ]
    handles = [layer.register_forward_hook(note) for layer in dict.fromkeys(layers)]
    try:
        trace.rows = module(*example)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _fold_batch_norms(module: nn.Module, trace: _Trace) -> list[Callable[[], None]]:
    """Fold what can be folded; return how to undo it."""
    undo: list[Callable[[], None]] = []
    for norm, conv in trace.pairs.items():
        once = trace.calls[norm] == trace.calls[conv] == 1
        if not once or getattr(norm, "running_mean", None) is None:
            continue
        weight, bias = _folded(conv, norm)
        undo.append(_set(conv, "weight", weight))
        undo.append(_set(conv, "bias", bias))
        undo.append(_replace(module, norm, getattr(norm, "act", nn.Identity())))
    return undo


def _folded(conv: Any, norm: Any) -> tuple[nn.Parameter, nn.Parameter]:
    # BN(W x + b) = s W x + s (b - mean) + shift with s = scale / sqrt(var + eps); in float64, so
    # that the only loss is the rounding of the result.
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double()
    if conv.bias is not None:
        bias = bias + conv.bias.double()
    bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
    weight = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    dtype = conv.weight.dtype
    return (
        nn.Parameter(weight.to(dtype), requires_grad=False),
        nn.Parameter(bias.to(dtype), requires_grad=False),
    )


def _make_padding_static(module: nn.Module, trace: _Trace) -> list[Callable[[], None]]:
    """Turn SAME padding, computed on every call, into plain padding; return how to undo it."""
    undo = []
    for layer, shape in trace.input_shapes.items():
        known = trace.calls[layer] == 1 and layer is not module
        if known and class_name(layer) == _SAME_PADDING and layer.dilation == (1, 1):
            undo.append(_replace(module, layer, _static_conv(layer, shape[2:])))
    return undo


def _static_conv(conv: Any, shape: torch.Size) -> nn.Conv2d:
    # SAME pads p // 2 before and the rest after. Where p is odd, a zero in front of the kernel
    # lets both sides be padded by (p + 1) / 2: the same sums, plus zeros.
    sides = zip(shape, conv.kernel_size, conv.stride, strict=True)
    total = [max((math.ceil(s / stride) - 1) * stride + k - s, 0) for s, k, stride in sides]
    odd = [p % 2 for p in total]
    weight = nn.functional.pad(conv.weight, (odd[1], 0, odd[0], 0))
    static = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        kernel_size=(weight.shape[2], weight.shape[3]),
        stride=conv.stride,
        padding=((total[0] + 1) // 2, (total[1] + 1) // 2),
        groups=conv.groups,
        device="meta",
    )
    static.weight = nn.Parameter(weight, requires_grad=False)
    static.bias = conv.bias
    return static


def _set(owner: Any, name: str, value: Any) -> Callable[[], None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def _replace(module: nn.Module, old: nn.Module, new: nn.Module) -> Callable[[], None]:
    path = next(name for name, m in module.named_modules() if m is old)
    parent, _, child = path.rpartition(".")
    return _set(module.get_submodule(parent), child, new)


def _agree(before: Any, after: Any, n_changes: int) -> bool:
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        return False
    bound = 64 * torch.finfo(before.dtype).eps * math.sqrt(n_changes)
    return bool((before - after).abs().max() <= bound * before.abs().max())


def probe(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    """Return what a module gives for its first inputs.

    Raises
    ------
    ValueError
        If it does not take them.
    """
    try:
        return module(*example)
    except FORWARD_ERRORS as error:
        shape = tuple(example[0].shape)
        raise ValueError(
            f"backbone must take a batch of shape {shape}, got {type(error).__name__}: {error}"
        ) from error
