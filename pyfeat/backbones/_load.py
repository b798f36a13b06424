"""The one door to a backbone."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyfeat.backbones._backbone import Backbone, freeze
from pyfeat.backbones._files import FileStamp, stamp_of
from pyfeat.backbones._frozen import frozen_before
from pyfeat.backbones._hf import load_hf
from pyfeat.backbones._keras import load_keras
from pyfeat.backbones._layers import POOLINGS, Layers
from pyfeat.backbones._lite import load_lite
from pyfeat.backbones._modality import Preparation, Tokenization
from pyfeat.backbones._names import OPEN_SOURCES, find_source
from pyfeat.backbones._onnx import load_onnx
from pyfeat.backbones._pretrained import IMAGENET, Pretrained
from pyfeat.backbones._resemblyzer import RESEMBLYZER, load_resemblyzer
from pyfeat.backbones._st import MINILM, load_minilm, load_st
from pyfeat.backbones._timm import load_timm, preprocessing_of_module
from pyfeat.backbones._torchvision import load_torchvision
from pyfeat.backbones._weights import all_tensors, architecture_of, class_name

DEFAULT_BACKBONE = "efficientnet_lite0"

_LOADERS: dict[str, Any] = {
    "pyfeat": lambda name, chosen: _OWN.get(name, load_lite)(name, chosen),
    "torchvision": load_torchvision,
    "timm": load_timm,
    "hf": load_hf,
    "st": load_st,
    "onnx": load_onnx,
    "keras": load_keras,
}
_OWN: dict[str, Any] = {MINILM: load_minilm, RESEMBLYZER: load_resemblyzer}
# Sources whose weights are downloaded, and whose networks can be built without them.
_WITHOUT_WEIGHTS: dict[str, Callable[[str, Any], Pretrained]] = {
    "torchvision": partial(load_torchvision, pretrained=False),
    "timm": partial(load_timm, pretrained=False),
}
_TAKE_FILES = ("torchvision", "timm")


def load_backbone(
    backbone: str | nn.Module,
    *,
    layers: Layers = -1,
    pooling: str = "auto",
    preprocessing: Preparation | None = None,
    max_length: int | None = None,
    device: str | torch.device = "auto",
    weights: str | os.PathLike[str] | None = None,
) -> Backbone:
    """Return a frozen backbone by name, or freeze a module of your own.

    Parameters
    ----------
    backbone : str or nn.Module
        - "efficientnet_lite0": ImageNet weights from a Python package, no download;
        - "minilm": all-MiniLM-L6-v2, for texts, from a Python package;
        - "resemblyzer": a speaker encoder, for recordings, from a Python package;
        - "torchvision/NAME" or "torchvision/NAME@WEIGHTS", "timm/NAME" or "timm/NAME.TAG": the
          weights are downloaded on first use, without @WEIGHTS or .TAG the default ones;
        - "hf/NAME": a model of transformers, from a folder or the Hugging Face hub, for images,
          texts or recordings; of two towers (CLIP, SigLIP) the one for images, "hf/NAME#text" for
          texts;
        - "st/NAME": a model of sentence-transformers, with its own pooling and normalisation;
        - "onnx/FILE": an image model in an ONNX file; its bytes are its identity, not its path.
          Its layers are the names of tensors of its graph;
        - "keras/NAME": a network of `keras.applications` without its classifier, on Keras 3 with
          its torch backend (see `pyfeat backbones keras/`). Its layers go by the names that Keras
          gives them in a fresh process ("block4_pool", "conv2d_93");
        - a bare name: torchvision's model of that name, else timm's;
        - a module that maps (n, 3, crop, crop) to (n, d) or to (n, c, h, w), which is averaged
          over h and w. It is copied: training it further changes neither the rows of this backbone
          nor their identity, and its mode, device and gradients stay as they are.
    layers : int, str or sequence of them, default=-1
        What the row is made of. -1 is what the network itself returns before its classifier; -2
        the last block but one, and so on; a str is the name of a layer (see `pyfeat backbones
        show`). Several are put beside each other. What lies behind the last is not computed.
    pooling : {"auto", "cls", "avg", "max", "gem", "cls+avg", "none"}, default="auto"
        How a map or tokens become a row. "auto" is what the network does itself; for an inner
        layer the class token if there is one, else the mean. "none": maps and tokens as they are,
        flattened; tokens of texts are filled up with zeros to `max_length`, those of recordings to
        as many as a window has, of which only the first is seen.
    preprocessing : Preprocessing, optional
        By default what the weights were trained with; for a module that of its timm
        `pretrained_cfg` if it has one, else the usual ImageNet one (256, 224, bilinear).
    max_length : int, optional
        Most tokens of a text, if fewer than the model takes. Part of the identity of the rows.
    device : str or torch.device, default="auto"
        "auto" is CUDA where there is a GPU, else the CPU.
    weights : path-like, optional
        Weights for a model of torchvision or timm: a safetensors file, or a state dict of
        `torch.save` that loads with `weights_only=True`. Nothing is downloaded. A classifier in it
        is left out, all else must fit; the preprocessing stays that of the name.

    Returns
    -------
    backbone : Backbone
        The two most recent ones by name are kept, and the two most recent modules: loading a name
        again is free, and a module that has not changed costs the hash of its weights.

    Raises
    ------
    ImportError
        If a package that the name needs is missing; the message says what to install.
    TypeError
        If `backbone` is neither a string nor a module, or the module cannot be copied or holds a
        ScriptModule.
    ValueError
        If there is no such name, weights or device, or the module has another signature, carries
        forward hooks, or has no weights yet (meta device, lazy layers); or if `weights` are damaged
        or those of another architecture.
    OSError
        If the weights can neither be read from the cache nor downloaded, or a file cannot be read.

    Notes
    -----
    A module is identified by its class, its `repr` and its tensors. Two modules in which these are
    equal and only the code of `forward` differs are taken for the same. Forward hooks could change
    rows just as unseen, so only those by which `torch.nn.utils` computes weights may stay.

    Examples
    --------
    >>> from torch import nn
    >>> backbone = load_backbone(nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.ReLU()), device="cpu")
    >>> backbone.dim
    8
    """
    where = resolve_device(device)
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {list(POOLINGS)}, got {pooling!r}")
    is_count = isinstance(max_length, int) and not isinstance(max_length, bool)
    if max_length is not None and not is_count:
        raise TypeError(f"max_length must be an integer or None, got {max_length!r}")
    wanted = layers if isinstance(layers, (int, str)) else tuple(layers)
    if isinstance(backbone, str):
        stamps = _stamps(backbone, weights)
        settings = (wanted, pooling, preprocessing, max_length, str(where), stamps)
        return _load_named(backbone, *settings)
    if isinstance(backbone, nn.Module):
        if weights is not None:
            raise ValueError("weights must go with a name: load them into the module yourself")
        _check_module(backbone)
        given = (wanted, pooling, preprocessing, max_length, str(where))
        return frozen_before(backbone, given, lambda: _freeze_module(backbone, *given))
    raise TypeError(f"backbone must be a name or an nn.Module, got {type(backbone).__name__}")


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device meant, a GPU with its number.

    Raises
    ------
    ValueError
        If there is no such device here.
    """
    if str(device) == "cpu:0":  # there is one CPU: torch's other name for it
        device = "cpu"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    have = ["auto", "cpu", *(["cuda"] if n_gpus else []), *(f"cuda:{i}" for i in range(n_gpus))]
    if str(device) not in have:
        raise ValueError(f"device must be one of {have}, got {str(device)!r}")
    found = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if str(found) == "cuda" else found


@lru_cache(maxsize=2)
def _load_named(
    name: str,
    layers: Layers,
    pooling: str,
    preprocessing: Preparation | None,
    max_length: int | None,
    device: str,
    stamps: tuple[FileStamp | None, tuple[FileStamp, ...]],
) -> Backbone:
    file = stamps[0]
    if file is None:
        found = take_named(name, preprocessing)
    else:
        found = _from_file(name, preprocessing, file.path)
    return freeze(shortened(found, max_length), torch.device(device), layers, pooling)


def _freeze_module(
    module: nn.Module,
    layers: Layers,
    pooling: str,
    preprocessing: Preparation | None,
    max_length: int | None,
    device: str,
) -> Backbone:
    found = shortened(take_module(module, preprocessing), max_length)
    return freeze(found, torch.device(device), layers, pooling)


def take_named(name: str, preprocessing: Preparation | None, *, weights: bool = True) -> Pretrained:
    """Return what the source of a name hands over.

    Parameters
    ----------
    name : str
    preprocessing : Preprocessing or None
        None means the one that belongs to the weights.
    weights : bool, default=True
        False: random numbers instead of weights that would be downloaded.
    """
    source, inner = find_source(name)
    if not weights and source in _WITHOUT_WEIGHTS:
        return _WITHOUT_WEIGHTS[source](inner, preprocessing)
    found: Pretrained = _LOADERS[source](inner, preprocessing)
    return found


def _from_file(name: str, preprocessing: Preparation | None, file: str) -> Pretrained:
    source, inner = find_source(name)
    if source not in _TAKE_FILES:
        rule = "go with a model of torchvision or timm"
        raise ValueError(f"weights must {rule}, got {file!r} for {name!r}")
    found: Pretrained = _LOADERS[source](inner, preprocessing, file)
    return found


def _stamps(
    name: str, weights: str | os.PathLike[str] | None
) -> tuple[FileStamp | None, tuple[FileStamp, ...]]:
    """Return what tells that a file of weights, or one behind a name, is another than before."""
    prefix, _, rest = name.partition("/")
    behind: tuple[FileStamp, ...] = ()
    folder = Path(rest.partition("#")[0]).expanduser()
    if prefix == "onnx":
        behind = (stamp_of(rest, "ONNX file"),)
    elif prefix in OPEN_SOURCES and rest and folder.is_dir():
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        behind = tuple(stamp_of(path, "file of the model") for path in files)
    return None if weights is None else stamp_of(weights, "weights"), behind


def shortened(found: Pretrained, max_length: int | None) -> Pretrained:
    """Return a model that sees at most `max_length` tokens of a text.

    Raises
    ------
    ValueError
        If `max_length` leaves no room for a token of the text, or the model takes no texts or only
        those of one length.
    """
    spec = found.preprocessing
    if max_length is None:
        return found
    if not isinstance(spec, Tokenization) or spec.fixed:
        takes = "texts of one length" if isinstance(spec, Tokenization) else "no texts"
        raise ValueError(f"max_length must be None for {found.name}, which takes {takes}")
    least = spec.tokenizer.num_special_tokens_to_add(False) + 1
    if max_length < least:
        raise ValueError(f"max_length must be at least {least}, got {max_length}")
    return replace(found, preprocessing=replace(spec, max_length=min(max_length, spec.max_length)))


def take_module(module: nn.Module, preprocessing: Preparation | None) -> Pretrained:
    """Return a copy of a module, checked, as a source hands it over."""
    name = class_name(module)
    _check_module(module)
    try:
        own = copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise TypeError(f"backbone must be a module that can be copied, got {error}") from error
    chosen = preprocessing
    if chosen is None:
        is_timm = bool(getattr(module, "pretrained_cfg", None))
        chosen = preprocessing_of_module(module, name) if is_timm else IMAGENET
    return Pretrained(name, "module", architecture_of(module), own, chosen)


def _check_module(module: nn.Module) -> None:
    """Refuse what cannot be frozen, and what would change rows unseen by their identity."""
    for tensor_name, tensor in all_tensors(module).items():
        if isinstance(tensor, Tensor) and (tensor.is_meta or is_lazy(tensor)):
            got = "on the meta device" if tensor.is_meta else "not initialised"
            raise ValueError(f"backbone must have weights, got {tensor_name} {got}")
    for path, layer in module.named_modules():
        where = f"in {path}" if path else "as a whole"
        if isinstance(layer, torch.jit.ScriptModule):
            raise TypeError(f"backbone must be made of plain modules, got a ScriptModule {where}")
        hooks = (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
        foreign = [hook for hook in hooks if not _is_reparametrization(hook)]
        if foreign:
            rule = "carry no forward hooks, which its identity cannot see: remove them"
            raise ValueError(f"backbone must {rule}, got {foreign[0]!r} {where}")


def _is_reparametrization(hook: Any) -> bool:
    # Those of weight_norm, spectral_norm and pruning compute a weight from tensors of the module,
    # which its identity counts.
    return type(hook).__module__.startswith("torch.nn.utils.")
