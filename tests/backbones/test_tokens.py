"""`pooling="none"` of texts and recordings: tokens, filled up to one shape with zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyfeat import FeatureExtractor
from pyfeat.backbones import ENGINES, AudioPreprocessing
from pyfeat.jobs._predict import extractor_of
from tests.backbones.test_hf_audio import RATE, saved
from tests.backbones.tiny import save_sentence_model, save_text_model

transformers = pytest.importorskip("transformers")

TEXTS = ["the film is moving and funny", "a dull , boring film !", "long", "the film " * 40]
LENGTH, DIM = 40, 32


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("bert"))[0]


@pytest.fixture(scope="module")
def wav2vec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wav2vec")
    saved(folder)
    return folder


@pytest.fixture
def clips(rng: np.random.Generator) -> list[np.ndarray]:
    return [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (RATE, 7_001, 16_003)]


def tokens_of(name: str | Path, **settings: Any) -> FeatureExtractor:
    return FeatureExtractor(f"hf/{name}", pooling="none", device="cpu", **settings)


def states_of(folder: Path, text: str) -> np.ndarray:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=LENGTH)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**inputs).last_hidden_state[0].numpy()


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_of_a_text_are_its_states_and_then_zeros(bert: Path, engine: str) -> None:
    if (why := ENGINES[engine].refuses("fp32", torch.device("cpu"))) is not None:
        pytest.skip(why)
    rows = tokens_of(bert, engine=engine).transform(TEXTS)
    assert rows.shape == (len(TEXTS), LENGTH, DIM)
    for row, text in zip(rows, TEXTS, strict=True):
        states = states_of(bert, text)
        np.testing.assert_allclose(row[: len(states)], states, rtol=0, atol=1e-4)
        assert not row[len(states) :].any()


def test_tokens_of_a_text_are_the_same_to_the_bit_in_any_batch(bert: Path) -> None:
    extractor = tokens_of(bert)
    alone = np.concatenate([extractor.transform([text]) for text in TEXTS])
    assert np.array_equal(extractor.transform(TEXTS[::-1])[::-1], alone)


def test_max_length_is_the_number_of_tokens(bert: Path) -> None:
    extractor = tokens_of(bert, max_length=8)
    assert extractor.transform(TEXTS).shape == (len(TEXTS), 8, DIM)
    assert extractor.n_truncated_ == 1


def test_tokens_of_several_layers_are_taken_apart(bert: Path) -> None:
    extractor = tokens_of(bert, layers=(-2, -1))
    parts = extractor.split(extractor.transform(TEXTS))
    assert [part.shape for part in parts.values()] == [(len(TEXTS), LENGTH, DIM)] * 2
    assert np.array_equal(list(parts.values())[1], tokens_of(bert).transform(TEXTS))


def test_tokens_of_a_sentence_model_are_those_before_its_pooling(tmp_path: Path) -> None:
    save_sentence_model(tmp_path, [("Pooling", {"pooling_mode": "mean"}), ("Normalize", {})])
    extractor = FeatureExtractor(f"st/{tmp_path}", pooling="none", device="cpu")
    states = states_of(tmp_path, TEXTS[0])
    row = extractor.transform(TEXTS[:1])[0]
    np.testing.assert_allclose(row[: len(states)], states, rtol=0, atol=1e-4)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_tokens_of_a_recording_are_its_states_and_then_zeros(
    wav2vec: Path, clips: list[np.ndarray], engine: str
) -> None:
    if (why := ENGINES[engine].refuses("fp32", torch.device("cpu"))) is not None:
        pytest.skip(why)
    rows = tokens_of(wav2vec, engine=engine).transform(clips)
    # A state of a window of ten seconds sees 325 samples, and the next one begins 320 further on.
    assert rows.shape == (3, (10 * RATE - 325) // 320 + 1, DIM)
    model = transformers.AutoModel.from_pretrained(wav2vec).eval()
    prepare = transformers.AutoFeatureExtractor.from_pretrained(wav2vec)
    for row, clip in zip(rows, clips, strict=True):
        values = prepare(clip, sampling_rate=RATE, return_tensors="pt").input_values
        with torch.no_grad():
            states = model(values).last_hidden_state[0].numpy()
        np.testing.assert_allclose(row[: len(states)], states, rtol=0, atol=1e-4)
        assert not row[len(states) :].any()


def test_tokens_of_a_long_recording_are_those_of_its_first_window(
    wav2vec: Path, clips: list[np.ndarray]
) -> None:
    spec = AudioPreprocessing(RATE, window=0.25, hop=0.25)
    extractor = tokens_of(wav2vec, preprocessing=spec)
    rows = extractor.transform(clips[:1])
    assert extractor.n_truncated_ == 1
    assert np.array_equal(rows, extractor.transform([clips[0][:4000]]))
    assert extractor.n_truncated_ == 0


def test_tokens_of_recordings_are_a_space_that_is_found_again(wav2vec: Path) -> None:
    space = tokens_of(wav2vec).get_space()
    assert space.parts["preprocessing"]["windows"] == "first"
    assert extractor_of(space, wav2vec).get_space() == space


def test_channels_before_time_are_no_tokens(wav2vec: Path) -> None:
    with pytest.raises(ValueError, match=r"but for tokens \(n, l, d\), got \(1, 16, "):
        tokens_of(wav2vec, layers="model.feature_extractor").get_space()
