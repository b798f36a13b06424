"""A small space and rows for it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pyfeat import Space

DIM = 3


@pytest.fixture
def space() -> Space:
    return Space(DIM, parts={"name": "test"})


def some_keys(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)


def some_rows(n: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
