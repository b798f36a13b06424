"""Models of timm, cut off before the classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyfeat.backbones._pretrained import INSTALL_HINT, Pretrained, explain_missing_weights
from pyfeat.backbones._weights_file import fill
from pyfeat.ops._preprocess import Preprocessing

_MODES = {"center": "crop", "squash": "stretch", "border": "pad"}  # timm's words and ours


def timm_names() -> list[str]:
    """Return the names of timm's models with weights, each with its tag.

    Raises
    ------
    ImportError
        If timm is missing.
    """
    return list(_timm().list_models(pretrained=True))


def has_timm_model(name: str) -> bool:
    """Return whether timm knows the architecture of `name`, whatever the tag after the dot."""
    return bool(_timm().is_model(name))


def load_timm(
    name: str,
    preprocessing: Preprocessing | None,
    weights: str | None = None,
    *,
    pretrained: bool = True,
) -> Pretrained:
    """Return a timm model without its classifier.

    Parameters
    ----------
    name : str
        `ARCHITECTURE` for the default weights, or `ARCHITECTURE.TAG`.
    preprocessing : Preprocessing or None
        None means the one that belongs to the weights.
    weights : str, optional
        File of weights to take instead (see `fill`).
    pretrained : bool, default=True
        False: random weights, for a look at the network.

    Raises
    ------
    ImportError
        If timm is missing.
    ValueError
        If there are no such weights, or their preprocessing is not ours (see `preprocessing_of`).
    OSError
        If the weights can neither be read from the cache nor downloaded.
    """
    timm = _timm()
    if weights is not None:
        return _load_file(name, preprocessing, weights)
    from huggingface_hub.constants import HF_HUB_CACHE

    architecture, _, tag = name.partition(".")
    have = timm.list_pretrained(architecture)
    if not have:
        raise ValueError(f"backbone must be one that timm has weights for, got {name!r}")
    if tag and name not in have:
        raise ValueError(f"timm weights of {architecture} must be one of {have}, got {name!r}")
    config = timm.get_pretrained_cfg(name)
    full_name = f"timm/{architecture}.{config.tag}"
    chosen = preprocessing or preprocessing_of(
        timm.data.resolve_data_config(pretrained_cfg=config.to_dict()), full_name
    )
    address = f"huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url)
    with explain_missing_weights(full_name, address, HF_HUB_CACHE):
        module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return Pretrained(full_name, "timm", f"timm/{architecture}", module, chosen)


def _load_file(name: str, preprocessing: Preprocessing | None, weights: str) -> Pretrained:
    timm = _timm()
    module = timm.create_model(name, pretrained=False, num_classes=0)
    fill(module, weights, _classifier_layers(module))
    architecture = f"timm/{name.partition('.')[0]}"
    chosen = preprocessing or preprocessing_of_module(module, architecture)
    return Pretrained(architecture, "file", architecture, module, chosen)


def _classifier_layers(module: Any) -> list[str]:
    """Return the layers that a module without its classifier has no more."""
    last = module.pretrained_cfg.get("classifier") or ()
    dropped = [last] if isinstance(last, str) else list(last)
    have = module.state_dict()
    for layer in dropped:
        # Where the classifier is a block ("head.fc.fc2"), the whole block is gone.
        parent = layer.rpartition(".")[0]
        if parent and parent not in dropped and not any(k.startswith(f"{parent}.") for k in have):
            dropped.append(parent)
    return dropped


def preprocessing_of_module(module: Any, name: str) -> Preprocessing:
    """Return the preprocessing of a timm module made elsewhere (see `preprocessing_of`)."""
    return preprocessing_of(_timm().data.resolve_model_data_config(module), name)


def preprocessing_of(config: Mapping[str, Any], name: str) -> Preprocessing:
    """Return timm's data configuration of a model in our words.

    Raises
    ------
    ValueError
        If the result is not the square centre of an RGB image, or the crop mode is unknown.
    """
    channels, height, width = config["input_size"]
    mode = config.get("crop_mode") or "center"
    if mode not in _MODES or channels != 3 or height != width:
        got = f"crop mode {mode!r} of {channels} channels, {height} x {width} pixels"
        raise ValueError(
            f"preprocessing of {name} must be a square centre crop of an RGB image, got {got}; "
            f"pass preprocessing= to choose one"
        )
    return Preprocessing(
        resize=math.floor(height / config["crop_pct"]),
        crop=height,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        mode=_MODES[mode],
    )


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        missing = (error.name or "timm").partition(".")[0]
        raise ImportError(f"timm models need {missing}: {INSTALL_HINT}") from error
    return timm
