"""What transformers does to an image before a model sees it, in our words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyfeat.backbones._hf_files import find_file, first_line, import_transformers, quiet, reading
from pyfeat.ops._preprocess import Preprocessing

_FILTERS = {2: "bilinear", 3: "bicubic"}
# Those that resize, crop, divide by 255 and normalise, and nothing else.
_PLAIN = (
    "Beit",
    "Bit",
    "Blip",
    "CLIP",
    "ChineseCLIP",
    "DINOv3ViT",
    "DeiT",
    "MobileNetV1",
    "MobileNetV2",
    "Pvt",
    "Siglip",
    "ViT",
    "ViTHybrid",
)
_SCALED = "ConvNext"  # with a margin in per cent
_WARPED_FROM = 384  # pixels, from which on ConvNext squeezes the whole image into the square


def load_preprocessing(place: str, name: str) -> Preprocessing:
    """Return what a model's `preprocessor_config.json` says.

    Raises
    ------
    ValueError
        If it has none, or one that we cannot follow.
    OSError
        If it cannot be read.
    """
    if find_file(place, "preprocessor_config.json") is None:
        rule = "come with a preprocessor_config.json, or take preprocessing="
        raise ValueError(f"{name} must {rule}, got neither")
    with quiet(), reading(place):
        transformers = import_transformers(name)
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(
                place, trust_remote_code=False
            )
        except (ImportError, KeyError, ValueError) as error:
            raise _refusal(name, first_line(error)) from error
    return preprocessing_of(type(processor).__name__, processor.to_dict(), name)


def preprocessing_of(kind: str, config: Mapping[str, Any], name: str) -> Preprocessing:
    """Return the settings of an image processor in our words.

    Parameters
    ----------
    kind : str
        Its class.
    config : mapping
        Its settings, with the defaults of the class filled in.
    name : str
        Of the model, for messages.

    Raises
    ------
    ValueError
        If it does something to an image that `Preprocessing` does not.

    Notes
    -----
    Where a crop leaves an odd number of pixels, transformers always cuts the larger half off at
    the end and `preprocess` does as torchvision: the crop may lie one pixel further down or right.
    """
    family = kind.removesuffix("Fast").removesuffix("Pil")
    family = family.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if family != _SCALED and family not in _PLAIN:
        raise _refusal(name, kind)
    steps = {step: config.get(step) for step in ("do_resize", "do_rescale", "do_normalize")}
    if not all(steps.values()):
        raise _refusal(name, f"{kind} without {next(k for k, v in steps.items() if not v)}")
    if not math.isclose(config.get("rescale_factor") or 0, 1 / 255, rel_tol=1e-6):
        raise _refusal(name, f"rescale_factor {config.get('rescale_factor')}")
    resample = config.get("resample")
    if resample is None or int(resample) not in _FILTERS:
        raise _refusal(name, f"resample {resample}")
    resize, crop, mode = _geometry(family, config, name)
    return Preprocessing(
        resize=resize,
        crop=crop,
        interpolation=_FILTERS[int(resample)],
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
        mode=mode,
    )


def _geometry(family: str, config: Mapping[str, Any], name: str) -> tuple[int, int, str]:
    """Return resize, crop and mode."""
    size = {k: v for k, v in dict(config.get("size") or {}).items() if v is not None}
    short: Any = size.get("shortest_edge")
    if family == _SCALED and set(size) == {"shortest_edge"}:
        if short >= _WARPED_FROM:
            return short, short, "stretch"
        return int(short / config["crop_pct"]), short, "crop"
    side = short if set(size) == {"shortest_edge"} else _square(size)
    mode = "stretch" if short is None else "crop"
    if side is None:
        raise _refusal(name, f"size {size}")
    if not config.get("do_center_crop"):
        if mode == "crop":
            raise _refusal(name, f"size {size} without a centre crop")
        return side, side, mode
    cut = {k: v for k, v in dict(config.get("crop_size") or {}).items() if v is not None}
    crop = _square(cut)
    if crop is None or crop > side:
        raise _refusal(name, f"crop_size {cut} of size {size}")
    return side, crop, mode


def _square(size: Mapping[str, Any]) -> int | None:
    is_square = set(size) == {"height", "width"} and size["height"] == size["width"]
    return int(size["height"]) if is_square else None


def _refusal(name: str, got: str) -> ValueError:
    return ValueError(
        f"preprocessing of {name} must resize to a square by a bilinear or bicubic filter, divide "
        f"by 255 and normalise, got {got}; pass preprocessing= to choose one"
    )
