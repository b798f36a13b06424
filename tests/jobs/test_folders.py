"""Models trained on rows of a folder's backbone: the folder is named again, wherever it is now."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureExtractor
from pyfeat.errors import SpaceError
from pyfeat.heads import LogisticHead
from pyfeat.jobs import build_index, extract, predict, search_index
from pyfeat.jobs._predict import extractor_of
from tests.backbones.tiny import save_text_model
from tests.towers import save_towers

pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_text_model(tmp_path / "bert")[0]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("the film is funny\na dull boring film\nmoving and funny\n")
    return path


@pytest.fixture
def model(folder: Path, texts: Path, tmp_path: Path) -> Path:
    """A model on rows of a folder that has since been moved to "moved"."""
    extract(texts, tmp_path / "feats", f"hf/{folder}")
    path = tmp_path / "model.safetensors"
    extractor = FeatureExtractor(f"hf/{folder}", store=tmp_path / "feats")
    rows = extractor.transform(texts.read_text().splitlines())
    head = LogisticHead().fit(rows, np.array(["good", "bad", "good"]))
    head.space_ = extractor.space_
    head.save(path)
    shutil.move(folder, tmp_path / "moved")
    return path


def test_model_asks_for_its_folder(model: Path, texts: Path) -> None:
    with pytest.raises(
        ValueError, match=r"weights must be given again: .* hf/BertModel:\w{16} with a folder"
    ):
        predict(model, texts)


def test_model_takes_its_folder_wherever_it_is(model: Path, texts: Path, tmp_path: Path) -> None:
    found = predict(model, texts, weights=tmp_path / "moved", store=tmp_path / "feats")
    assert found.extraction.computed == 0
    assert len(found.predictions) == 3


def test_model_refuses_another_folder(model: Path, texts: Path, tmp_path: Path) -> None:
    save_text_model(tmp_path / "other", intermediate_size=32)
    with pytest.raises(SpaceError, match="the backbone must come from space"):
        predict(model, texts, weights=tmp_path / "other")


def test_index_takes_its_folder_wherever_it_is(model: Path, texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    build_index(tmp_path / "feats", tmp_path / "index.faiss")
    found, _ = search_index(tmp_path / "index.faiss", texts, k=1, weights=tmp_path / "moved")
    assert [n.path for n in found] == [n.query for n in found]


def test_text_tower_is_found_again_in_its_folder(tmp_path: Path) -> None:
    save_towers(tmp_path, "clip")
    space = FeatureExtractor(f"hf/{tmp_path}#text").get_space()
    assert extractor_of(space, tmp_path).get_space() == space
