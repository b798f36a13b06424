"""The identity of a module: a hash of its weights, a hash of what it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor, nn

from pyfeat._identity import canonical_json


def weights_hash(weights: Mapping[str, Any]) -> str:
    """Return BLAKE3 over the names, dtypes, shapes and bytes of tensors.

    Parameters
    ----------
    weights : mapping of str to Tensor
        For example a `state_dict()`. Order, device and memory layout do not count. A value that
        is no tensor (an extra state) counts by its `repr`.

    Returns
    -------
    digest : str of 64 hexadecimal digits
    """
    hasher = blake3(max_threads=blake3.AUTO)
    for name in sorted(weights):
        value = weights[name]
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            header = [name, str(value.dtype), list(value.shape)]
            hasher.update(canonical_json(header).encode())
            hasher.update(value.reshape(-1).view(torch.uint8).numpy().data)
        else:
            hasher.update(canonical_json([name, "repr", repr(value)]).encode())
    return hasher.hexdigest()


def all_tensors(module: nn.Module) -> dict[str, Any]:
    """Return the state dict and the buffers that a state dict leaves out (`persistent=False`)."""
    return {**dict(module.named_buffers(remove_duplicate=False)), **module.state_dict()}


def architecture_of(module: nn.Module) -> str:
    """Return the class of a module and a hash of its `repr`.

    Two modules whose class, `repr` and weights are equal are taken for the same, even if their
    forward passes differ.
    """
    # A function among the attributes would otherwise put its address, new in every process, here.
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))
    return f"{class_name(module)}:{blake3(text.encode()).hexdigest()}"


def class_name(module: nn.Module) -> str:
    """Return the full name of the class of a module."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
