"""Models of two towers against transformers' own logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyfeat import FeatureExtractor
from pyfeat._identity import are_joint
from pyfeat.backbones import ENGINES, Backbone, load_backbone
from pyfeat.ops import preprocess
from tests.towers import LENGTH, SIDE, save_towers, their_tokens

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
KINDS = ["clip", "siglip"]
TEXTS = ["a photo of a cat .", "the small red dog", "a", "a photo of the small blue drawing . " * 4]
PARITY = 1e-4  # what the documentation promises


@pytest.fixture(scope="module", params=KINDS)
def towers(request, tmp_path_factory) -> tuple[str, Path, Any]:
    """Return kind, folder and transformers' model."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, save_towers(folder, request.param)


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)


def extractor(folder: Path, **settings: Any) -> FeatureExtractor:
    return FeatureExtractor(f"hf/{folder}", device="cpu", **settings)


def theirs(towers: Any, photos: np.ndarray) -> Any:
    kind, folder, model = towers
    spec = load_backbone(f"hf/{folder}", device="cpu").preprocessing
    pixels = torch.stack([preprocess(p, spec) for p in photos])
    with torch.no_grad():
        return model(pixel_values=pixels, **their_tokens(folder, TEXTS, kind))


def test_rows_of_both_towers_give_the_logits_of_transformers(towers, photos) -> None:
    kind, folder, model = towers
    own = extractor(folder)
    logits = own.get_logit_scale() * own.transform(photos) @ own.transform_text(TEXTS).T
    bias = float(model.logit_bias.detach()) if kind == "siglip" else 0.0
    expected = theirs(towers, photos).logits_per_image.numpy()
    assert np.ptp(expected) > 100 * PARITY  # towers that see nothing would agree too
    np.testing.assert_allclose(logits + bias, expected, atol=PARITY, rtol=PARITY)


def test_rows_are_the_unit_rows_of_transformers(towers, photos) -> None:
    own, expected = extractor(towers[1]), theirs(towers, photos)
    np.testing.assert_allclose(own.transform(photos), expected.image_embeds, atol=PARITY)
    np.testing.assert_allclose(own.transform_text(TEXTS), expected.text_embeds, atol=PARITY)


def test_row_of_a_text_does_not_depend_on_its_batch(towers) -> None:
    own = extractor(towers[1])
    alone = np.concatenate([own.transform_text([text]) for text in TEXTS])
    np.testing.assert_array_equal(own.transform_text(TEXTS), alone)


def test_preprocessing_is_that_of_the_folder(towers) -> None:
    spec = load_backbone(f"hf/{towers[1]}", device="cpu").preprocessing
    mode = "crop" if towers[0] == "clip" else "stretch"
    assert (spec.resize, spec.crop, spec.mode) == (SIDE, SIDE, mode)
    assert (spec.interpolation, spec.mean) == ("bicubic", (0.5, 0.4, 0.3))


def test_text_tower_has_the_same_rows_by_its_own_name(towers) -> None:
    own, alone = extractor(towers[1]), extractor(Path(f"{towers[1]}#text"))
    np.testing.assert_array_equal(alone.transform(TEXTS), own.transform_text(TEXTS))
    assert alone.get_space() == own.get_text_space()


def test_towers_are_of_two_spaces_that_name_one_model(towers) -> None:
    own = extractor(towers[1])
    image, text = own.get_space(), own.get_text_space()
    assert image.fingerprint != text.fingerprint
    assert image.parts["joint"]["tower"] == "image"
    assert text.parts["joint"] == {**image.parts["joint"], "tower": "text"}


def test_long_texts_are_cut_and_counted(towers) -> None:
    own = extractor(towers[1])
    own.transform_text(TEXTS)
    assert own.n_truncated_ == 1
    assert load_backbone(f"hf/{towers[1]}#text", device="cpu").preprocessing.max_length == LENGTH


@pytest.mark.parametrize("settings", [{"layers": -2}, {"pooling": "avg"}])
def test_rows_of_other_layers_have_no_text_beside_them(towers, settings) -> None:
    own = extractor(towers[1], **settings)
    assert "joint" not in own.get_space().parts
    with pytest.raises(ValueError, match="must have a text tower, and layers"):
        own.transform_text(TEXTS)


def test_rows_of_other_layers_keep_their_length(towers, photos) -> None:
    settings = {"pooling": "avg", "device": "cpu"}
    backbone = load_backbone(f"hf/{towers[1]}", **settings)
    batch = torch.stack([preprocess(torch.from_numpy(p), backbone.preprocessing) for p in photos])
    rows = extractor(towers[1], pooling="avg").transform(photos)
    np.testing.assert_array_equal(rows, backbone(batch).numpy())


def test_network_without_a_text_tower_says_so() -> None:
    with pytest.raises(ValueError, match="must have a text tower"):
        FeatureExtractor(torch.nn.AvgPool2d(32), device="cpu").transform_text(["a"])


def test_text_tower_is_loaded_once(towers) -> None:
    backbone = load_backbone(f"hf/{towers[1]}", device="cpu")
    assert backbone.text_tower() is backbone.text_tower()


def test_rows_of_texts_are_stored_beside_those_of_images(
    towers, photos, tmp_path: Path, monkeypatch
) -> None:
    own = extractor(towers[1], store=tmp_path / "feats")
    own.transform(photos)
    rows = own.transform_text(TEXTS)

    def refuse(_self: Backbone, *_batch: Any) -> Any:
        raise AssertionError("a stored row was computed again")

    monkeypatch.setattr(Backbone, "__call__", refuse)
    np.testing.assert_array_equal(own.transform_text(TEXTS), rows)
    own.transform(photos)


def test_other_types_of_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(ValueError, match="no_such_model"):
        load_backbone(f"hf/{tmp_path}", device="cpu")


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    save_towers(tmp_path, "clip")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises((OSError, ValueError), match="tokenizer"):
        extractor(tmp_path).transform_text(TEXTS)


def test_text_tower_takes_no_videos(towers) -> None:
    with pytest.raises(ValueError, match="must take images to take videos, got text"):
        load_backbone(f"hf/{towers[1]}#text", device="cpu").on_videos()


def test_row_of_a_video_lies_in_the_space_of_texts(towers, photos) -> None:
    own = extractor(towers[1], video="avg", frames=3)
    mean = extractor(towers[1]).transform(photos).mean(axis=0)
    bound = 8 * np.finfo(np.float32).eps
    expected = mean / np.linalg.norm(mean)
    np.testing.assert_allclose(own.transform(photos[None])[0], expected, atol=bound)
    assert own.transform_text(TEXTS).shape == (4, len(mean))


def test_both_towers_run_in_the_precision_that_was_asked_for(towers, photos) -> None:
    exact, fast = extractor(towers[1]), extractor(towers[1], precision="bf16")
    # 8 bits of mantissa through two blocks: rows turn, by far less than to another text's.
    for rows, other in (
        (fast.transform(photos), exact.transform(photos)),
        (fast.transform_text(TEXTS), exact.transform_text(TEXTS)),
    ):
        assert (rows * other).sum(axis=1).min() > 0.99
        assert not np.array_equal(rows, other)
    assert fast.get_text_space().parts["precision"] == "bf16"


def test_texts_stay_in_float32_beside_images_in_int8(towers, photos, tmp_path, monkeypatch) -> None:
    if (why := ENGINES["openvino"].refuses("int8", torch.device("cpu"))) is not None:
        pytest.skip(why)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exact = extractor(towers[1])
    int8 = extractor(towers[1], engine="openvino", precision="int8")
    images, texts = int8.transform(photos), int8.transform_text(TEXTS)
    assert int8.space_.parts["precision"].startswith("int8:")
    assert int8.get_text_space() == exact.get_text_space()
    np.testing.assert_array_equal(texts, exact.transform_text(TEXTS))
    assert are_joint(int8.space_, int8.get_text_space())
    # Of 8 bits each product keeps 2^-8 at worst; a few tens of them lie behind each other.
    cosine = (images * exact.transform(photos)).sum(axis=1)
    assert cosine.min() > 0.95
