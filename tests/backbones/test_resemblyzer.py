"""The speaker encoder gives the rows of the package its weights come from."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyfeat import FeatureExtractor
from pyfeat.backbones import AudioPreprocessing, Backbone, load_backbone
from pyfeat.backbones._mel import MelSpectrogram, mel_filters
from pyfeat.backbones._resemblyzer import PREPROCESSING
from pyfeat.extract._audio import windows

if find_spec("resemblyzer") is None:
    pytest.skip("resemblyzer is not installed", allow_module_level=True)

RATE = 16_000
# The rows have norm 1, and float32 sums of up to 512 terms lie behind each of their 160 steps.
TOLERANCE = 64 * float(np.finfo(np.float32).eps) * 160**0.5


@pytest.fixture(scope="module")
def librosa() -> Any:
    return pytest.importorskip("librosa")


@pytest.fixture(scope="module")
def package() -> Iterator[Any]:
    """Return the package; its voice detector asks setuptools for a version, which may be gone."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("pkg_resources") is None:
            version = types.ModuleType("pkg_resources")
            version.get_distribution = importlib.metadata.distribution  # type: ignore[attr-defined]
            patch.setitem(sys.modules, "pkg_resources", version)
        yield pytest.importorskip("resemblyzer")


@pytest.fixture(scope="module")
def theirs(package: Any) -> Any:
    return package.VoiceEncoder("cpu", verbose=False)


@pytest.fixture(scope="module")
def encoder() -> Backbone:
    return load_backbone("resemblyzer", device="cpu")


def noise(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    loud = 0.1 * (1 + np.sin(np.arange(n) / 3000))
    return (loud * rng.standard_normal(n)).astype(np.float32)


# --- the spectrogram --------------------------------------------------------------------------


@pytest.mark.parametrize(("n_fft", "n_mels"), [(400, 40), (400, 80), (512, 23)])
def test_mel_filters_are_those_of_librosa(librosa: Any, n_fft: int, n_mels: int) -> None:
    expected = librosa.filters.mel(sr=RATE, n_fft=n_fft, n_mels=n_mels)
    eps = np.finfo(np.float32).eps  # theirs are float32
    bound = 4 * eps * expected.max()
    assert np.abs(mel_filters(RATE, n_fft, n_mels).numpy() - expected).max() <= bound


@pytest.mark.parametrize(("n_fft", "hop"), [(400, 160), (512, 160), (256, 256), (100, 33)])
def test_spectrogram_is_that_of_librosa(librosa: Any, n_fft: int, hop: int) -> None:
    samples = noise(5_003)
    expected = librosa.feature.melspectrogram(
        y=samples.astype(np.float64), sr=RATE, n_fft=n_fft, hop_length=hop, n_mels=20, center=False
    ).T
    got = MelSpectrogram(RATE, n_fft, hop, 20)(torch.from_numpy(samples)[None])[0].numpy()
    # Sums of n_fft products, squared.
    bound = 8 * np.finfo(np.float32).eps * n_fft**0.5 * expected.max()
    np.testing.assert_allclose(got, expected[: len(got)], rtol=0, atol=bound)
    assert len(expected) - len(got) in {0, 1}  # a block that is not whole


# --- windows and rows -------------------------------------------------------------------------


def test_windows_are_those_of_the_package_for_every_length(theirs: Any) -> None:
    edges = [12_320 * k + 19_200 + d for k in range(6) for d in (-1, 0, 1)]
    for n in [*range(1, 100_000, 499), *edges]:
        slices, _ = theirs.compute_partial_slices(n, 1.3, 0.75)
        assert len(windows(np.zeros(n, np.float32), PREPROCESSING)) == len(slices), n


@pytest.mark.parametrize("n", [50, 9_000, 25_599, 25_600, 31_519, 31_520, 43_841, 100_003])
def test_row_is_the_utterance_of_the_package(package: Any, theirs: Any, n: int) -> None:
    samples = noise(n, seed=n)
    row = FeatureExtractor("resemblyzer", device="cpu").transform([samples])[0]
    loud = package.normalize_volume(samples, -30, increase_only=True)
    np.testing.assert_allclose(row, theirs.embed_utterance(loud), rtol=0, atol=TOLERANCE)


def test_silent_recording_is_raised_as_in_the_package(package: Any, theirs: Any) -> None:
    samples = noise(30_000) * np.float32(1e-3)
    row = FeatureExtractor("resemblyzer", device="cpu").transform([samples])[0]
    loud = package.normalize_volume(samples, -30, increase_only=True)
    assert not np.array_equal(loud, samples)
    np.testing.assert_allclose(row, theirs.embed_utterance(loud), rtol=0, atol=TOLERANCE)


def test_nothing_but_silence_has_a_row() -> None:
    row = FeatureExtractor("resemblyzer", device="cpu").transform([np.zeros(9_000, np.float32)])
    assert np.isfinite(row).all()


def test_digits_on_disk_have_the_rows_of_the_package(
    data_root: Path, librosa: Any, package: Any, theirs: Any
) -> None:
    paths = sorted((data_root / "fsdd").glob("*.wav"))[::10]
    rows = FeatureExtractor("resemblyzer", device="cpu").transform(paths)
    for path, row in zip(paths, rows, strict=True):
        wav = librosa.resample(librosa.load(path, sr=None)[0], orig_sr=8_000, target_sr=RATE)
        expected = theirs.embed_utterance(package.normalize_volume(wav, -30, increase_only=True))
        np.testing.assert_allclose(row, expected, rtol=0, atol=TOLERANCE)


def test_speaker_of_a_digit_is_that_of_the_nearest_other_one(data_root: Path) -> None:
    paths = sorted((data_root / "fsdd").glob("*.wav"))
    speakers = np.array([path.name.split("_")[1] for path in paths])
    rows = FeatureExtractor("resemblyzer", device="cpu").transform(paths)
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -1)
    assert (speakers[cosine.argmax(axis=1)] == speakers).mean() >= 0.95


# --- engines, identity, errors ----------------------------------------------------------------


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_engines_agree(encoder: Backbone, engine: str) -> None:
    pytest.importorskip(engine)
    batch = torch.from_numpy(np.stack([noise(25_840, seed) for seed in range(3)]))
    other = encoder.with_engine(engine, "fp32")
    torch.testing.assert_close(other(batch), encoder(batch), rtol=0, atol=TOLERANCE)


def test_row_does_not_depend_on_its_neighbours(encoder: Backbone) -> None:
    batch = torch.from_numpy(np.stack([noise(25_840, seed) for seed in range(7)]))
    rows = encoder(batch)
    assert all(torch.equal(encoder(batch[i : i + 1])[0], rows[i]) for i in range(7))


def test_identity_is_of_the_weights_and_the_windows(encoder: Backbone) -> None:
    other = AudioPreprocessing(RATE, window=2.0, hop=2.0)
    parts = load_backbone("resemblyzer", preprocessing=other, device="cpu").parts
    same = ("weights", "architecture", "source", "name")
    assert all(parts[key] == encoder.parts[key] for key in same)
    assert parts["preprocessing"] != encoder.parts["preprocessing"]


def test_another_sample_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="preprocessing must be AudioPreprocessing with sample_ra"):
        load_backbone("resemblyzer", preprocessing=AudioPreprocessing(8_000, 1.6, 0.8))


def test_package_is_not_imported_and_its_absence_is_told() -> None:
    # A process of its own, in which the import system cannot find the package any more.
    code = """
import sys
from pyfeat.backbones import load_backbone
load_backbone("resemblyzer", device="cpu")
assert not {"resemblyzer", "librosa", "webrtcvad"} & set(sys.modules)
import pyfeat.backbones._resemblyzer as own
own.find_spec = lambda name: None
try:
    own.load_resemblyzer("resemblyzer", None)
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "pip install --no-deps resemblyzer" in done.stdout
