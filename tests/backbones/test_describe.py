"""What `describe` says, against figures computed by hand and published ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from pyfeat.backbones import AudioPreprocessing, describe, load_backbone
from pyfeat.ops import Preprocessing


def tiny() -> nn.Module:
    """Return 8 channels of 14 x 14, two linear layers, a row of 5."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def test_operations_and_parameters_are_those_of_the_formula() -> None:
    found = describe(tiny())
    conv, linear = 2 * 14 * 14 * 8 * 3 * 16 * 16, 2 * 8 * 5
    assert [layer.flops for layer in found.layers] == [conv] * 4 + [conv + linear] * 2
    assert [layer.parameters for layer in found.layers] == [6152, 0, 0, 0, 45, 6197]
    assert (found.flops, found.parameters, found.dim) == (conv + linear, 6197, 5)


def test_every_layer_listed_is_one_that_loads_with_that_shape() -> None:
    found = describe(tiny())
    for layer in found.layers:
        for wanted in (layer.name, *([] if layer.index is None else [layer.index])):
            pooling = "auto" if layer.name == "output" else "none"
            backbone = load_backbone(tiny(), layers=wanted, pooling=pooling, device="cpu")
            assert backbone.shapes == (layer.shape,)
            assert wanted == -1 or backbone.parts["layer"] in ([layer.name], "penultimate")


def test_index_counts_blocks_and_the_row_is_minus_one() -> None:
    found = describe(tiny())
    assert [layer.index for layer in found.layers] == [-5, -4, -3, -2, None, -1]
    assert [layer.is_block for layer in found.layers] == [True] * 5 + [False]


def test_another_size_of_the_input_costs_more() -> None:
    small = Preprocessing(resize=112, crop=112)
    maps = nn.Conv2d(3, 8, 16, 16)
    assert describe(nn.Sequential(maps)).flops == 4 * (
        describe(nn.Sequential(maps), preprocessing=small).flops
    )


def test_maps_are_averaged_into_the_row() -> None:
    found = describe(nn.Sequential(nn.Conv2d(3, 8, 16, 16)))
    assert [(layer.name, layer.shape) for layer in found.layers] == [
        ("0", (8, 14, 14)),
        ("output", (8,)),
    ]


def test_recordings_are_told_in_samples() -> None:
    spec = AudioPreprocessing(sample_rate=8000, window=0.5, hop=0.25)
    found = describe(nn.Sequential(nn.Linear(4000, 3)), preprocessing=spec)
    assert (found.modality, found.input) == ("audio", {"samples": 4000, "sample_rate": 8000})
    assert found.flops == 2 * 4000 * 3


def test_windows_of_an_image_are_not_listed() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 8, 8)
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            maps = self.conv(x).permute(0, 2, 3, 1)  # (n, 28, 28, 4)
            return self.inner(maps.reshape(-1, 7, 4)).reshape(len(x), -1)

    assert [layer.name for layer in describe(Windows()).layers] == ["conv", "output"]


def test_fused_attention_is_counted() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 56, 56)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.conv(x).flatten(2).transpose(1, 2)  # (n, 16, 8)
            return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(dim=1)

    fast = torch.backends.mha.get_fastpath_enabled()
    # q, k, v and the way out: 4 l c^2; scores and their sums: 2 l^2 c
    want = 2 * 16 * 8 * 3 * 56**2 + 2 * (4 * 16 * 8 * 8 + 2 * 16 * 16 * 8)
    assert describe(Attends()).flops == want
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_description_is_json() -> None:
    values = describe(tiny()).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["layers"][0]["shape"] == [8, 14, 14]


def test_module_is_left_alone() -> None:
    module = tiny()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    describe(module)
    assert module.training
    assert not any(m._forward_hooks for m in module.modules())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("backbone", "error", "message"),
    [
        ("nosuch_model", ValueError, "backbone must be a name that list_backbones"),
        (3, TypeError, "backbone must be a name or an nn.Module, got int"),
        (nn.Sequential(nn.Linear(4, 4)), ValueError, "backbone must take a batch of shape"),
    ],
)
def test_wrong_backbone_is_told(backbone: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        describe(backbone)


# Multiplications of one input without the classifier, and parameters, in millions: those of
# torchvision's table of weights (its "GFLOPS" count multiplications: 15.47, 4.09) less the last
# layer, 4096 x 1000 and 2048 x 1000.
@pytest.mark.parametrize(
    ("name", "gigamacs", "parameters", "dim"),
    [
        ("vgg16", 15.47 - 0.004096, 138_357_544 - 4_097_000, 4096),
        ("resnet50", 4.09 - 0.002048, 25_557_032 - 2_049_000, 2048),
    ],
)
def test_published_models_by_bare_name_without_weights(
    name: str, gigamacs: float, parameters: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = describe(name)
    assert found.source == "torchvision"
    assert (found.parameters, found.dim) == (parameters, dim)
    assert found.flops / 2e9 == pytest.approx(gigamacs, abs=0.005)  # as many digits as the table
    assert torch.equal(torch.get_rng_state(), before)


def test_timm_model_is_described_without_weights() -> None:
    pytest.importorskip("timm")
    found = describe("timm/vit_tiny_patch16_224")
    assert found.name == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["blocks.10"].index == -2
    assert by_name["blocks.10"].shape == (197, 192)
    # the name's model has 5,717,416 with its classifier of 192 x 1000 + 1000
    assert found.parameters == 5_717_416 - 193_000


def test_default_backbone_is_described(lite0: Any) -> None:
    found = describe("efficientnet_lite0")
    assert (found.name, found.source, found.dim) == ("efficientnet_lite0", "pyfeat", lite0.dim)
    assert found.input == {"size": 224}
    assert found.chunk == lite0.chunk
    assert found.preprocessing == lite0.preprocessing.to_parts()


def test_auxiliary_classifiers_of_training_are_left_out() -> None:
    pytest.importorskip("torchvision")
    found = describe("torchvision/googlenet")
    assert not [layer.name for layer in found.layers if layer.name.startswith("aux")]
    assert found.parameters == 6_624_904 - 1_025_000  # torchvision's table, less 1024 x 1000 + 1000
