"""Images, and what they may lie in."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pyfeat import FeatureStore
from pyfeat.errors import InputError
from pyfeat.extract import Input
from pyfeat.store import read_items


def png(number: int) -> bytes:
    """Return an image; every number has its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (36, 36, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def noise(folder: Path, n: int, below: int = 256, side: int = 40) -> Path:
    """Make a folder of images "0000.png" and so on."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = rng.integers(0, below, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.png")
    return folder


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    """Write an archive."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def contents(inputs: Iterable[Input]) -> list[bytes | str]:
    """Return the bytes of inputs, and the reasons of those that cannot be read."""
    found: list[bytes | str] = []
    for item in inputs:
        try:
            found.append(item.value.read())
        except InputError as error:
            found.append(error.reason)
    return found


def keys(store: Path) -> dict[str, bytes | None]:
    """Return the key of every input of a store with one space, by name."""
    (space,) = FeatureStore.spaces(store)
    return {i.name: i.key for i in read_items(store, space)}
