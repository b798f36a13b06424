"""Engines chosen or calibrated on inputs, and found again in the store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pyfeat import FeatureExtractor, FeatureStore
from pyfeat.backbones import ENGINES
from pyfeat.extract import _choice

from .conftest import SMALL

INT8 = {"engine": "openvino", "precision": "int8", "preprocessing": SMALL, "device": "cpu"}


@pytest.fixture(autouse=True)
def new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (why := ENGINES["openvino"].refuses("int8", torch.device("cpu"))) is not None:
        pytest.skip(why)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _choice._made.clear()


def test_int8_goes_on_with_the_network_of_the_store(
    backbone: nn.Module, photos: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    first = FeatureExtractor(backbone, store=store, **INT8)
    rows = first.transform(photos[:6])
    assert first.fidelity_.sample == 6
    _choice._made.clear()
    second = FeatureExtractor(backbone, store=store, **INT8)
    assert (second.transform(photos)[:6] == rows).all()
    assert second.space_ == first.space_
    assert len(FeatureStore.spaces(store)) == 1


def test_int8_of_a_store_asks_for_its_network(
    backbone: nn.Module, photos: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    FeatureExtractor(backbone, store=store, **INT8).transform(photos[:4])
    _choice._made.clear()
    (tmp_path / "cache" / "pyfeat").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="calibrated network must be at"):
        FeatureExtractor(backbone, store=store, **INT8).transform(photos)


def test_jobs_that_calibrate_at_once_have_one_network(
    backbone: nn.Module, photos: list[str], tmp_path: Path
) -> None:
    spaces = []
    for sample in (photos[:3], photos[3:6]):  # neither sees a row of the other
        _choice._made.clear()
        fx = FeatureExtractor(backbone, store=tmp_path / "store", **INT8)
        spaces.append(fx.fit(sample).space_)
    assert spaces[0] == spaces[1]


def test_int8_without_inputs_says_what_to_do(backbone: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"must be calibrated on inputs: call fit\(X\)"):
        FeatureExtractor(backbone, **INT8).get_space()


def test_files_go_to_openvino_as_bytes_with_equal_rows(
    backbone: nn.Module, photos: list[str]
) -> None:
    settings = {"preprocessing": SMALL, "device": "cpu"}
    exact = FeatureExtractor(backbone, **settings).transform(photos)
    rows = FeatureExtractor(backbone, engine="openvino", **settings).transform(photos)
    # Two layers of at most 147 products each, in another order.
    bound = 2 * 147 * 2.0**-23 * abs(exact).max()
    assert abs(rows - exact).max() <= bound
