"""A job whose disk is full, or loses power: the next run does the rest."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from pyfeat import FeatureExtractor, FeatureStore
from pyfeat.errors import StoreError
from pyfeat.jobs import extract
from pyfeat.ops import Preprocessing
from pyfeat.store import read_items, verify
from tests.small_disk import mount_small_disk, resize_disk
from tests.store.conftest import elsewhere  # noqa: F401  a fixture
from tests.store.power_loss import Disk, rebuild, recorded

from .files import noise

N = 24
SMALL = Preprocessing(resize=36, crop=32, interpolation="bilinear")
pytestmark = pytest.mark.filterwarnings("ignore::pyfeat.errors.StoreWarning")


def pooled_colours() -> FeatureExtractor:
    """Colour of each of 256 tiles, 3 KB a row: a backbone without weights."""
    network = nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
    return FeatureExtractor(network, preprocessing=SMALL, device="cpu", batch_size=4)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = noise(tmp_path / "photos", N)
    for path in folder.iterdir():
        os.utime(path, (1, 1))  # long ago: a file changed just now is not remembered
    return folder


@pytest.fixture
def undisturbed(photos: Path, tmp_path: Path) -> FeatureStore:
    """The store of a job that nothing happened to."""
    extract(photos, tmp_path / "whole", pooled_colours())
    return FeatureStore(tmp_path / "whole", mode="r")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mount_small_disk(tmp_path / "disk", "64k") as path:
        yield path


def check_done_again(store: Path, photos: Path, undisturbed: FeatureStore) -> int:
    """Run the job; check that all is as if nothing had happened; return what it computed."""
    summary = extract(photos, store, pooled_colours())
    assert summary.total == N
    assert verify(store) == []
    again = FeatureStore(store, mode="r")
    keys = undisturbed.keys()
    np.testing.assert_array_equal(again.get(keys), undisturbed.get(keys))
    names = [Path(i.name).name for i in read_items(store, again.space)]
    assert names == sorted(p.name for p in photos.iterdir())
    return summary.computed


def test_job_on_a_full_disk_is_an_error_and_the_next_one_goes_on(
    disk: Path, photos: Path, undisturbed: FeatureStore
) -> None:
    with pytest.raises(StoreError, match="No space left on device") as full:
        extract(photos, disk / "store", pooled_colours())
    assert full.value.errno == errno.ENOSPC
    assert verify(disk / "store") == []
    kept = len(FeatureStore(disk / "store", mode="r"))
    assert 0 < kept < N
    with pytest.raises(StoreError, match="No space left on device"):
        extract(photos, disk / "store", pooled_colours())
    assert len(FeatureStore(disk / "store", mode="r")) >= kept
    resize_disk(disk, "1m")
    assert check_done_again(disk / "store", photos, undisturbed) <= N - kept


@pytest.mark.slow
def test_job_that_loses_power_anywhere_is_finished_by_the_next(
    photos: Path,
    undisturbed: FeatureStore,
    tmp_path: Path,
    elsewhere: Path,  # noqa: F811
) -> None:
    root = tmp_path / "store"
    root.mkdir()
    with recorded() as record:
        extract(photos, root, pooled_colours())
    disk, computed = Disk(root), set()
    for operation in record.operations:
        for names in (False, True):
            # All that was not synced is lost, or kept: the first and second of its states.
            for left in list(disk.survivors(kept_names=names))[:2]:
                rebuild(left, elsewhere / "store")
                computed.add(check_done_again(elsewhere / "store", photos, undisturbed))
                shutil.rmtree(elsewhere / "store")
        disk.do(operation)
    assert {0, N} <= computed
