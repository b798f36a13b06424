"""A small real backbone, a count of the images that go through any backbone, photos on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pyfeat.backbones import Backbone
from pyfeat.ops import Preprocessing

SMALL = Preprocessing(resize=36, crop=32, interpolation="bilinear")


class SmallBackbone(nn.Module):
    """A convolution, a mix of its channels, and their pooled map."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, kernel_size=7, stride=3)
        self.mix = nn.Conv2d(8, 8, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.relu(self.conv(x)))


@pytest.fixture
def backbone() -> SmallBackbone:
    return SmallBackbone()


class Seen:
    """How many images went through a backbone since the count was last set."""

    n = 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    count = Seen()
    call = Backbone.__call__

    def counted(self: Backbone, batch: torch.Tensor) -> torch.Tensor:
        count.n += len(batch)
        return call(self, batch)

    monkeypatch.setattr(Backbone, "__call__", counted)
    return count


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Ten different PNG files of different sizes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = []
    for i in range(10):
        pixels = rng.integers(0, 256, (30 + 3 * i, 80 - 2 * i, 3), dtype=np.uint8)
        paths.append(str(folder / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths
