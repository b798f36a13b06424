"""Weights in a file of the caller's: read without running code, and fitted to an architecture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from pyfeat.backbones._files import stamp_of
from pyfeat.backbones._pretrained import UnpicklingError

# Where training scripts put the weights, and what wrappers put before their names.
_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIXES = (
    "",
    "module.",
    "model.",
    "backbone.",
    "module.model.",
    "module.backbone.",
    "model.module.",
    "model.backbone.",
)
_COUNTERS = "num_batches_tracked"  # of batch norms; files of before torch 0.4.1 have none
_SHOWN = 3


@dataclass(frozen=True)
class _Misfit:
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    @property
    def size(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    def __str__(self) -> str:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.mismatched,
        }
        return "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:_SHOWN])}{', ...' * (len(keys) > _SHOWN)})"
            for kind, keys in kinds.items()
            if keys
        )


def fill(
    module: nn.Module,
    path: str | os.PathLike[str],
    dropped: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Load a file of weights into a module, in place.

    Parameters
    ----------
    module : nn.Module
        Without its classifier.
    path : path-like
        A safetensors file, or a file of `torch.save` that loads with `weights_only=True`: a state
        dict, or a dict that holds one as "state_dict", "model_state_dict" or "model".
    dropped : sequence of str
        Layers of the classifier and of auxiliary ones: their keys may be in the file.
    renamed : mapping of str to str, optional
        Regular expressions of old names of keys, and what takes their place.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it holds something else than weights, or the weights of another architecture.

    Notes
    -----
    Every tensor must be there, in its shape, and no other but those of `dropped`. A prefix such as
    "module." is taken off where all keys fit without it.
    """
    text = os.fspath(path)
    found = read_tensors(path)
    wanted = module.state_dict()
    best: _Misfit | None = None
    for state in _candidates(found):
        fitted = _kept(_renamed(state, renamed or {}), wanted, dropped)
        misfit = _misfit(wanted, fitted)
        if not misfit.size:
            module.load_state_dict({**wanted, **fitted})
            return
        best = misfit if best is None or misfit.size < best.size else best
    reason = "no tensors" if best is None else f"keys that do not fit: {best}"
    raise ValueError(
        f"weights must be those of {type(module).__name__}, got {text!r} with {reason}"
    )


def read_tensors(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return what a safetensors or torch file holds; nothing in it is run.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged, of another kind, or can only be loaded by running what is in it.
    """
    text = stamp_of(path, "weights").path
    rule = "weights must be a safetensors file or a torch file that weights_only=True loads"
    try:
        with Path(text).open("rb") as f:
            # After eight bytes of length, a safetensors file begins with JSON.
            is_safetensors = f.read(9)[8:] == b"{"
            if is_safetensors:
                f.seek(0)
                return dict(load_safetensors(f.read()))
        found = torch.load(text, map_location="cpu", weights_only=True)
    except PermissionError as error:
        got = f"{text!r}: {error.strerror}"
        raise OSError(f"weights must be a file that can be read, got {got}") from error
    # An OSError: torch seeks to where the end of a file that was cut short should be.
    except (UnpicklingError, SafetensorError, OSError, EOFError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        first = lines[0] if lines else type(error).__name__
        raise ValueError(f"{rule}, got {text!r}: {first}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{rule}, got {text!r} with a {type(found).__name__}")
    return found


def _candidates(found: Mapping[str, Any]) -> Iterator[Mapping[str, Tensor]]:
    """Yield what may be the state dict, with and without prefixes."""
    for inner in (found, *(found.get(name) for name in _NESTED)):
        if not isinstance(inner, Mapping):
            continue
        tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
        for prefix in _PREFIXES:
            if tensors and all(key.startswith(prefix) for key in tensors):
                yield {key[len(prefix) :]: value for key, value in tensors.items()}


def _renamed(state: Mapping[str, Tensor], rules: Mapping[str, str]) -> Mapping[str, Tensor]:
    for pattern, new in rules.items():
        state = {re.sub(pattern, new, key): value for key, value in state.items()}
    return state


def _kept(
    state: Mapping[str, Tensor], wanted: Mapping[str, Any], dropped: Sequence[str]
) -> dict[str, Tensor]:
    begins = tuple(f"{layer}." for layer in dropped)
    return {k: v for k, v in state.items() if k in wanted or not k.startswith(begins)}


def _misfit(wanted: Mapping[str, Any], state: Mapping[str, Tensor]) -> _Misfit:
    return _Misfit(
        [k for k in wanted if k not in state and not k.endswith(_COUNTERS)],
        [k for k in state if k not in wanted],
        [
            f"{k}: {tuple(state[k].shape)} for {tuple(v.shape)}"
            for k, v in wanted.items()
            if k in state and state[k].shape != v.shape
        ],
    )
