"""Names and devices, found or refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pyfeat.backbones import DEFAULT_BACKBONE, BackboneName, list_backbones, load_backbone
from pyfeat.backbones._load import resolve_device
from pyfeat.backbones._names import find_source

pytest.importorskip("timm")
pytest.importorskip("torchvision")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("efficientnet_lite0", ("pyfeat", "efficientnet_lite0")),
        ("resnet50", ("torchvision", "resnet50")),
        ("vgg16", ("torchvision", "vgg16")),
        ("resnet50@IMAGENET1K_V1", ("torchvision", "resnet50@IMAGENET1K_V1")),
        ("torchvision/resnet50", ("torchvision", "resnet50")),
        ("timm/resnet50", ("timm", "resnet50")),
        ("resnet50.a1_in1k", ("timm", "resnet50.a1_in1k")),
        ("vit_small_patch16_224", ("timm", "vit_small_patch16_224")),
    ],
)
def test_a_name_belongs_to_one_source(name: str, source: tuple[str, str]) -> None:
    assert find_source(name) == source


@pytest.mark.parametrize("name", ["vgg17", "torchvision/vgg17", "VGG16", "timm/vgg17"])
def test_a_misspelt_name_gets_close_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f"got '{name}'; close names: .*vgg16"):
        load_backbone(name, device="cpu")


@pytest.mark.parametrize("name", ["", "hub/resnet50", "torchvision/", "/", "resnet50/timm"])
def test_a_name_of_no_source_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"backbone must be a name that list_backbones\(\) has"):
        load_backbone(name, device="cpu")


def test_a_backbone_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"backbone must be a name or an nn\.Module, got int"):
        load_backbone(5)  # type: ignore[arg-type]


def test_the_list_has_all_sources_with_names() -> None:
    assert {b.source for b in list_backbones()} >= {"pyfeat", "torchvision", "timm"}


def test_no_name_is_listed_twice() -> None:
    names = [b.name for b in list_backbones()]
    assert len(set(names)) == len(names)


def test_every_listed_name_is_found() -> None:
    for listed in list_backbones():
        assert find_source(listed.name)[0] == listed.source


@pytest.mark.parametrize("pattern", ["VGG16_bn", "torchvision/vgg16_bn", "*vgg1[6]_B?", "vgg16_b"])
def test_patterns_are_parts_or_shell_patterns(pattern: str) -> None:
    assert BackboneName("torchvision/vgg16_bn", "torchvision") in list_backbones(pattern)


def test_a_shell_pattern_fits_the_whole_name() -> None:
    assert [b.name for b in list_backbones("efficientnet_lite?")] == [
        "efficientnet_lite0",
        "efficientnet_lite1",
        "efficientnet_lite2",
    ]


def test_a_pattern_that_fits_nothing_gives_nothing() -> None:
    assert list_backbones("no such network") == []


def test_the_default_is_listed() -> None:
    assert list_backbones(DEFAULT_BACKBONE)[0].name == DEFAULT_BACKBONE


@pytest.mark.usefixtures("lite0")
def test_loading_a_name_again_is_free() -> None:
    first = load_backbone("efficientnet_lite0", device="cpu")
    assert load_backbone("efficientnet_lite0", device="cpu") is first


def test_auto_is_the_gpu_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["cpu:0", torch.device("cpu", 0)])
def test_the_cpu_has_two_names(device: str | torch.device) -> None:
    # The one with a number was refused.
    assert resolve_device(device) == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_devices_that_are_not_here_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match=r"device must be one of \['auto', 'cpu'.*, got '"):
        load_backbone("efficientnet_lite0", device=device)


def test_what_timm_misses_is_named() -> None:
    # timm itself imports torchvision: the message told to install timm, which was there.
    code = """
import sys
sys.modules["torchvision"] = None
from pyfeat.backbones import list_backbones
try:
    list_backbones()
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("timm models need torchvision: pip install")
