"""What a job would cost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from pyfeat import FeatureExtractor
from pyfeat.extract import Input
from pyfeat.jobs import _plan, extract, plan

from .conftest import SMALL, pooled_colours


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(300):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    (folder / "000.png").write_bytes(b"no image")
    for file in folder.iterdir():  # not just now: the memo takes note of them
        os.utime(file, (1e9, 1e9))
    return folder


@pytest.fixture(scope="module")
def planned(photos: Path) -> _plan.Plan:
    return plan(photos, [pooled_colours()], precisions=["fp32", "fp16"])


def test_sample_is_200_of_all(planned: _plan.Plan, photos: Path) -> None:
    assert (planned.total, planned.sample) == (300, 200)
    size = sum(p.stat().st_size for p in photos.iterdir())
    assert planned.input_bytes == pytest.approx(size, rel=0.05)


def test_time_is_that_of_all_inputs(planned: _plan.Plan) -> None:
    e = planned.estimates[0]
    assert e.seconds > 300 / e.items_per_second > 0
    assert sum(e.shares.values()) == pytest.approx(1)
    assert (e.unreadable, e.error, e.device_memory_bytes) == (1, None, 0)
    assert e.memory_bytes > 50e6


def test_disk_is_what_the_store_then_takes(
    planned: _plan.Plan, photos: Path, tmp_path: Path
) -> None:
    extract(photos, tmp_path / "feats", pooled_colours())
    size = sum(p.stat().st_size for p in (tmp_path / "feats").rglob("*") if p.is_file())
    assert planned.estimates[0].disk_bytes == pytest.approx(size, rel=0.05)


def test_pipe_among_the_inputs_is_not_waited_for(tmp_path: Path) -> None:
    pipe = str(tmp_path / "pipe.png")
    os.mkfifo(pipe)
    assert _plan._size(Input(pipe, pipe)) == 0


def test_precision_that_cannot_run_is_named_with_its_reason(planned: _plan.Plan) -> None:
    e = planned.estimates[1]
    assert (e.precision, e.seconds) == ("fp16", 0)
    assert "cannot run fp16 on cpu" in str(e.error)


def test_no_backbone_is_taken_to_be_faster_than_the_files_are_read() -> None:
    measured = {
        "items_per_second": 100.0,
        "load_seconds": 1.0,
        "dim": 4,
        "row_bytes": 44.0,
        "unreadable": 0,
        "shares": {},
        "memory_bytes": 1,
        "device_memory_bytes": 0,
    }
    settings = FeatureExtractor(preprocessing=SMALL).get_params(deep=False)
    slow = _plan._estimate(settings, measured, (1000, 10.0), [_plan.Input("a", "a")])
    assert (slow.items_per_second, slow.seconds) == (10, 101)


def test_nothing_to_try_is_refused(photos: Path) -> None:
    with pytest.raises(ValueError, match="backbones and precisions must name at least one each"):
        plan(photos, [])


def test_module_with_weights_is_tried_in_its_process(photos: Path) -> None:
    convolved = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    fx = FeatureExtractor(convolved, preprocessing=SMALL, device="cpu")
    (estimate,) = plan(photos, [fx]).estimates
    assert (estimate.error, estimate.dim) == (None, 4)
