"""A module is frozen again when it has changed, and only then."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyfeat.backbones import Backbone, load_backbone
from pyfeat.ops import Preprocessing

SMALL = Preprocessing(resize=8, crop=8)


class Net(nn.Module):
    """A sum over channels, scaled: by a weight, and by a number that no weight is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.factor = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.weight * x.mean(dim=(2, 3))


def load(module: nn.Module) -> Backbone:
    return load_backbone(module, preprocessing=SMALL, device="cpu")


def rows(module: nn.Module) -> list[float]:
    found: list[float] = load(module)(torch.ones(1, 3, 8, 8))[0].tolist()
    return found


def test_unchanged_module_is_frozen_once() -> None:
    module = Net()
    assert load(module) is load(module)


def test_copy_of_a_module_is_not_frozen_again() -> None:
    module = Net()
    assert load(module) is load(copy.deepcopy(module))


def test_mode_and_gradients_do_not_count() -> None:
    module = Net()
    assert load(module) is load(module.eval().requires_grad_(False))


def test_other_preprocessing_is_another_backbone() -> None:
    module = Net()
    larger = load_backbone(module, preprocessing=Preprocessing(resize=9, crop=8), device="cpu")
    assert load(module) is not larger


def test_trained_module_gives_its_new_rows() -> None:
    module = Net()
    before = rows(module)
    nn.init.constant_(module.weight, 3.0)
    assert rows(module) == [3 * v for v in before]


def test_weights_changed_past_their_version_counter_give_new_rows() -> None:
    module = Net()
    before = rows(module)
    module.weight.data.mul_(3)
    assert rows(module) == [3 * v for v in before]


def test_changed_attribute_gives_new_rows() -> None:
    module = Net()
    before = rows(module)
    module.factor = 6.0
    assert rows(module) == [3 * v for v in before]


def test_class_defined_again_gives_its_own_rows() -> None:
    def define(power: int) -> nn.Module:
        def forward(self: Net, x: Tensor) -> Tensor:
            return Net.forward(self, x) ** power

        again = type("Net", (Net,), {"forward": forward, "__module__": __name__})
        return again()

    assert rows(define(1)) == [2.0] * 3
    assert rows(define(2)) == [4.0] * 3


class Settings:
    """A number in an object."""

    def __init__(self, factor: float) -> None:
        self.factor = factor


@pytest.mark.parametrize(
    "holder",
    [Settings, lambda f: {"factor": [f]}, torch.tensor, np.array, lambda f: partial(max, f)],
    ids=["object", "dict", "tensor", "array", "partial"],
)
def test_change_within_an_attribute_is_seen(holder: Callable[[float], Any]) -> None:
    module = Net()
    module.held = holder(1.0)
    first = load(module)
    module.held = holder(2.0)
    assert load(module) is not first


def test_attribute_that_holds_itself_does_not_hinder() -> None:
    module = Net()
    module.held = [1]
    module.held.append(module.held)
    assert rows(module) == [2.0] * 3


def test_forward_of_the_instance_is_taken() -> None:
    module = Net()
    before = rows(module)
    scale = module.forward
    module.forward = lambda x: scale(x) ** 2  # type: ignore[method-assign]
    assert rows(module) == [v**2 for v in before]


def test_two_modules_are_kept_at_most() -> None:
    modules = [Net() for _ in range(3)]
    for i, module in enumerate(modules):
        module.factor = float(i)
    first = load(modules[0])
    for module in modules[1:]:
        load(module)
    assert load(modules[0]) is not first
