"""Recordings and videos in archives, cells and at addresses: rows as of loose files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfeat import FeatureExtractor
from pyfeat.jobs import extract
from tests.extract.conftest import SmallBackbone
from tests.jobs.files import keys, write_tar


def write_parquet(path: Path, content: bytes) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"file": [{"bytes": content, "path": None}]}), path)
    return path


def write_memory(path: Path, content: bytes) -> str:
    address = f"memory://media/{path.name}"
    with pytest.importorskip("fsspec").open(address, "wb") as file:
        file.write(content)
    return address


PLACES: dict[str, Callable[[Path, str, bytes], Path | str]] = {
    "tar": lambda folder, name, content: write_tar(folder / "t.tar", {name: content}),
    "tar.gz": lambda folder, name, content: write_tar(folder / "t.tgz", {name: content}, "w:gz"),
    "parquet": lambda folder, _, content: write_parquet(folder / "t.parquet", content),
    "address": lambda folder, name, content: write_memory(folder / name, content),
}


def check_is_hit(tmp_path: Path, place: str, name: str, content: bytes, fx: Any) -> None:
    (tmp_path / name).write_bytes(content)
    first = extract(tmp_path / name, tmp_path / "feats", fx)
    again = extract(PLACES[place](tmp_path, name, content), tmp_path / "feats", fx)
    assert (first.computed, first.quarantined) == (1, [])
    assert (again.total, again.computed, again.quarantined) == (1, 0, [])
    assert len(set(keys(tmp_path / "feats").values())) == 1
    fresh = extract(PLACES[place](tmp_path, name, content), tmp_path / place, fx)
    assert (fresh.computed, fresh.quarantined) == (1, [])


@pytest.mark.parametrize("place", PLACES)
def test_recording_is_read_wherever_it_lies(tmp_path: Path, place: str) -> None:
    pytest.importorskip("soundfile")
    from tests.extract.test_audio import RATE, encoded, extractor, tone

    check_is_hit(tmp_path, place, "a.wav", encoded(tone(900), RATE), extractor())


@pytest.mark.parametrize("place", PLACES)
def test_video_is_read_wherever_it_lies(tmp_path: Path, place: str) -> None:
    pytest.importorskip("av")
    from tests.extract.test_video import encode, extractor, movie

    fx: FeatureExtractor = extractor(SmallBackbone(), frames=3)
    check_is_hit(tmp_path, place, "a.mkv", encode(movie(np.random.default_rng(0), 9)), fx)
