"""Classification models of torchvision, cut off before the classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyfeat.backbones._pretrained import INSTALL_HINT, Pretrained, explain_missing_weights
from pyfeat.backbones._weights_file import fill
from pyfeat.ops._preprocess import Preprocessing

_N_CLASSES = 1000  # of a model made without weights
# Classifiers that only training uses.
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
# The files of densenets are older than the names of their layers.
_RENAMED = {"densenet": {r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.": r"\1\2."}}


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classification models.

    Raises
    ------
    ImportError
        If torchvision is missing.
    """
    return list(_models().list_models(module=_models()))


def load_torchvision(
    name: str,
    preprocessing: Preprocessing | None,
    weights: str | None = None,
    *,
    pretrained: bool = True,
) -> Pretrained:
    """Return a torchvision model without its classifier.

    Parameters
    ----------
    name : str
        `NAME` for the default weights, or `NAME@WEIGHTS` such as "resnet50@IMAGENET1K_V1".
    preprocessing : Preprocessing or None
        None means the one that belongs to the weights.
    weights : str, optional
        File of weights to take instead (see `fill`).
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
    known = choices[wanted or "DEFAULT"]
    chosen = preprocessing or preprocessing_of(known.transforms())
    plain = f"torchvision/{architecture}"
    if weights is not None:
        return Pretrained(plain, "file", plain, _from_file(architecture, weights), chosen)
    full_name = f"{plain}@{known.name}"
    if not pretrained:
        return Pretrained(full_name, "torchvision", plain, _untrained(architecture)[0], chosen)
    cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(known.url).name
    with explain_missing_weights(full_name, known.url, str(cache)):
        module = _models().get_model(architecture, weights=known, progress=False)
    drop_classifier(module, len(known.meta["categories"]))
    return Pretrained(full_name, "torchvision", plain, module, chosen)


def _from_file(architecture: str, weights: str) -> nn.Module:
    module, dropped = _untrained(architecture)
    heads = _AUXILIARY.get(architecture, ())
    fill(module, weights, [dropped, *heads], _RENAMED.get(architecture[:8]))
    return module


def _untrained(architecture: str) -> tuple[nn.Module, str]:
    """Return a model with random weights, and the name of the classifier it had."""
    # As torchvision makes these two for weights of its own; their initialisation takes minutes.
    made = {"aux_logits": False, "init_weights": False, "transform_input": True}
    options = made if architecture in _AUXILIARY else {}
    module: nn.Module = _models().get_model(architecture, weights=None, **options)
    return module, drop_classifier(module, _N_CLASSES)


def preprocessing_of(preset: Any) -> Preprocessing:
    """Return torchvision's own transform of a model in our words."""
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def drop_classifier(module: nn.Module, n_classes: int) -> str:
    """Put the identity in the place of the last layer, so that the model returns what feeds it.

    Every classification model of torchvision ends in a linear layer, or in a convolution
    (squeezenet), with one output for each class, and registers it last.

    Returns
    -------
    path : str
        Name of the layer.

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
    return str(path)


def _models() -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        missing = (error.name or "torchvision").partition(".")[0]
        raise ImportError(f"torchvision models need {missing}: {INSTALL_HINT}") from error
    return models
