"""The encoder of Whisper and AST give what transformers gives, spectrogram included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyfeat import FeatureExtractor
from pyfeat.backbones import ENGINES, AudioPreprocessing, load_backbone
from tests.backbones.tiny import SMALL

transformers = pytest.importorskip("transformers")

RATE, SECONDS = 16_000, 2
WHISPER = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_source_positions": 50 * SECONDS,
    "num_mel_bins": 20,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}
AST = {**SMALL, "max_length": 64, "num_mel_bins": 32}
WINDOW = (400 + 63 * 160) / RATE


def save_whisper(folder: Path, **settings: Any) -> str:
    torch.manual_seed(0)
    model = transformers.WhisperModel(transformers.WhisperConfig(**WHISPER))
    model.save_pretrained(folder)
    own = {"feature_size": 20, "chunk_length": SECONDS, **settings}
    transformers.WhisperFeatureExtractor(**own).save_pretrained(folder)
    return f"hf/{folder}"


def save_ast(folder: Path, **settings: Any) -> str:
    torch.manual_seed(0)
    transformers.ASTModel(transformers.ASTConfig(**AST)).save_pretrained(folder)
    own = {"num_mel_bins": 32, "max_length": 64, **settings}
    transformers.ASTFeatureExtractor(**own).save_pretrained(folder)
    return f"hf/{folder}"


def whisper_states(folder: Path, samples: np.ndarray) -> np.ndarray:
    """Return the states that a recording reaches."""
    model = transformers.WhisperModel.from_pretrained(folder).eval().get_encoder()
    prepare = transformers.AutoFeatureExtractor.from_pretrained(folder)
    features = prepare(samples, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.no_grad():
        states = model(features).last_hidden_state[0].numpy()
    return states[: -(-len(samples) // 320)]


def ast_row(folder: Path, samples: np.ndarray) -> np.ndarray:
    model = transformers.ASTModel.from_pretrained(folder).eval()
    prepare = transformers.AutoFeatureExtractor.from_pretrained(folder)
    values = prepare(samples, sampling_rate=RATE, return_tensors="pt").input_values
    with torch.no_grad():
        return model(values).pooler_output[0].numpy()


@pytest.fixture
def clips(rng: np.random.Generator) -> list[np.ndarray]:
    """Noise of another loudness each: 0.5 s, 0.5 s and some, and one second and some."""
    sizes = ((8000, 0.3), (9001, 0.01), (10_003, 0.1))
    return [(loud * rng.standard_normal(n)).astype(np.float32) for n, loud in sizes]


@pytest.mark.parametrize("do_normalize", [False, True])
def test_row_of_whisper_is_the_mean_of_the_states_it_reaches(
    tmp_path: Path, clips: list[np.ndarray], do_normalize: bool
) -> None:
    name = save_whisper(tmp_path, do_normalize=do_normalize)
    rows = FeatureExtractor(name, device="cpu").transform(clips)
    if do_normalize:
        clips = [(c - c.mean()) / np.sqrt(c.var() + 1e-7) for c in clips]
    expected = np.stack([whisper_states(tmp_path, clip).mean(axis=0) for clip in clips])
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-4)


def test_row_of_ast_is_its_pooled_output(tmp_path: Path, clips: list[np.ndarray]) -> None:
    rows = FeatureExtractor(save_ast(tmp_path), device="cpu").transform(clips)
    expected = np.stack([ast_row(tmp_path, clip) for clip in clips])
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-4)


def test_ast_without_normalisation_is_followed(tmp_path: Path, clips: list[np.ndarray]) -> None:
    name = save_ast(tmp_path, do_normalize=False)
    rows = FeatureExtractor(name, device="cpu").transform(clips[:1])
    np.testing.assert_allclose(rows[0], ast_row(tmp_path, clips[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("save", [save_whisper, save_ast])
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_other_engines_give_the_rows_of_torch(
    tmp_path: Path, clips: list[np.ndarray], save: Any, engine: str
) -> None:
    if (why := ENGINES[engine].refuses("fp32", torch.device("cpu"))) is not None:
        pytest.skip(why)
    name = save(tmp_path)
    rows = FeatureExtractor(name, device="cpu").transform(clips)
    other = FeatureExtractor(name, device="cpu", engine=engine).transform(clips)
    np.testing.assert_allclose(other, rows, rtol=0, atol=1e-4)


def test_long_recording_is_the_mean_of_its_windows(tmp_path: Path, clips: list[np.ndarray]) -> None:
    extractor = FeatureExtractor(save_whisper(tmp_path), device="cpu")
    both = np.concatenate([np.resize(clips[0], 2 * RATE), np.resize(clips[1], 2 * RATE)])
    halves = extractor.transform([both[: 2 * RATE], both[2 * RATE :]])
    np.testing.assert_allclose(extractor.transform([both])[0], halves.mean(axis=0), atol=1e-6)


def test_tokens_of_whisper_are_the_states_it_reaches(
    tmp_path: Path, clips: list[np.ndarray]
) -> None:
    name = save_whisper(tmp_path)
    rows = FeatureExtractor(name, pooling="none", device="cpu").transform(clips)
    assert rows.shape == (3, 50 * SECONDS, 32)
    for row, clip in zip(rows, clips, strict=True):
        states = whisper_states(tmp_path, clip)
        np.testing.assert_allclose(row[: len(states)], states, rtol=0, atol=1e-4)
        assert not row[len(states) :].any()


def test_inner_layer_of_whisper_is_averaged_over_what_it_reaches(
    tmp_path: Path, clips: list[np.ndarray]
) -> None:
    name = save_whisper(tmp_path)
    rows = FeatureExtractor(name, layers="encoder.layers.0", device="cpu").transform(clips)
    tokens = FeatureExtractor(
        name, layers="encoder.layers.0", pooling="none", device="cpu"
    ).transform(clips)
    reached = [tokens[i, : -(-len(c) // 320)].mean(axis=0) for i, c in enumerate(clips)]
    np.testing.assert_allclose(rows, reached, rtol=0, atol=1e-6)


def test_two_tokens_of_ast_stand_for_no_position(tmp_path: Path, clips: list[np.ndarray]) -> None:
    name = save_ast(tmp_path)
    pooled = FeatureExtractor(name, layers=-2, pooling="avg", device="cpu").transform(clips)
    tokens = FeatureExtractor(name, layers=-2, pooling="none", device="cpu").transform(clips)
    np.testing.assert_allclose(pooled, tokens[:, 2:].mean(axis=1), rtol=0, atol=1e-6)


def test_spectrogram_is_part_of_the_identity(tmp_path: Path) -> None:
    names = [save_ast(tmp_path / str(mean), mean=mean) for mean in (-4.0, -3.0)]
    parts = [load_backbone(name, device="cpu").parts["architecture"] for name in names]
    assert parts[0] != parts[1]


def test_windows_are_as_long_as_the_spectrogram(tmp_path: Path) -> None:
    specs = [
        load_backbone(save(tmp_path / save.__name__), device="cpu").preprocessing
        for save in (save_whisper, save_ast)
    ]
    assert [spec.window for spec in specs] == [SECONDS, WINDOW]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (AudioPreprocessing(8000, window=1, hop=1), "must have sample_rate 16000"),
        (AudioPreprocessing(RATE, window=3, hop=1), "windows of 2 s at most"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    tmp_path: Path, spec: AudioPreprocessing, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(save_whisper(tmp_path), preprocessing=spec, device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_length": 3}, "must make 100 states of a window, got 150"),
        ({"dither": 0.1}, "must add no noise"),
        ({"sampling_rate": 8000}, "must have sampling_rate 16000"),
    ],
)
def test_spectrogram_that_is_not_computed_here_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    name = save_whisper(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(ValueError, match=message):
        load_backbone(name, device="cpu")


def test_missing_weights_of_the_encoder_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = save_whisper(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(key for key in weights if "encoder.layers.0.fc1.weight" in key))
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="must be complete, got 1 missing"):
        load_backbone(name, device="cpu")
