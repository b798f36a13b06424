"""A folder is known by what is in it: where it lies and what it is called are no identity."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyfeat import FeatureExtractor, Space
from pyfeat.backbones import describe, load_backbone
from tests.backbones.tiny import (
    SMALL,
    save_image_model,
    save_sentence_model,
    save_text_model,
)
from tests.towers import save_towers

pytest.importorskip("transformers")


def _image(folder: Path) -> None:
    settings = {**SMALL, "image_size": 32, "patch_size": 8}
    save_image_model(folder, "ViTModel", "ViTConfig", "ViTImageProcessor", **settings)


def _sentences(folder: Path) -> None:
    save_sentence_model(folder, [("Pooling", {"pooling_mode": "mean"})])


SAVED: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "image": ("hf", "", _image),
    "text": ("hf", "", save_text_model),
    "sentence": ("st", "", _sentences),
    "towers": ("hf", "", lambda folder: save_towers(folder, "clip")),
    "text tower": ("hf", "#text", lambda folder: save_towers(folder, "clip")),
}


def space_of(name: str) -> Space:
    return FeatureExtractor(name, device="cpu").get_space()


@pytest.mark.parametrize("kind", SAVED)
def test_folder_that_was_moved_and_renamed_is_the_same_space(kind: str, tmp_path: Path) -> None:
    prefix, part, save = SAVED[kind]
    save(tmp_path / "before")
    before = space_of(f"{prefix}/{tmp_path / 'before'}{part}")
    shutil.move(tmp_path / "before", tmp_path / "elsewhere" / "after")
    assert space_of(f"{prefix}/{tmp_path / 'elsewhere' / 'after'}{part}") == before
    assert str(tmp_path) not in before.to_json()


def test_text_tower_of_a_folder_is_the_one_of_its_own_name(tmp_path: Path) -> None:
    save_towers(tmp_path, "clip")
    images = load_backbone(f"hf/{tmp_path}", device="cpu")
    texts = load_backbone(f"hf/{tmp_path}#text", device="cpu")
    assert images.text_tower().parts == texts.parts
    assert texts.name.startswith("hf/CLIPModel#text:")


def test_folder_of_other_weights_has_another_name(tmp_path: Path) -> None:
    save_text_model(tmp_path / "a")
    save_text_model(tmp_path / "b", hidden_size=16)
    names = [load_backbone(f"hf/{tmp_path / f}", device="cpu").name for f in ("a", "b")]
    assert all(name.startswith("hf/BertModel:") for name in names)
    assert names[0] != names[1]


def test_description_names_a_folder_as_its_rows_do(tmp_path: Path) -> None:
    save_text_model(tmp_path)
    found = describe(f"hf/{tmp_path}")
    assert (found.name, found.source) == (
        load_backbone(f"hf/{tmp_path}", device="cpu").name,
        "folder",
    )
