"""Shares of the inputs: disjoint, complete, into one store at the same time."""

from __future__ import annotations

import io
import multiprocessing as mp
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyfeat import FeatureStore
from pyfeat.extract import Input
from pyfeat.jobs import extract
from pyfeat.jobs._share import Selected, share_of
from pyfeat.store import read_items, verify

from .conftest import pooled_colours
from .files import noise

N_SHARDS = 3


def run_shard(photos: str, store: str, shard: str) -> None:
    """Do one share in this process."""
    extract(photos, store, pooled_colours(), shard=shard)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return noise(tmp_path / "photos", 60)


def test_shares_are_of_about_one_size() -> None:
    sizes = Counter(share_of(f"/photos/{i:08}.jpg", 8) for i in range(8000))
    assert sorted(sizes) == list(range(1, 9))
    assert max(sizes.values()) < 1.15 * min(sizes.values())


def test_share_of_a_name_is_fixed_for_ever() -> None:
    # Jobs of two versions may share one list of inputs.
    assert [share_of(name, 8) for name in ("/a.jpg", "/b.jpg", "/é.jpg")] == [3, 3, 7]


def test_selection_is_a_sequence() -> None:
    inputs = [Input(str(i), i) for i in range(10)]
    some = Selected(inputs, np.array([1, 4, 7, 8]))
    assert [i.value for i in some] == [1, 4, 7, 8]
    assert [i.value for i in some[1:3]] == [4, 7]
    assert (len(some), some[-1].value) == (4, 8)


def test_shards_take_every_input_once(photos: Path, tmp_path: Path) -> None:
    shards = [(i, N_SHARDS) for i in range(1, N_SHARDS + 1)]
    done = [extract(photos, tmp_path / "feats", pooled_colours(), shard=s) for s in shards]
    assert sum(s.total for s in done) == sum(s.computed for s in done) == 60
    assert [s.shard for s in done] == ["1/3", "2/3", "3/3"]


def test_processes_fill_one_store_at_the_same_time(photos: Path, tmp_path: Path) -> None:
    server = mp.get_context("forkserver")
    server.set_forkserver_preload(["pyfeat.jobs", "tests.jobs.conftest"])
    shards = [f"{i}/{N_SHARDS}" for i in range(1, N_SHARDS + 1)]
    store = tmp_path / "feats"
    jobs = [server.Process(target=run_shard, args=(str(photos), str(store), s)) for s in shards]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * N_SHARDS
    whole = extract(photos, tmp_path / "whole", pooled_colours())
    rows, alone = FeatureStore(store, mode="r"), FeatureStore(tmp_path / "whole", mode="r")
    assert len(rows) == whole.computed == 60
    np.testing.assert_array_equal(rows.get(alone.keys()), alone.get(alone.keys()))
    assert len(read_items(store, rows.space)) == 60
    assert verify(store) == []


def test_shard_of_a_plain_archive_reads_only_headers_of_what_belongs_to_others(
    tmp_path: Path,
) -> None:
    place = tmp_path / "photos.tar"
    names = [f"{i}.bmp" for i in range(24)]
    mine = [name for name in names if share_of(f"{place}::{name}", 2) == 1]
    assert 0 < len(mine) < len(names)
    with tarfile.open(place, "w") as archive:
        for i, name in enumerate(names):
            photo = io.BytesIO()
            Image.new("RGB", (40, 40), (i, 0, 0)).save(photo, format="BMP")
            info = tarfile.TarInfo(name)
            info.size = len(photo.getvalue()) if name in mine else 2**37  # a hole
            archive.addfile(info, None if name not in mine else io.BytesIO(photo.getvalue()))
            if name not in mine:
                archive.fileobj.seek(info.size, os.SEEK_CUR)
                archive.offset += info.size
    s = extract(place, tmp_path / "feats", pooled_colours(), shard="1/2")
    assert (s.computed, s.n_quarantined) == (len(mine), 0)
