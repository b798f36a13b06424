"""A small real backbone that counts the images it sees, and photos on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pyfeat.ops import Preprocessing

SMALL = Preprocessing(resize=36, crop=32, interpolation="bilinear")


class CountingBackbone(nn.Module):
    """A convolution and its pooled map; `seen` counts images over all copies of the module."""

    seen = 0

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, kernel_size=7, stride=3)
        self.mix = nn.Conv2d(8, 8, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).seen += len(x)
        return self.mix(torch.relu(self.conv(x)))


@pytest.fixture
def backbone() -> CountingBackbone:
    CountingBackbone.seen = 0
    return CountingBackbone()


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Ten different PNG files of different sizes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = []
    for i in range(10):
        pixels = rng.integers(0, 256, (30 + 7 * i, 80 - 5 * i, 3), dtype=np.uint8)
        paths.append(str(folder / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths
