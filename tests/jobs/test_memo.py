"""A job over files that it has seen: what has not changed is not read."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pyfeat import FeatureExtractor, FeatureStore
from pyfeat.jobs import ExtractSummary, extract
from pyfeat.ops import Preprocessing
from pyfeat.store import read_items

LONG_AGO = time.time_ns() - 3600 * 10**9
N = 4


def make_photo(path: Path, seed: int, mtime_ns: int = LONG_AGO) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="BMP")  # of one size, whatever it shows
    os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(N):
        make_photo(folder / f"{i}.bmp", i)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def extractor(seed: int = 0) -> FeatureExtractor:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    return FeatureExtractor(module, preprocessing=Preprocessing(resize=8, crop=8))


def counts(summary: ExtractSummary) -> tuple[int, int]:
    return summary.computed, summary.hits


def test_a_file_of_the_same_size_and_time_is_not_read(photos: Path, store: Path) -> None:
    extract(photos, store, extractor())
    make_photo(photos / "0.bmp", seed=100)
    assert counts(extract(photos, store, extractor())) == (0, N)


def test_rehash_reads_it(photos: Path, store: Path) -> None:
    extract(photos, store, extractor())
    make_photo(photos / "0.bmp", seed=100)
    assert counts(extract(photos, store, extractor(), rehash=True)) == (1, N - 1)


def test_what_rehash_has_read_is_known_anew(photos: Path, store: Path) -> None:
    extract(photos, store, extractor())
    make_photo(photos / "0.bmp", seed=100)
    extract(photos, store, extractor(), rehash=True)
    keys = {item.name: item.key for item in read_items(store, FeatureStore.spaces(store)[0])}
    make_photo(photos / "0.bmp", seed=0)
    extract(photos, store, extractor())
    assert keys == {i.name: i.key for i in read_items(store, FeatureStore.spaces(store)[0])}


def test_a_changed_file_is_read(photos: Path, store: Path) -> None:
    extract(photos, store, extractor())
    make_photo(photos / "0.bmp", seed=100, mtime_ns=LONG_AGO + 1)
    assert counts(extract(photos, store, extractor())) == (1, N - 1)


def test_a_file_that_may_still_change_is_read(photos: Path, store: Path) -> None:
    make_photo(photos / "0.bmp", seed=0, mtime_ns=time.time_ns())
    extract(photos, store, extractor())
    stat = (photos / "0.bmp").stat()
    make_photo(photos / "0.bmp", seed=100, mtime_ns=stat.st_mtime_ns)
    assert counts(extract(photos, store, extractor())) == (1, N - 1)


def test_renamed_and_copied_files_are_hits(photos: Path, store: Path) -> None:
    extract(photos, store, extractor())
    (photos / "0.bmp").rename(photos / "renamed.bmp")
    shutil.copy(photos / "1.bmp", photos / "copied.bmp")
    assert counts(extract(photos, store, extractor())) == (0, N + 1)


def test_a_lost_memo_costs_no_row(photos: Path, store: Path) -> None:
    extract(photos, store, extractor())
    (memo,) = store.glob("spaces/*/memo")
    shutil.rmtree(memo)
    assert counts(extract(photos, store, extractor())) == (0, N)


def test_a_lost_row_is_computed_again(photos: Path, store: Path) -> None:
    extract(photos, store, extractor())
    for segment in store.glob("spaces/*/*.safetensors"):
        segment.unlink()
    assert counts(extract(photos, store, extractor())) == (N, 0)


def test_a_damaged_row_is_computed_again(photos: Path, store: Path) -> None:
    extract(photos, store, extractor())
    (segment,) = store.glob("spaces/*/*.safetensors")
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    with pytest.warns(match="checksum"):
        assert counts(extract(photos, store, extractor())) == (1, N - 1)


def test_another_backbone_computes_its_own_rows(photos: Path, store: Path) -> None:
    extract(photos, store, extractor())
    assert counts(extract(photos, store, extractor(seed=1))) == (N, 0)


def test_hits_are_in_the_list_of_inputs(photos: Path, store: Path) -> None:
    extract(photos / "0.bmp", store, extractor())
    extract(photos, store, extractor())
    extract(photos, store, extractor())
    names = [Path(i.name).name for i in read_items(store, FeatureStore.spaces(store)[0])]
    assert names == [f"{i}.bmp" for i in range(N)]


def test_a_file_that_could_not_be_read_is_tried_again(photos: Path, store: Path) -> None:
    good = (photos / "0.bmp").read_bytes()
    (photos / "0.bmp").write_bytes(bytes(len(good)))
    os.utime(photos / "0.bmp", ns=(LONG_AGO, LONG_AGO))
    assert len(extract(photos, store, extractor()).quarantined) == 1
    (photos / "0.bmp").write_bytes(good)
    os.utime(photos / "0.bmp", ns=(LONG_AGO, LONG_AGO))
    assert counts(extract(photos, store, extractor())) == (1, N - 1)
