"""Modules that were frozen before: one that has not changed since is not frozen again."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from blake3 import blake3
from torch import nn

from pyfeat.backbones._backbone import Backbone
from pyfeat.backbones._weights import all_tensors, architecture_of, weights_hash

_KEPT = 2  # as of those with a name
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")

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
    attributes: list[Any] = []
    for path, layer in module.named_modules(remove_duplicate=False):
        if any(getattr(layer, hooks) for hooks in _HOOKS):
            return None
        own = {k: v for k, v in vars(layer).items() if k not in _OF_EVERY_MODULE}
        attributes.append((path, sorted(own.items())))
    try:
        content = blake3(pickle.dumps(attributes)).digest()
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RuntimeError):
        return None
    classes = tuple(type(layer) for layer in module.modules())
    return (classes, content, architecture_of(module), weights_hash(all_tensors(module)))
