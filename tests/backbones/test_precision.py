"""float32 stays float32, and what the process had set comes back."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from pyfeat.backbones._precision import _switches, exact_float32

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restore() -> Any:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def values() -> list[Any]:
    return [getattr(owner, name) for owner, name, _ in _switches()]


def test_every_switch_is_exact_inside() -> None:
    torch.set_float32_matmul_precision("medium")
    with exact_float32(CPU):
        assert values() == [exact for _, _, exact in _switches()]


def test_the_settings_come_back() -> None:
    torch.set_float32_matmul_precision("medium")
    before = values()
    with exact_float32(CPU):
        pass
    assert values() == before


def test_the_settings_come_back_after_an_error() -> None:
    torch.set_float32_matmul_precision("medium")
    before = values()
    with pytest.raises(KeyError), exact_float32(CPU):
        raise KeyError
    assert values() == before


def test_autocast_is_off_inside() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), exact_float32(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_two_threads_may_overlap() -> None:
    torch.set_float32_matmul_precision("medium")
    before = values()
    inside, leave = threading.Event(), threading.Event()
    seen = []

    def second() -> None:
        with exact_float32(CPU):
            inside.set()
            leave.wait(10)
            seen.append(values())

    with exact_float32(CPU):
        thread = threading.Thread(target=second)
        thread.start()
        assert inside.wait(10)
    leave.set()
    thread.join(10)
    assert seen == [[exact for _, _, exact in _switches()]]
    assert values() == before
