"""torchvision's models: found, loaded from its cache, cut before the classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pyfeat.backbones import load_backbone
from pyfeat.backbones._tap import as_rows
from pyfeat.backbones._torchvision import drop_classifier, load_torchvision, preprocessing_of

models = pytest.importorskip("torchvision.models")

# One of each family, the smallest.
DIMS = {
    "alexnet": 4096,
    "convnext_tiny": 768,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "googlenet": 1024,
    "inception_v3": 2048,
    "maxvit_t": 512,
    "mnasnet0_5": 1280,
    "mobilenet_v2": 1280,
    "mobilenet_v3_small": 1024,
    "regnet_y_400mf": 440,
    "resnet18": 512,
    "resnet50": 2048,
    "resnext50_32x4d": 2048,
    "shufflenet_v2_x0_5": 1024,
    "squeezenet1_1": 512,
    "swin_t": 768,
    "swin_v2_t": 768,
    "vgg11": 4096,
    "vgg16": 4096,
    "vit_b_32": 768,
    "wide_resnet50_2": 2048,
}
NEEDS_INIT = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


@pytest.mark.parametrize("name", DIMS)
def test_features_are_what_feeds_the_classifier(name: str) -> None:
    # On the meta device shapes are computed and numbers are not: no family costs a second.
    # (regnet computes its widths with tensors, so it is built on the CPU.)
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        module = models.get_model(name, weights=None, **NEEDS_INIT.get(name, {})).eval()
    drop_classifier(module.to("meta"), 1000)
    size = 299 if name == "inception_v3" else 224
    images = torch.zeros(2, 3, size, size, device="meta")
    assert as_rows(module(images), 2).shape == (2, DIMS[name])


def test_classifier_on_features_gives_the_logits() -> None:
    torch.manual_seed(0)
    module = models.get_model("mobilenet_v3_small", weights=None).eval()
    images = torch.randn(2, 3, 64, 64)
    last = module.classifier[3]
    with torch.inference_mode():
        logits = module(images)
        drop_classifier(module, 1000)
        assert torch.equal(last(module(images)), logits)


def test_a_last_layer_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="last layer 1 must have 1000 outputs, got 10"):
        drop_classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 10)), 1000)


@pytest.mark.parametrize("name", sorted(DIMS))
def test_preprocessing_is_that_of_the_weights(name: str) -> None:
    preset = models.get_model_weights(name).DEFAULT.transforms()
    spec = preprocessing_of(preset)
    assert (spec.resize, spec.crop) == (preset.resize_size[0], preset.crop_size[0])
    assert spec.interpolation == preset.interpolation.value
    assert (list(spec.mean), list(spec.std)) == (preset.mean, preset.std)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where torchvision looks for weights it has downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def save_random_weights(folder: Path, name: str, version: str, seed: int) -> None:
    torch.manual_seed(seed)
    weights = models.get_model_weights(name)[version]
    module = models.get_model(name, weights=None)
    torch.save(module.state_dict(), folder / Path(weights.url).name)


def test_weights_come_from_the_cache_of_torchvision(hub: Path) -> None:
    save_random_weights(hub, "mobilenet_v2", "IMAGENET1K_V1", seed=1)
    backbone = load_backbone("torchvision/mobilenet_v2@IMAGENET1K_V1", device="cpu")
    torch.manual_seed(1)
    module = models.get_model("mobilenet_v2", weights=None).eval()
    module.classifier = nn.Identity()
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = module(image)
    bound = 64 * torch.finfo(torch.float32).eps * 13 * expected.abs().max()  # 156 changes
    assert (backbone(image) - expected).abs().max() < bound


def test_the_default_weights_are_torchvisions_default(hub: Path) -> None:
    save_random_weights(hub, "mobilenet_v2", "IMAGENET1K_V2", seed=2)
    found = load_torchvision("mobilenet_v2", None)
    assert found.name == "torchvision/mobilenet_v2@IMAGENET1K_V2"
    assert found.preprocessing.resize == 232


def test_other_weights_are_another_identity(hub: Path) -> None:
    for version, seed in (("IMAGENET1K_V1", 1), ("IMAGENET1K_V2", 2)):
        save_random_weights(hub, "mobilenet_v2", version, seed)
    first, second = (
        load_backbone(f"torchvision/mobilenet_v2@IMAGENET1K_V{i}", device="cpu") for i in (1, 2)
    )
    assert first.parts["weights"] != second.parts["weights"]


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights of resnet18 must be one of \['IMAGENET1K_V1'"):
        load_backbone("torchvision/resnet18@V9", device="cpu")


def test_damaged_weights_are_named_with_their_place(hub: Path) -> None:
    weights = models.get_model_weights("squeezenet1_1").DEFAULT
    path = hub / Path(weights.url).name
    path.write_bytes(b"no weights")
    with pytest.raises(
        OSError, match="weights of torchvision/squeezenet1_1@IMAGENET1K_V1"
    ) as caught:
        load_torchvision("squeezenet1_1", None)
    assert str(path) in str(caught.value)


def test_a_failed_download_says_how_to_go_on(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens on port 9 of this machine: the download fails at once, for real.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"must be readable from https://.*pass the nn\.Module"):
        load_torchvision("squeezenet1_1", None)
