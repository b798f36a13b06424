"""What runs in 8-bit floats: a linear layer, and a whole block of a transformer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyfeat.ops import Quantized, fp8_linear, layernorm_quantize, quantize_fp8

_MASKS = ("attn_mask", "attention_mask", "causal_attention_mask")
# Embedded in the rows before the first block; transformers hands them on to every block.
_POSITIONS = ("cache_position", "position_ids")
Affine = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class BlockParts:
    """What a block of a transformer is made of, in float32.

    Parameters
    ----------
    norms : pair of nn.LayerNorm
    qkv, proj, fc1, fc2 : pair of Tensor (m, k) and Tensor (m,) or None
        Weights and biases; those of queries, keys and values one below the other.
    scales : pair of Tensor (d,) or None
        What each branch is multiplied with before it is added (LayerScale).
    heads : int
    scale : float or None
        What logits are multiplied with; None: 1 / sqrt(d / heads).
    head_norms : pair of nn.Module, or None
        Of queries and keys, head by head.
    activation : callable or None
        None: GELU.
    is_post : bool
        Whether the norms follow the sums (BERT) or begin the branches (ViT).
    arguments : tuple of str
        Names of the block's arguments, the first of which is x.
    """

    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    qkv: Affine
    proj: Affine
    fc1: Affine
    fc2: Affine
    scales: tuple[Tensor | None, Tensor | None]
    heads: int
    scale: float | None
    head_norms: tuple[nn.Module, nn.Module] | None
    activation: Callable[[Tensor], Tensor] | None
    is_post: bool
    arguments: tuple[str, ...]


class Fp8Linear(nn.Module):
    """x W^T + b, rows of x and of W rounded to e4m3 with a scale each; bfloat16 comes out.

    Parameters
    ----------
    affine : pair of Tensor (m, k) and Tensor (m,) or None
        Weight and bias in float32: rounded here, once.
    backend : {"triton", "reference"}
        Of the ops.
    scale : Tensor of shape (m,), optional
        The result is multiplied with it: it goes into the scales of W, and into b.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, affine: Affine, backend: str, scale: Tensor | None = None) -> None:
        super().__init__()
        weight, bias = affine
        self.out_features, self.in_features = weight.shape
        self.backend = backend
        codes, scales = quantize_fp8(weight.float(), backend=backend)
        if scale is not None:
            scales = scales * scale.float()
            bias = None if bias is None else bias.float() * scale.float()
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.float(), persistent=False)
        # Who asks for the weight wants to know its type; a product with it gives NaN.
        unknown = scales.new_full((1, 1), torch.nan, dtype=torch.bfloat16)
        self.register_buffer("weight", unknown.expand(weight.shape), persistent=False)

    def product(
        self, rows: Quantized, *, gelu: bool = False, residual: Tensor | None = None
    ) -> Tensor:
        """Return (n, m) from rows (n, k) that are rounded already."""
        weight = Quantized(self.codes, self.scales)
        return fp8_linear(
            rows, weight, self.bias, gelu=gelu, residual=residual, backend=self.backend
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., m) from (..., k)."""
        with torch.autocast(x.device.type, enabled=False):
            rows = quantize_fp8(x.reshape(-1, self.in_features), backend=self.backend)
            return self.product(rows).reshape(*x.shape[:-1], self.out_features)


class Fp8Block(nn.Module):
    """A block of a transformer with its large products in 8-bit floats, the rest in bfloat16.

    Parameters
    ----------
    parts : BlockParts
    backend : {"triton", "reference"}
        Of the ops.

    Attributes
    ----------
    is_post : bool
    as_tuple : bool
        Whether the result is a tuple of one tensor, as some blocks of transformers return it.

    Notes
    -----
    x = x + attention(norm(x)), then x = x + mlp(norm(x)); norms follow the sums where `is_post`.
    A norm at the beginning of a branch is one pass with the rounding of its rows; bias, GELU and
    sum belong to the products. LayerScale is part of the scales of the product that it follows.

    Rounding costs a number 2 or 3 percent of its size, so the bias of a norm in front of a product
    is not rounded with the row: W (g n + b) + c = W (g n) + (W b + c). The product behind the
    attention stays in bfloat16: it has one FLOP in twelve, and for its size it would bring more of
    the error than the others.

    No number is asked of the device: the launches can be recorded.
    """

    def __init__(self, parts: BlockParts, backend: str) -> None:
        super().__init__()
        self.as_tuple = False
        self.is_post = parts.is_post
        self._parts = parts.heads, parts.scale, parts.arguments
        self._backend = backend
        shifts = [None if parts.is_post else norm.bias for norm in parts.norms]
        self.qkv = Fp8Linear(_shifted(parts.qkv, shifts[0]), backend)
        self.proj = _linear_of(parts.proj, parts.scales[0])
        self.fc1 = Fp8Linear(_shifted(parts.fc1, shifts[1]), backend)
        self.fc2 = Fp8Linear(parts.fc2, backend, parts.scales[1])
        where = parts.qkv[0].device
        self.norms = nn.ModuleList(_norm_of(norm, where, parts.is_post) for norm in parts.norms)
        norms = parts.head_norms
        self.head_norms = norms and nn.ModuleList(_in_bfloat16(norm) for norm in norms)
        self.activation = parts.activation and _in_bfloat16(parts.activation)

    def use(self, backend: str) -> None:
        """Go on with another backend."""
        self._backend = backend
        for linear in (self.qkv, self.fc1, self.fc2):
            linear.backend = backend

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return (n, l, d) from (n, l, d), called as the block that it stands for."""
        _, _, names = self._parts
        given = dict(zip(names, args, strict=False)) | kwargs
        x = given.pop(names[0])
        mask, causal = _mask_of(given)
        with torch.autocast(x.device.type, enabled=False):
            flat = x.to(torch.bfloat16).reshape(-1, x.shape[-1])
            flat = self._attended(flat, x.shape[:2], mask, causal)
            out = self._mixed(flat).reshape(x.shape)
        return (out,) if self.as_tuple else out

    def _attended(self, x: Tensor, shape: Any, mask: Tensor | None, causal: bool) -> Tensor:
        heads, scale, _ = self._parts
        qkv = self.qkv.product(self._rounded(x, 0)).reshape(*shape, 3, heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (n, heads, l, d / heads) each
        if self.head_norms is not None:
            q, k = self.head_norms[0](q), self.head_norms[1](k)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scale
        )
        return self._finished(x + self.proj(out.transpose(1, 2).reshape(len(x), -1)), 0)

    def _mixed(self, x: Tensor) -> Tensor:
        rows = self._rounded(x, 1)
        if self.activation is None:
            hidden = self.fc1.product(rows, gelu=True)
        else:
            hidden = self.activation(self.fc1.product(rows))
        hidden_rows = quantize_fp8(hidden, backend=self._backend)
        return self._finished(self.fc2.product(hidden_rows, residual=x), 1)

    def _rounded(self, x: Tensor, i: int) -> Quantized:
        if self.is_post:
            return quantize_fp8(x, backend=self._backend)
        norm: Any = self.norms[i]
        return layernorm_quantize(x, norm.weight, norm.bias, norm.eps, backend=self._backend)

    def _finished(self, x: Tensor, i: int) -> Tensor:
        return self.norms[i](x) if self.is_post else x


def _shifted(affine: Affine, shift: Tensor | None) -> Affine:
    """Return what gives for x what a layer gives for x + shift."""
    weight, bias = affine
    if shift is None:
        return affine
    added = weight.double() @ shift.double()
    return weight, (added if bias is None else added + bias.double()).float()


def _linear_of(affine: Affine, scale: Tensor | None) -> nn.Linear:
    """Return a layer in bfloat16, what it gives multiplied with a scale."""
    weight, bias = affine
    if scale is not None:
        weight = weight * scale[:, None]
        bias = None if bias is None else bias * scale
    (m, k), where = weight.shape, weight.device
    made = nn.Linear(k, m, bias is not None, device=where, dtype=torch.bfloat16)
    made.weight.data.copy_(weight)
    if bias is not None:
        made.bias.data.copy_(bias)
    return made.requires_grad_(False)


def _norm_of(norm: nn.LayerNorm, where: torch.device, is_post: bool) -> nn.LayerNorm:
    """Return a plain copy, with a weight and a bias; in front of a product that is zero."""
    # The op takes weights in float32, torch those of the type of its rows.
    dtype = torch.bfloat16 if is_post else torch.float32
    made = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, device=where, dtype=dtype)
    if norm.weight is not None:
        made.weight.data.copy_(norm.weight)
    if is_post and norm.bias is not None:
        made.bias.data.copy_(norm.bias)
    return made.requires_grad_(False)


def _in_bfloat16(part: Any) -> Any:
    return copy.deepcopy(part).to(torch.bfloat16) if isinstance(part, nn.Module) else part


def _mask_of(given: dict[str, Any]) -> tuple[Tensor | None, bool]:
    """Return the mask that a block was called with, and whether it is to be causal.

    Raises
    ------
    ValueError
        If it was called with another tensor.
    """
    masks = [given.pop(name) for name in _MASKS if given.get(name) is not None]
    tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
    others = [name for name in tensors if name not in _POSITIONS]
    if others:
        raise ValueError(f"a block in fp8 must take rows and a mask only, got {others[0]}")
    if not masks:
        return None, bool(given.get("is_causal"))
    if all(mask.dtype == torch.bool for mask in masks):
        return functools.reduce(torch.logical_and, masks), False
    total = functools.reduce(torch.add, map(_as_added, masks))
    # What float32 has below the least bfloat16 would become infinite.
    return total.clamp(min=torch.finfo(torch.bfloat16).min).to(torch.bfloat16), False


def _as_added(mask: Tensor) -> Tensor:
    """Return what a mask adds to logits, in float32."""
    if mask.dtype != torch.bool:
        return mask.float()
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
