"""`pyfeat extract` on a disk that is full."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyfeat import FeatureStore
from pyfeat.store import verify
from tests.small_disk import mount_small_disk, resize_disk

from .conftest import Run

N = 48
BATCH = ("--batch-size", "4")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    # A row is 5 KB: the disk is full after some twenty.
    with mount_small_disk(tmp_path / "disk", "192k") as path:
        yield path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(N):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


@pytest.mark.slow
def test_full_disk_is_one_line_and_the_next_run_goes_on(disk: Path, photos: Path, run: Run) -> None:
    store = disk / "store"
    first = run("extract", photos, "--store", store, *BATCH)
    assert first.exit_code == 1
    assert len(first.stderr.strip().splitlines()) == 1
    assert "No space left on device" in first.stderr
    assert str(store) in first.stderr
    assert verify(store) == []
    kept = len(FeatureStore(store, mode="r"))
    assert 0 < kept < N

    resize_disk(disk, "4m")
    again = run("extract", photos, "--store", store, "--json", *BATCH)
    assert again.exit_code == 0
    summary = json.loads(again.stdout)
    assert summary["computed"] == N - kept
    assert summary["total"] == N
    assert verify(store) == []
    assert len(FeatureStore(store, mode="r").view()) == N
