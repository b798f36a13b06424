"""Blocks of transformers that are known: where their libraries keep the parts of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyfeat.backbones._fp8_modules import Affine, BlockParts
from pyfeat.backbones._weights import class_name
from pyfeat.ops._quantize_fp8 import WIDEST

_STEP = 16  # rows of a matrix begin at multiples of 16 bytes


@dataclass(frozen=True)
class _Layout:
    """Names of the parts of a block.

    Parameters
    ----------
    norms : pair of str
    attention : str
        What knows the number of heads.
    qkv : tuple of str
        One layer, three, or none: `nn.MultiheadAttention` has a weight of its own.
    proj : str
    mlp : triple of str
        Layer, activation, layer.
    scales : pair of str, optional
        LayerScale.
    is_post : bool, default=False
    """

    norms: tuple[str, str]
    attention: str
    qkv: tuple[str, ...]
    proj: str
    mlp: tuple[str, str, str]
    scales: tuple[str, ...] = ()
    is_post: bool = False


def _three(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names.split())


_FC = ("mlp.fc1", "mlp.activation_fn", "mlp.fc2")
_BEFORE_AFTER = ("layernorm_before", "layernorm_after")
_LAYER_SCALES = ("layer_scale1", "layer_scale2")
# transformers 4 and 5 name them differently.
_OLD_SELF = ("attention.attention", _three("attention.attention", "query key value"))
_OLD_DENSE = ("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense")
_NEW_SELF = ("attention", _three("attention", "q_proj k_proj v_proj"), "attention.o_proj")
_VIT = (
    _Layout(_BEFORE_AFTER, *_NEW_SELF, _FC),
    _Layout(_BEFORE_AFTER, *_OLD_SELF, "attention.output.dense", _OLD_DENSE),
)
_DINO = (
    _Layout(("norm1", "norm2"), *_NEW_SELF, _FC, _LAYER_SCALES),
    _Layout(
        ("norm1", "norm2"),
        *_OLD_SELF,
        "attention.output.dense",
        ("mlp.fc1", "mlp.activation", "mlp.fc2"),
        _LAYER_SCALES,
    ),
)
_CLIP = (
    _Layout(
        ("layer_norm1", "layer_norm2"),
        "self_attn",
        _three("self_attn", "q_proj k_proj v_proj"),
        "self_attn.out_proj",
        _FC,
    ),
)
_BERT = (
    _Layout(
        ("attention.output.LayerNorm", "output.LayerNorm"),
        "attention.self",
        _three("attention.self", "query key value"),
        "attention.output.dense",
        _OLD_DENSE,
        is_post=True,
    ),
)
_TRANSFORMERS = {
    "ViTLayer": _VIT,
    "DeiTLayer": _VIT,
    "Dinov2Layer": _DINO,
    "Dinov2WithRegistersLayer": _DINO,
    "CLIPEncoderLayer": _CLIP,
    "SiglipEncoderLayer": _CLIP,
    "BertLayer": _BERT,
    "RobertaLayer": _BERT,
    "XLMRobertaLayer": _BERT,
}
_OTHERS = {
    "timm.models.vision_transformer.Block": (
        _Layout(
            ("norm1", "norm2"),
            "attn",
            ("attn.qkv",),
            "attn.proj",
            ("mlp.fc1", "mlp.act", "mlp.fc2"),
            ("ls1", "ls2"),
        ),
    ),
    "torchvision.models.vision_transformer.EncoderBlock": (
        _Layout(
            ("ln_1", "ln_2"),
            "self_attention",
            (),
            "self_attention.out_proj",
            ("mlp.0", "mlp.1", "mlp.3"),
        ),
    ),
}


def parts_of(block: nn.Module) -> BlockParts | None:
    """Return the parts of a block that can run in 8-bit floats, or None of anything else.

    A block with hooks on its inside, or with a parameter that is no part of what is known, is
    anything else.
    """
    for layout in _layouts_of(block):
        parts = dict(block.named_modules())
        names = (*layout.norms, layout.attention, *layout.qkv, layout.proj, *layout.mlp)
        if all(name in parts for name in names) and not _is_watched(block):
            return _parts(block, layout, parts)
    return None


def suits(weight: Tensor) -> bool:
    """Return whether a matrix (m, k) has sides that the kernels read well."""
    m, k = weight.shape
    return m % _STEP == 0 and k % _STEP == 0 and 0 < k <= WIDEST and m > 0


def _layouts_of(block: nn.Module) -> tuple[_Layout, ...]:
    name = class_name(block)
    if name.startswith("transformers.models."):
        return _TRANSFORMERS.get(type(block).__name__, ())
    return _OTHERS.get(name, ())


def _is_watched(block: nn.Module) -> bool:
    """Return whether hooks would miss what happens inside a block, or change what goes in."""
    inside = [m for m in block.modules() if m is not block]
    hooks = [m._forward_hooks for m in inside] + [m._forward_pre_hooks for m in block.modules()]
    return any(map(len, hooks))


def _parts(block: nn.Module, layout: _Layout, parts: dict[str, Any]) -> BlockParts | None:
    attention, activation = parts[layout.attention], parts[layout.mlp[1]]
    norms = [parts[name] for name in layout.norms]
    ends = [parts[name] for name in (layout.proj, layout.mlp[0], layout.mlp[2])]
    starts = [parts[name] for name in layout.qkv] or [attention]
    head_norms = list(filter(None, (_part(attention, name) for name in ("q_norm", "k_norm"))))
    scales = [_part(block, name) for name in layout.scales]
    known = [*norms, *starts, *ends, *head_norms, *filter(None, scales), activation]
    heads = getattr(attention, "num_heads", getattr(attention, "num_attention_heads", 0))
    if (
        {id(p) for p in block.parameters()} != {id(p) for m in known for p in m.parameters()}
        or not all(map(_is_linear, ends))
        or not all(map(_is_plain if starts == [attention] else _is_linear, starts))
        or len(head_norms) == 1
        or (d := _width(norms)) is None
        or getattr(attention, "is_causal", False)
        or getattr(block, "is_decoder", False)
    ):
        return None
    qkv = _qkv(starts)
    gammas = [m and next(iter(m.parameters())) for m in scales] or [None, None]
    if (
        not heads
        or len(qkv[0]) % (3 * heads)
        or not all(suits(w) for w in (qkv[0], *(m.weight for m in ends)))
        or any(g is not None and tuple(g.shape) != (d,) for g in gammas)
    ):
        return None
    proj, fc1, fc2 = ((m.weight, m.bias) for m in ends)
    return BlockParts(
        norms=(norms[0], norms[1]),
        qkv=qkv,
        proj=proj,
        fc1=fc1,
        fc2=fc2,
        scales=(gammas[0], gammas[1]),
        heads=heads,
        scale=next(_logit_scales(attention), None),
        head_norms=(head_norms[0], head_norms[1]) if head_norms else None,
        activation=None if is_gelu(activation) else activation,
        is_post=layout.is_post,
        arguments=_arguments(block),
    )


def _part(owner: Any, name: str) -> Any:
    """Return a part that does something, or None."""
    part = getattr(owner, name, None)
    return (
        part if isinstance(part, nn.Module) and next(part.parameters(), None) is not None else None
    )


def _is_plain(attention: nn.Module) -> bool:
    if not isinstance(attention, nn.MultiheadAttention) or attention.bias_k is not None:
        return False
    return attention._qkv_same_embed_dim and attention.batch_first and not attention.add_zero_attn


def _is_linear(layer: nn.Module) -> bool:
    # That of nn.MultiheadAttention is of a class of its own.
    return type(layer) is nn.Linear or type(layer).__name__ == "NonDynamicallyQuantizableLinear"


def _width(norms: list[nn.Module]) -> int | None:
    """Return the width of a block whose norms are LayerNorms of one width, or None."""
    shapes = {tuple(m.normalized_shape) for m in norms if isinstance(m, nn.LayerNorm)}
    same = len(shapes) == 1 and all(isinstance(m, nn.LayerNorm) for m in norms)
    shape = shapes.pop() if same else ()
    return shape[0] if len(shape) == 1 and shape[0] <= WIDEST else None


def _qkv(layers: list[Any]) -> Affine:
    if isinstance(layers[0], nn.MultiheadAttention):
        return layers[0].in_proj_weight, layers[0].in_proj_bias
    weight = torch.cat([layer.weight for layer in layers])
    if all(layer.bias is None for layer in layers):
        return weight, None
    zeros = [w.weight.new_zeros(len(w.weight)) if w.bias is None else w.bias for w in layers]
    return weight, torch.cat(zeros)


def _logit_scales(attention: nn.Module) -> Iterator[float]:
    for name in ("scaling", "scale"):
        if isinstance(value := getattr(attention, name, None), float):
            yield value


def _arguments(block: nn.Module) -> tuple[str, ...]:
    """Return the names of what a block is called with by position, x first."""
    found = inspect.signature(type(block).forward).parameters.values()
    return tuple(p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD)[1:]


def is_gelu(activation: Any) -> bool:
    """Return whether an activation is x (1 + erf(x / sqrt 2)) / 2.

    That of tanh differs from it by up to 5e-4, x sigmoid(1.702 x) by more.
    """
    if isinstance(activation, nn.Module) and next(activation.parameters(), None) is not None:
        return False
    x = torch.linspace(-6, 6, 97)
    return bool((activation(x) - nn.functional.gelu(x)).abs().max() < 1e-5)
