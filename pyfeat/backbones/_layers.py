"""Which layers of a network give the row, and how what they give becomes a row."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Layers = int | str | Sequence[int | str]

POOLINGS = ("auto", "cls", "avg", "max", "gem", "cls+avg", "none")
OUTPUT = "output"  # what the network itself returns
_GEM_POWER, _GEM_FLOOR = 3.0, 1e-6  # as in `pyfeat.ops.pool`
_CLASS_TOKEN = re.compile(r"(^|[._])(cls_token|class_token|class_embedding)$")


class _Stop(Exception):
    pass


class Tapped(nn.Module):
    """A network that runs as far as the last wanted layer, and returns pooled layers.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode. Hooks stay on its wanted layers.
    names : sequence of str
        Layers, as `named_modules` calls them, or "output".
    pooling : str
        One of `POOLINGS`.

    Attributes
    ----------
    lengths : sequence of int or None
        To how many tokens each layer is filled up; None: it stays as it is.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], pooling: str) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)
        self.pooling = pooling
        self.prefix = prefix_tokens(module)
        self.lengths: Sequence[int | None] = [None] * len(self.names)
        self._seen = threading.local()
        self._handles = {
            name: module.get_submodule(name).register_forward_hook(self._hook(name))
            for name in self.names
            if name != OUTPUT
        }

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return (n, d): the wanted layers, pooled, beside each other."""
        return torch.cat([row.flatten(1) for row in self.pooled(*inputs)], dim=1)

    def pooled(self, *inputs: Tensor) -> list[Tensor]:
        """Return what each wanted layer gives, pooled."""
        seen: dict[str, Tensor] = {}
        self._seen.outputs = seen
        try:
            seen[OUTPUT] = tensor_of(self.module(*inputs))
        except _Stop:
            pass
        finally:
            del self._seen.outputs
        missing = [name for name in self.names if name not in seen]
        if missing:
            raise ValueError(f"layers must be ones that the forward pass runs, got {missing[0]!r}")
        rows = []
        for name, length in zip(self.names, self.lengths, strict=True):
            mask = self._mask_of(seen[name], inputs)
            row = pool_layer(seen[name], self.pooling, self.prefix, mask, name)
            rows.append(filled_up(row, length, mask) if self.pooling == "none" else row)
        return rows

    def _mask_of(self, x: Any, inputs: tuple[Tensor, ...]) -> Tensor | None:
        """Return which tokens of texts count, or states of recordings that were filled up."""
        if len(inputs) > 1:
            return inputs[1]
        heard: Any = getattr(self.module, "heard", None)
        if heard is None or getattr(x, "ndim", 0) != 3:
            return None
        mask: Tensor = heard(*inputs)
        return mask if mask.shape[1] == x.shape[1] else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Tapped:
        module = copy.deepcopy(self.module, memo)
        for name, handle in self._handles.items():  # they note what they see for the original
            module.get_submodule(name)._forward_hooks.pop(handle.id)
        made = Tapped(module, self.names, self.pooling)
        made.lengths = self.lengths
        return made

    def _hook(self, name: str) -> Any:
        def note(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            seen = getattr(self._seen, "outputs", None)
            if seen is not None and name not in seen:
                seen[name] = tensor_of(output)
                if len(seen) == len(self.names):
                    raise _Stop
                if isinstance(seen[name], Tensor):  # what runs next may write over it
                    seen[name] = seen[name].clone()

        return note


def tensor_of(output: Any) -> Any:
    """Return the tensor that an output is or begins with: layers of transformers return tuples."""
    for name in ("last_hidden_state", "image_embeds", "text_embeds"):
        if isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)
    return output[0] if isinstance(output, (tuple, list)) and output else output


def pool_layer(x: Tensor, pooling: str, prefix: int, mask: Tensor | None, name: str) -> Tensor:
    """Return (n, d) from maps (n, c, h, w) or (n, h, w, c), tokens (n, l, c) or rows (n, d).

    Parameters
    ----------
    x : Tensor
    pooling : str
        One of `POOLINGS`; "none" gives `x` as it is.
    prefix : int
        Tokens that stand for no position (class token, registers): the first is the class token.
    mask : Tensor of shape (n, l), optional
        1 where a token counts.
    name : str
        Of the layer, for messages.

    Raises
    ------
    ValueError
        If `x` has no such pooling.
    """
    if not isinstance(x, Tensor) or x.ndim not in {2, 3, 4} or not x.is_floating_point():
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"layers must give maps, tokens or rows, got {got} from {name!r}")
    if pooling == "none" or (x.ndim == 2 and pooling == "auto"):
        return x
    if x.ndim == 2:
        raise ValueError(f"pooling must be 'auto' or 'none' for rows, got {pooling!r} for {name!r}")
    tokens = _tokens(x)
    if x.ndim == 4:
        prefix, mask = 0, None
    if pooling == "auto":
        pooling = "cls" if prefix else "avg"
    # Texts begin with a special token; whether a row of it means something is up to the model.
    if pooling in ("cls", "cls+avg") and not prefix and mask is None:
        raise ValueError(f"pooling must be one without a class token for {name!r}, got {pooling!r}")
    first = [tokens[:, 0]] if pooling in ("cls", "cls+avg") else []
    if pooling == "cls":
        return first[0]
    rest = tokens[:, prefix:] if mask is None else tokens
    return torch.cat([*first, _over_positions(rest, pooling, mask)], dim=1)


def filled_up(tokens: Tensor, length: int | None, mask: Tensor | None) -> Tensor:
    """Return (n, length, d): tokens (n, l, d), zeros where a mask (n, l) is, and behind them.

    Rows and maps stay as they are, and so do tokens whose `length` is None, but for the mask.
    """
    if mask is not None and tokens.ndim == 3:
        tokens = tokens * mask[:, :, None].to(tokens.dtype)
    if length is None:
        return tokens
    zeros = tokens.new_zeros(len(tokens), length, tokens.shape[2])
    return torch.cat([tokens, zeros], dim=1)[:, :length]


def _tokens(x: Tensor) -> Tensor:
    if x.ndim == 3:
        return x
    # Images are square: two equal sides are height and width.
    last = x.shape[1] == x.shape[2] != x.shape[3]
    return x.flatten(1, 2) if last else x.flatten(2).transpose(1, 2)


def _over_positions(tokens: Tensor, pooling: str, mask: Tensor | None) -> Tensor:
    if pooling == "max":
        if mask is not None:
            tokens = tokens.masked_fill(mask[:, :, None] == 0, -torch.inf)
        return tokens.amax(dim=1)
    if pooling == "gem":
        tokens = tokens.clamp(min=_GEM_FLOOR) ** _GEM_POWER
    if mask is None:
        mean = tokens.mean(dim=1)
    else:
        share = mask[:, :, None].to(tokens.dtype)
        mean = (tokens * share).sum(dim=1) / share.sum(dim=1).clamp(min=1)
    return mean ** (1 / _GEM_POWER) if pooling == "gem" else mean


def prefix_tokens(module: nn.Module) -> int:
    """Return how many tokens stand before those of the positions: class token and registers."""
    for layer in module.modules():
        if isinstance(count := getattr(layer, "num_prefix_tokens", None), int):
            return count
    names = [name for name, _ in module.named_parameters()]
    if not any(_CLASS_TOKEN.search(name) for name in names):
        return 0
    registers = [p for name, p in module.named_parameters() if name.endswith("register_tokens")]
    return 1 + sum(int(p.shape[1]) for p in registers)


def resolve_layers(module: nn.Module, layers: Layers, inputs: tuple[Tensor, ...]) -> list[str]:
    """Return the names of layers: -1 is "output", -2 the last block but one, and so on.

    Raises
    ------
    TypeError
        If `layers` holds something else than names and negative integers.
    ValueError
        If there is no such layer, or none at all.
    """
    wanted = [layers] if isinstance(layers, (int, str)) else list(layers)
    if not wanted:
        raise ValueError("layers must name at least one layer, got none")
    blocks: list[str] | None = None
    known = dict(module.named_modules())
    found = []
    for layer in wanted:
        if isinstance(layer, bool) or not isinstance(layer, (int, str)):
            raise TypeError(f"layers must be names or negative integers, got {layer!r}")
        if layer in (-1, OUTPUT):
            found.append(OUTPUT)
        elif isinstance(layer, int):
            blocks = block_names(module, inputs) if blocks is None else blocks
            if not -len(blocks) <= layer < -1:
                raise ValueError(f"layers must be in [-{max(len(blocks), 1)}, -1], got {layer}")
            found.append(blocks[layer])
        elif layer in known and layer:
            found.append(layer)
        else:
            some = ", ".join(list(known)[1:6])
            raise ValueError(f"layers must be names of layers ({some}, ...), got {layer!r}")
    if len(set(found)) < len(found):
        raise ValueError(f"layers must differ, got {wanted}")
    return found


def block_names(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Return the layers that follow each other, in the order in which they run.

    They are the members of the outermost lists of layers (`nn.Sequential`, `nn.ModuleList`), a
    list in a list being opened: `blocks.0` to `blocks.11`, or `layer1.0` to `layer4.2`.
    """
    lists = (nn.Sequential, nn.ModuleList)
    members: dict[str, nn.Module] = {}

    def collect(path: str, layer: nn.Module, inside: bool) -> None:
        for name, child in layer.named_children():
            at = f"{path}.{name}" if path else name
            if type(child) in lists:
                collect(at, child, True)
            elif inside:
                members[at] = child
            else:
                collect(at, child, False)

    collect("", module, type(module) in lists)
    ran = [name for name, _ in trace_shapes(module, inputs)]
    return [name for name in ran if name in members]


def trace_shapes(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[str, Any]]:
    """Return the layers that ran and the shape of what each gave, in the order they ended."""
    ran: dict[str, Any] = {}

    def hook(name: str) -> Any:
        def note(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            first = tensor_of(output)
            if isinstance(first, Tensor):
                ran.setdefault(name, tuple(first.shape))

        return note

    handles = [m.register_forward_hook(hook(n)) for n, m in module.named_modules() if n]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(ran.items())


def last_map(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Return the layer whose maps or tokens the row of a network is made of.

    Raises
    ------
    ValueError
        If no layer gives maps or tokens.
    """
    with torch.no_grad():
        own = tensor_of(module(*inputs))
    if isinstance(own, Tensor) and own.ndim > 2:
        return OUTPUT
    shapes = [(n, s) for n, s in trace_shapes(module, inputs) if len(s) in {3, 4}]
    # A map of one position is what pooling made of the last one.
    maps = [n for n, s in shapes if max(s[1], s[2]) > 1 and (len(s) == 3 or max(s[2:]) > 1)]
    if not maps:
        raise ValueError("pooling must be 'auto' for a network without maps or tokens")
    return maps[-1]
