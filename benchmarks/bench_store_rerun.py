"""A second `pyfeat.jobs.extract` over 100,000 files that have not changed.

The least that such a run can do is to list the folders and ask for the size and time of each file:
that is the other contestant. The files are small pictures in 100 folders, in the page cache; the
backbone is a very small one, loaded before. The first run, which is not timed, takes two minutes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from harness import Case, Contestant
from torch import nn

from pyfeat import FeatureExtractor, jobs
from pyfeat._config import num_threads
from pyfeat.ops import Preprocessing

FOLDERS, FILES = 100, 1000
QUICK = 20  # times fewer folders
DIM = 384


def cases(quick: bool) -> Iterator[Case]:
    n_folders = FOLDERS // QUICK if quick else FOLDERS
    folder = Path(tempfile.mkdtemp(prefix="pyfeat-bench-"))
    try:
        photos, store = folder / "photos", folder / "store"
        write_pictures(photos, n_folders)
        extractor = small_extractor()
        time.sleep(3)  # what was changed just now is not remembered
        jobs.extract(photos, store, extractor)
        n = n_folders * FILES

        def again() -> int:
            summary = jobs.extract(photos, store, extractor)
            return summary.total - summary.computed

        yield Case(
            name=f"second run over {n} files",
            contestants=[
                Contestant("pyfeat cpp, jobs.extract", again),
                Contestant("os.scandir and stat", lambda: scan_and_stat(photos)),
            ],
            expected=n,
            error=lambda found, right: float(abs(found - right)),
            unit="files that were read",
            items=n,
            threads=num_threads(),
            torch_threads=num_threads(),
        )
    finally:
        shutil.rmtree(folder)


def scan_and_stat(root: Path) -> int:
    n = 0
    for folder in os.scandir(root):
        for entry in os.scandir(folder.path):
            entry.stat()
            n += 1
    return n


def write_pictures(root: Path, n_folders: int) -> None:
    """Write pictures of 8 x 8 random pixels, as PPM: they are made in no time."""
    rng = np.random.default_rng(0)
    for i in range(n_folders):
        folder = root / f"{i:03d}"
        folder.mkdir(parents=True)
        pixels = rng.integers(0, 256, (FILES, 192), dtype=np.uint8)
        for j in range(FILES):
            (folder / f"{j:04d}.ppm").write_bytes(b"P6 8 8 255\n" + pixels[j].tobytes())


def small_extractor() -> FeatureExtractor:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, DIM))
    return FeatureExtractor(
        module, preprocessing=Preprocessing(resize=8, crop=8), dtype="float16", batch_size=1024
    )
