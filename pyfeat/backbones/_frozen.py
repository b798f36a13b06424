"""Modules that were frozen before: one that has not changed since is not frozen again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from pyfeat.backbones._backbone import Backbone
from pyfeat.backbones._weights import all_tensors, architecture_of, weights_hash

_KEPT = 2  # as of those with a name
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_ATOMS = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_DEEPEST = 8  # levels of an attribute that are looked at; one that holds itself has no end

_lock = threading.Lock()
_frozen: OrderedDict[Hashable, Backbone] = OrderedDict()


def frozen_before(
    module: nn.Module, settings: tuple[Hashable, ...], freeze: Callable[[], Backbone]
) -> Backbone:
    """Return what `freeze` gave for an equal module and settings, or what it gives now.

    Parameters
    ----------
    module : nn.Module
    settings : tuple of hashable
        All that the backbone depends on besides.
    freeze : callable
    """
    state = _state_of(module)
    if state is None:
        return freeze()
    key = (state, settings)
    with _lock:
        found = _frozen.get(key)
    if found is None:
        found = freeze()
    with _lock:
        _frozen[key] = found
        _frozen.move_to_end(key)
        while len(_frozen) > _KEPT:
            _frozen.popitem(last=False)
    return found


def _state_of(module: nn.Module) -> Hashable | None:
    """Return all that the rows of a module follow from, or None where that cannot be told.

    More than the identity of its rows (see `architecture_of`): classes by themselves, not by their
    names, because one that was defined again may compute something else; and every attribute.
    """
    layers = []
    for path, layer in module.named_modules(remove_duplicate=False):
        if any(getattr(layer, hooks) for hooks in _HOOKS):
            return None
        own = {k: v for k, v in vars(layer).items() if k not in _OF_EVERY_MODULE}
        try:
            layers.append((path, type(layer), _value_of(own)))
        except _UnknownError:
            return None
    return (*layers, architecture_of(module), weights_hash(all_tensors(module)))


class _UnknownError(Exception):
    """An attribute whose value cannot be compared."""


def _value_of(value: Any, depth: int = 0) -> Hashable:
    """Return what is equal for two attributes only if they are."""
    if depth > _DEEPEST:
        raise _UnknownError
    if value is None or isinstance(value, (*_ATOMS, type, FunctionType, BuiltinFunctionType)):
        return (type(value), value)
    if isinstance(value, (list, tuple)):
        return (type(value), *(_value_of(v, depth + 1) for v in value))
    if isinstance(value, dict):
        return (type(value), *((_value_of(k), _value_of(v, depth + 1)) for k, v in value.items()))
    if isinstance(value, Tensor):
        return weights_hash({"": value})
    if isinstance(value, partial):
        return _value_of((partial, value.func, value.args, value.keywords), depth + 1)
    *classes, _ = type(value).__mro__
    # What a class made in C holds besides a `__dict__` is not seen.
    if not classes or "__dict__" not in vars(classes[-1]):
        raise _UnknownError
    if any("__slots__" in vars(c) for c in classes):
        raise _UnknownError
    return (type(value), _value_of(vars(value), depth + 1))
