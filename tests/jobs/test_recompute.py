"""Rows computed again are those of the store, or it is said which are not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyfeat import FeatureExtractor, FeatureStore, Space
from pyfeat.backbones import load_backbone
from pyfeat.extract import RunOptions
from pyfeat.jobs import extract, recompute
from pyfeat.jobs._golden import golden_input, golden_row
from pyfeat.jobs._recompute import compare, tolerance_of
from pyfeat.ops import Preprocessing
from pyfeat.store import Golden, Item, read_golden, write_golden, write_items

from .conftest import WORDS

N = len(WORDS)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for word in WORDS:
        (folder / f"{word}.txt").write_text(f"the {word} film")
    return folder


@pytest.fixture
def store(texts: Path, tmp_path: Path, words: str) -> Path:
    extract(texts, tmp_path / "feats", words)
    return tmp_path / "feats"


def test_job_keeps_a_golden_row_with_its_space(store: Path) -> None:
    (space,) = FeatureStore.spaces(store)
    golden = read_golden(store, space)
    assert golden is not None
    assert (golden.name, golden.row.shape) == ("text-1", (space.dim,))


def test_golden_row_is_no_row_of_the_store(store: Path) -> None:
    assert len(FeatureStore(store, mode="r")) == N


def test_rows_of_this_machine_agree(store: Path) -> None:
    (done,) = recompute(store, 5, seed=0)
    assert (len(done.compared), done.gone, done.changed, done.unreadable) == (5, 0, 0, 0)
    assert done.golden is not None
    assert done.beyond == []
    assert min(c.cosine for c in done.compared) > 1 - 1e-6


def test_every_input_is_compared_where_there_are_few(store: Path) -> None:
    assert len(recompute(store, 1000)[0].compared) == N


def test_row_that_is_another_is_named(store: Path) -> None:
    with FeatureStore(store) as opened:
        key = opened.keys()[:1]
        opened.put(key, opened.get(key)[:, ::-1])
    (done,) = recompute(store, N)
    assert len(done.beyond) == 1
    assert done.beyond[0].name.endswith(".txt")


def test_golden_row_that_is_another_is_named(store: Path) -> None:
    (space,) = FeatureStore.spaces(store)
    golden = read_golden(store, space)
    assert golden is not None
    write_golden(store, space, Golden(golden.name, golden.row * 1.01))
    (done,) = recompute(store, 0)
    assert [c.name for c in done.beyond] == ["text-1"]


def test_inputs_that_are_gone_or_changed_are_counted(store: Path, texts: Path) -> None:
    (texts / "good.txt").unlink()
    shutil.copy(texts / "bad.txt", texts / "film.txt")
    (done,) = recompute(store, N)
    assert (len(done.compared), done.gone, done.changed) == (N - 2, 1, 1)
    assert done.beyond == []


def test_space_of_no_backbone_by_name_says_so(tmp_path: Path) -> None:
    with FeatureStore(tmp_path, Space(3, parts={"name": "mine", "source": "module"})) as store:
        store.put([bytes(16)], np.ones((1, 3)))
    (done,) = recompute(tmp_path, 1)
    assert done.reason is not None
    assert "backbone with a name" in done.reason


def test_space_that_nothing_is_known_of_says_so(tmp_path: Path) -> None:
    FeatureStore(tmp_path, Space(3)).close()
    assert recompute(tmp_path, 1)[0].reason is not None


def test_texts_of_a_list_are_found_again(tmp_path: Path, words: str) -> None:
    (tmp_path / "reviews.txt").write_text("good film\nbad film\nthe film was lovely\n")
    extract(tmp_path / "reviews.txt", tmp_path / "feats", words)
    space = FeatureStore.spaces(tmp_path / "feats")[0]
    assert space.parts["name"] == words
    (done,) = recompute(tmp_path / "feats", 3)
    assert (len(done.compared), done.gone, done.beyond) == (3, 0, [])
    assert done.golden is not None


def test_negative_number_is_refused(store: Path) -> None:
    with pytest.raises(ValueError, match="n must not be negative, got -1"):
        recompute(store, -1)


def test_same_network_with_another_filter_is_beyond_rounding() -> None:
    network = torch.nn.AvgPool2d(8)
    usual = load_backbone(network).preprocessing
    assert isinstance(usual, Preprocessing)
    assert usual.interpolation == "bilinear"
    rows = []
    for spec in (usual, replace(usual, interpolation="bicubic")):
        extractor = FeatureExtractor(network, preprocessing=spec)
        golden = golden_row(extractor.get_backbone(), RunOptions())
        assert golden is not None
        rows.append(golden.row)
    assert not compare("image-1", *rows, extractor.get_space()).agrees


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_what_the_store_rounds_off_is_explained(dtype: str) -> None:
    from pyfeat.store import as_kept

    row = np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32)
    kept = as_kept(row, dtype)[0]
    space = Space(512, dtype, {"precision": "float32"})
    comparison = compare("a", kept, row[0], space)
    assert comparison.agrees
    assert comparison.tolerance < 0.016


@pytest.mark.parametrize(
    ("precision", "most"), [("float32", 2.5e-4), ("fp16", 0.04), ("bf16", 0.25), ("int8:00", 0.25)]
)
def test_tolerance_follows_the_precision(precision: str, most: float) -> None:
    space = Space(4, parts={"precision": precision})
    assert most / 2 < tolerance_of(space, np.ones(4)) <= most


def test_built_in_inputs_are_the_same_in_every_process() -> None:
    from pyfeat._identity import array_key

    value = golden_input(load_backbone(torch.nn.AvgPool2d(32))).value
    assert array_key(value).hex() == "a0bc16d6af354e2cda10ae30abe673c0"


def test_row_of_a_module_is_kept_too(class_folders: Path, tmp_path: Path) -> None:
    extract(class_folders, tmp_path / "feats", torch.nn.AvgPool2d(32))
    (space,) = FeatureStore.spaces(tmp_path / "feats")
    assert read_golden(tmp_path / "feats", space) is not None


def test_name_that_no_input_has_any_more_is_gone(store: Path) -> None:
    (space,) = FeatureStore.spaces(store)
    write_items(store, space, [Item("/nowhere/a.tar::b.png", bytes(16))])
    assert recompute(store, 100)[0].gone == 1


def test_row_that_is_stored_as_zeros_is_all_of_its_length_apart() -> None:
    space = Space(2, "float32", {"precision": "float32"})
    comparison = compare("a", np.zeros(2), np.array([3.0, 4.0]), space)
    assert (comparison.distance, comparison.agrees) == (1.0, False)
