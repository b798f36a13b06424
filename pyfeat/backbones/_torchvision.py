"""Classification models of torchvision, cut off before the classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyfeat.backbones._pretrained import INSTALL_HINT, Pretrained, explain_missing_weights
from pyfeat.ops._preprocess import Preprocessing

# What loading weights sets for these two.
_INCEPTION = {"aux_logits": False, "transform_input": True, "init_weights": False}
_UNTRAINED: dict[str, dict[str, Any]] = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classification models.

    Raises
    ------
    ImportError
        If torchvision is missing.
    """
    return list(_models().list_models(module=_models()))


def load_torchvision(
    name: str, preprocessing: Preprocessing | None, *, pretrained: bool = True
) -> Pretrained:
    """Return a torchvision model without its classifier.

    Parameters
    ----------
    name : str
        `NAME` for the default weights, or `NAME@WEIGHTS` such as "resnet50@IMAGENET1K_V1".
    preprocessing : Preprocessing or None
        None means the one that belongs to the weights.
    pretrained : bool, default=True
        False: random weights, for a look at the network.

    Raises
    ------
    ImportError
        If torchvision is missing.
    ValueError
        If there are no such weights.
    OSError
        If the weights can neither be read from the cache nor downloaded.
    """
    architecture, _, wanted = name.partition("@")
    choices = _models().get_model_weights(architecture)
    if wanted and wanted not in choices.__members__:
        have = list(choices.__members__)
        raise ValueError(f"weights of {architecture} must be one of {have}, got {wanted!r}")
    weights = choices[wanted or "DEFAULT"]
    full_name = f"torchvision/{architecture}@{weights.name}"
    cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if pretrained:
        with explain_missing_weights(full_name, weights.url, str(cache)):
            module = _models().get_model(architecture, weights=weights, progress=False)
    else:
        module = _models().get_model(architecture, **_UNTRAINED.get(architecture, {}))
    drop_classifier(module, len(weights.meta["categories"]))
    return Pretrained(
        full_name,
        "torchvision",
        f"torchvision/{architecture}",
        module,
        preprocessing or preprocessing_of(weights.transforms()),
    )


def preprocessing_of(preset: Any) -> Preprocessing:
    """Return torchvision's own transform of a model in our words."""
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def drop_classifier(module: nn.Module, n_classes: int) -> None:
    """Put the identity in the place of the last layer, so that the model returns what feeds it.

    Every classification model of torchvision ends in a linear layer, or in a convolution
    (squeezenet), with one output for each class, and registers it last.

    Raises
    ------
    ValueError
        If the last such layer has another number of outputs.
    """
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    path, last = layers[-1]
    size = last.out_features if isinstance(last, nn.Linear) else last.out_channels
    if size != n_classes:
        raise ValueError(f"last layer {path} must have {n_classes} outputs, got {size}")
    parent, _, child = path.rpartition(".")
    setattr(module.get_submodule(parent), child, nn.Identity())


def _models() -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        missing = (error.name or "torchvision").partition(".")[0]
        raise ImportError(f"torchvision models need {missing}: {INSTALL_HINT}") from error
    return models
