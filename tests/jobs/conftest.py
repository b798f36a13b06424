"""Photos in class folders, and the folder of horrors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Red and blue noise, six images each."""
    rng = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 180
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def horrors(tmp_path: Path) -> Path:
    """Everything a folder of photos should not hold; two of the files are fine."""
    folder = tmp_path / "horrors"
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    (folder / "empty.jpg").write_bytes(b"")
    noise.save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "whole.jpg").unlink()
    (folder / "text.jpg").write_text("this is a letter, not a photo\n" * 20)
    Image.new("RGB", (1, 1), (200, 10, 10)).save(folder / "one_pixel.png")
    strip = rng.integers(0, 256, (10, 20000, 3), dtype=np.uint8)
    Image.fromarray(strip).save(folder / "strip.png")
    (folder / "a.jpg").mkdir()
    # Opens, and gives an input/output error on the first read, for root too.
    (folder / "unreadable.jpg").symlink_to("/proc/self/mem")
    return folder
