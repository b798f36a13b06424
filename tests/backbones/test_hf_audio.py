"""Models of transformers that take samples give what transformers gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyfeat import FeatureExtractor
from pyfeat.backbones import AudioPreprocessing, load_backbone

transformers = pytest.importorskip("transformers")

RATE = 16_000
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 8),
    "conv_stride": (5, 8, 8),  # one state for 320 samples, as in the models people use
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
KINDS = {
    "data2vec-audio": "Data2VecAudio",
    "hubert": "Hubert",
    "sew": "SEW",
    "unispeech": "UniSpeech",
    "unispeech-sat": "UniSpeechSat",
    "wav2vec2": "Wav2Vec2",
    "wav2vec2-conformer": "Wav2Vec2Conformer",
    "wavlm": "WavLM",
}
# Sums in float32, in another order: both are within 2e-6 of a forward pass in float64.
TOLERANCE = 1e-5


def saved(folder: Path, kind: str = "wav2vec2", *, do_normalize: bool = True) -> str:
    torch.manual_seed(0)
    stem = KINDS[kind]
    more = {"squeeze_factor": 1} if kind == "sew" else {}
    config = getattr(transformers, f"{stem}Config")(**TINY, **more)
    getattr(transformers, f"{stem}Model")(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    return f"hf/{folder}"


def states_of(folder: Path, samples: np.ndarray) -> np.ndarray:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt", padding=False)
    with torch.no_grad():
        return model(inputs.input_values).last_hidden_state[0].numpy()


@pytest.fixture
def clips(rng: np.random.Generator) -> list[np.ndarray]:
    return [(0.1 * rng.standard_normal(n) + 0.02).astype(np.float32) for n in (RATE, 7_001, 16_003)]


@pytest.mark.parametrize("kind", KINDS)
def test_row_is_the_mean_state_of_transformers(
    tmp_path: Path, clips: list[np.ndarray], kind: str
) -> None:
    name = saved(tmp_path, kind)
    rows = FeatureExtractor(name, device="cpu").transform(clips)
    expected = np.stack([states_of(tmp_path, clip).mean(axis=0) for clip in clips])
    np.testing.assert_allclose(rows, expected, rtol=0, atol=TOLERANCE)


def test_samples_are_left_alone_where_the_extractor_leaves_them(
    tmp_path: Path, clips: list[np.ndarray]
) -> None:
    name = saved(tmp_path, do_normalize=False)
    assert load_backbone(name, device="cpu").parts["preprocessing"]["normalize"] == "none"
    rows = FeatureExtractor(name, device="cpu").transform(clips[:1])
    expected = states_of(tmp_path, clips[0]).mean(axis=0)
    np.testing.assert_allclose(rows[0], expected, rtol=0, atol=TOLERANCE)


def test_row_is_the_same_to_the_bit_among_clips_of_other_lengths(
    tmp_path: Path, clips: list[np.ndarray]
) -> None:
    extractor = FeatureExtractor(saved(tmp_path), device="cpu")
    together = extractor.transform([*clips, clips[0][::-1].copy(), clips[0] * 2])
    alone = np.concatenate([extractor.transform([clip]) for clip in clips])
    assert together[: len(clips)].tobytes() == alone.tobytes()


def test_shortest_clip_gives_at_least_one_state(tmp_path: Path) -> None:
    rows = FeatureExtractor(saved(tmp_path), device="cpu").transform([np.ones(3, np.float32)])
    assert np.isfinite(rows).all()


def test_inner_layer_is_averaged_over_time(tmp_path: Path, clips: list[np.ndarray]) -> None:
    name = saved(tmp_path)
    rows = FeatureExtractor(name, layers=-2, device="cpu").transform(clips[:1])
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    values = extractor(clips[0], sampling_rate=RATE, return_tensors="pt").input_values
    with torch.no_grad():
        states = model(values, output_hidden_states=True).hidden_states
    expected = states[-2][0].mean(dim=0).numpy()
    np.testing.assert_allclose(rows[0], expected, rtol=0, atol=TOLERANCE)


def test_engine_openvino_gives_the_rows_of_torch(tmp_path: Path, clips: list[np.ndarray]) -> None:
    pytest.importorskip("openvino")
    name = saved(tmp_path)
    rows = FeatureExtractor(name, device="cpu").transform(clips)
    other = FeatureExtractor(name, device="cpu", engine="openvino").transform(clips)
    np.testing.assert_allclose(other, rows, rtol=0, atol=TOLERANCE)


def test_settings_of_the_network_are_part_of_its_identity(tmp_path: Path) -> None:
    names = [saved(tmp_path / kind, kind) for kind in ("wav2vec2", "hubert")]
    architectures = {load_backbone(n, device="cpu").parts["architecture"] for n in names}
    assert len(architectures) == 2


def test_model_of_spectrograms_is_refused_with_a_way_out(tmp_path: Path) -> None:
    transformers.Wav2Vec2BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"got 'wav2vec2-bert': for another one pass an nn"):
        load_backbone(f"hf/{tmp_path}", device="cpu")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    name = saved(tmp_path)
    from safetensors.torch import load_file, save_file

    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights.pop("feature_projection.projection.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="must be complete, got 1 missing"):
        load_backbone(name, device="cpu")


def test_own_windows_may_be_asked_for(tmp_path: Path, clips: list[np.ndarray]) -> None:
    half = AudioPreprocessing(RATE, window=0.5, hop=0.5)
    extractor = FeatureExtractor(saved(tmp_path), preprocessing=half, device="cpu")
    whole = extractor.transform([clips[0]])[0]
    halves = extractor.transform([clips[0][:8000], clips[0][8000:]])
    np.testing.assert_allclose(whole, halves.mean(axis=0), rtol=0, atol=TOLERANCE)


def test_preprocessing_of_images_is_refused(tmp_path: Path) -> None:
    from pyfeat.ops import Preprocessing

    spec = Preprocessing(resize=36, crop=32, interpolation="bilinear")
    with pytest.raises(ValueError, match="preprocessing must be AudioPreprocessing"):
        load_backbone(saved(tmp_path), preprocessing=spec, device="cpu")
