"""The identity of a module sees every number in it and nothing else."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from pyfeat.backbones._weights import all_tensors, architecture_of, weights_hash


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def digest(module: nn.Module) -> str:
    return weights_hash(module.state_dict())


@pytest.mark.parametrize("name", list(small().state_dict()))
def test_a_change_of_one_number_changes_the_hash(name: str) -> None:
    module = small()
    before = digest(module)
    tensor = module.state_dict()[name]
    with torch.no_grad():
        tensor.view(-1)[-1] += 1
    assert digest(module) != before


def test_the_hash_does_not_depend_on_the_memory_layout() -> None:
    module = small()
    assert digest(copy.deepcopy(module).to(memory_format=torch.channels_last)) == digest(module)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_hash_does_not_depend_on_the_device() -> None:
    module = small()
    assert digest(copy.deepcopy(module).cuda()) == digest(module)


def test_the_hash_does_not_depend_on_the_process() -> None:
    code = """
import torch
from torch import nn
from pyfeat.backbones._weights import weights_hash
torch.manual_seed(0)
m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
print(weights_hash(m.state_dict()))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(small())


def test_the_hash_does_not_depend_on_the_order_of_names() -> None:
    state = small().state_dict()
    assert weights_hash(dict(reversed(state.items()))) == weights_hash(state)


def test_equal_bytes_of_another_dtype_are_other_weights() -> None:
    x = torch.zeros(4)
    assert weights_hash({"x": x}) != weights_hash({"x": x.view(torch.int32)})


def test_equal_bytes_of_another_shape_are_other_weights() -> None:
    x = torch.zeros(4)
    assert weights_hash({"x": x}) != weights_hash({"x": x.reshape(2, 2)})


def test_equal_tensors_under_another_name_are_other_weights() -> None:
    x = torch.zeros(4)
    assert weights_hash({"x": x}) != weights_hash({"y": x})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int64])
def test_every_dtype_has_a_hash(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1], dtype=dtype)
    assert weights_hash({"x": x}) != weights_hash({"x": x.flip(0)})


def test_an_empty_tensor_and_a_scalar_have_hashes() -> None:
    assert weights_hash({"x": torch.zeros(0)}) != weights_hash({"x": torch.tensor(0.0)})


class Scaled(nn.Module):
    """Divides by a number that its state dict leaves out."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.register_buffer("by", torch.tensor(by), persistent=False)


def test_buffers_outside_the_state_dict_count() -> None:
    assert weights_hash(all_tensors(Scaled(1.0))) != weights_hash(all_tensors(Scaled(2.0)))


def test_architecture_names_the_class() -> None:
    assert architecture_of(nn.ReLU()).startswith("torch.nn.modules.activation.ReLU:")


def test_another_stride_is_another_architecture() -> None:
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, stride=2)
    assert architecture_of(first) != architecture_of(second)


class ShowsFunction(nn.Module):
    """Has the address of a function in its repr."""

    def __init__(self) -> None:
        super().__init__()
        self.function = lambda x: x

    def extra_repr(self) -> str:
        return str(self.function)


def test_addresses_do_not_count() -> None:
    first, second = ShowsFunction(), ShowsFunction()
    assert repr(first) != repr(second)
    assert architecture_of(first) == architecture_of(second)
