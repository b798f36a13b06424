"""Recordings of every kind become rows, and those that are damaged are named."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyfeat import FeatureExtractor, FeatureStore, jobs
from pyfeat.backbones import AudioPreprocessing
from pyfeat.errors import InputError
from pyfeat.extract import Input, RunOptions, _prepare, _run, run
from pyfeat.extract._audio import AudioReader, normalized, windows

soundfile = pytest.importorskip("soundfile")
soxr = pytest.importorskip("soxr")

RATE = 1_000
PLAIN = AudioPreprocessing(RATE, window=0.5, hop=0.2)
FORMATS = {"wav": 2**-15, "flac": 2**-15, "ogg": 0.1, "mp3": 0.1}  # and how true each is
EPS = float(np.finfo(np.float32).eps)


class Moments(nn.Module):
    """Mean, mean square and largest sample, times weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.mean(1), (x * x).mean(1), x.amax(1)], dim=1) * self.weight


def extractor(spec: AudioPreprocessing = PLAIN, **kwargs: Any) -> FeatureExtractor:
    return FeatureExtractor(Moments(), preprocessing=spec, device="cpu", **kwargs)


def tone(n: int, rate: int = RATE, hz: float = 50.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(n) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, kind: str = "wav") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def samples_of(value: Any, rate: int = 16_000) -> np.ndarray:
    """Return what a reader that cuts nothing makes of a value."""
    reader = AudioReader(AudioPreprocessing(rate, window=1e4, hop=1e4, shortest=0.0))
    return reader.tensor(reader.content(value, "x"), "x")[0][0].numpy()


def reason_of(value: Any) -> str:
    with pytest.raises(InputError) as caught:
        samples_of(value)
    return caught.value.reason


# --- files and arrays -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_file_of_each_format_is_decoded(kind: str) -> None:
    wave = tone(16_000, 16_000, 440.0)
    got = samples_of(encoded(wave, 16_000, kind))
    assert got.shape == wave.shape
    assert np.abs(got - wave).max() <= FORMATS[kind]


def test_path_bytes_and_array_of_the_same_samples_are_one_row(tmp_path: Path) -> None:
    wave = tone(400)
    file = encoded(wave, RATE)
    (tmp_path / "a.wav").write_bytes(file)
    whole, _ = soundfile.read(io.BytesIO(file), dtype="int16")
    rows = extractor().transform([tmp_path / "a.wav", str(tmp_path / "a.wav"), file, whole])
    assert len(np.unique(rows, axis=0)) == 1


def test_channels_are_averaged() -> None:
    left, right = tone(500, hz=10), tone(500, hz=30)
    both = encoded(np.stack([left, right], axis=1), RATE)
    got = samples_of(both, RATE)
    np.testing.assert_allclose(got, (left + right) / 2, rtol=0, atol=2**-15)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
def test_file_of_another_rate_is_resampled_by_soxr(rate: int) -> None:
    file = encoded(tone(rate, rate, 440.0), rate)
    read, _ = soundfile.read(io.BytesIO(file), dtype="float32")
    np.testing.assert_array_equal(samples_of(file), soxr.resample(read, rate, 16_000))


def test_blocks_of_a_long_file_leave_no_trace() -> None:
    rate, rng = 44_100, np.random.default_rng(0)
    file = encoded((0.1 * rng.standard_normal(15 * rate)).astype(np.float32), rate)
    read, _ = soundfile.read(io.BytesIO(file), dtype="float32")
    np.testing.assert_array_equal(samples_of(file), soxr.resample(read, rate, 16_000))


def test_array_with_its_rate_is_resampled() -> None:
    wave = tone(8_000, 8_000, 440.0)
    np.testing.assert_array_equal(samples_of((wave, 8_000)), soxr.resample(wave, 8_000, 16_000))


def test_arrays_with_rates_go_through_the_extractor_and_its_store(tmp_path: Path) -> None:
    wave = tone(2_000, 4_000)
    rows = extractor(store=tmp_path / "store").transform([(wave, 4_000), (wave, RATE), wave])
    np.testing.assert_array_equal(rows[0], extractor().transform([soxr.resample(wave, 4, 1)])[0])
    np.testing.assert_array_equal(rows[1], rows[2])
    assert not np.array_equal(rows[0], rows[1])


def test_one_recording_instead_of_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"X must have shape \(n, samples\)"):
        extractor().transform(tone(500))


def test_array_at_the_rate_of_the_model_is_left_alone() -> None:
    wave = tone(700)
    np.testing.assert_array_equal(samples_of((wave, 16_000)), samples_of(wave))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.zeros((2, 100), np.float32), "one row of float or int16, got float32 of shape"),
        (np.zeros(100, np.uint8), "one row of float or int16, got uint8"),
        (np.zeros(0, np.float32), "it has no samples"),
        (np.array([0, np.nan], np.float32), "not finite"),
        (np.array([0, 1e300]), "not finite"),
        ((np.zeros(100, np.float32), 0), "sample rate must be in"),
        ((np.zeros(100, np.float32), "fast"), r"must have a rate in Hz, got 'fast'"),
        (17, "must be a path, bytes, an array of samples or (array, rate), got int"),
    ],
)
def test_what_is_no_recording_is_refused(value: Any, reason: str) -> None:
    assert reason in reason_of(value)


# --- damaged files ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.1, 0.01])
def test_file_that_is_cut_off_is_refused(kind: str, share: float) -> None:
    rng = np.random.default_rng(0)
    file = encoded((0.1 * rng.standard_normal(60_000)).astype(np.float32), 16_000, kind)
    reason = reason_of(file[: int(share * len(file))])
    assert any(word in reason for word in ("cut off", "damaged", "cannot be decoded"))


@pytest.mark.parametrize("content", [b"this is a letter\n" * 50, b"RIFF" + bytes(90), b"OggS"])
def test_what_is_no_sound_file_is_refused(content: bytes) -> None:
    assert any(word in reason_of(content) for word in ("cut off", "cannot be decoded"))


def test_wav_file_without_samples_is_refused() -> None:
    assert "no samples" in reason_of(encoded(np.zeros(0, np.float32), 16_000))


def test_wav_file_with_an_absurd_rate_is_refused() -> None:
    assert "sample rate must be in [1000, 1000000], got 1" in reason_of(encoded(tone(100), 1))


def test_wav_stream_of_unknown_length_is_read() -> None:
    file = bytearray(encoded(tone(300), 16_000))
    at = file.index(b"data")
    file[4:8] = file[at + 4 : at + 8] = b"\xff" * 4
    assert len(samples_of(bytes(file))) == 300


def test_job_quarantines_what_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    whole = encoded(tone(900), RATE)
    (folder / "good.wav").write_bytes(whole)
    (folder / "cut.wav").write_bytes(whole[:-200])
    (folder / "empty.mp3").write_bytes(b"")
    (folder / "letter.flac").write_text("not sound")
    paths = jobs.collect(folder, modality="audio")
    summary = jobs.extract(paths, tmp_path / "store", extractor())
    assert (summary.computed, summary.total) == (1, 4)
    assert {Path(q.path).name for q in summary.quarantined} == {
        "cut.wav",
        "empty.mp3",
        "letter.flac",
    }


# --- windows ----------------------------------------------------------------------------------


def test_row_of_a_long_recording_is_the_mean_over_its_windows() -> None:
    wave = tone(1_130, hz=7)
    starts = [0, 200, 400, 600, 630]  # the last ends with the recording
    parts = extractor().transform([wave[s : s + 500] for s in starts])
    np.testing.assert_allclose(
        extractor().transform([wave])[0], parts.mean(axis=0), rtol=0, atol=8 * EPS * 3
    )


def test_short_recording_keeps_its_length() -> None:
    assert windows(np.ones(300, np.float32), PLAIN).shape == (1, 300)


def test_very_short_recording_is_filled_with_silence() -> None:
    got = windows(np.ones(3, np.float32), PLAIN)
    assert got.shape == (1, 100)
    assert got.sum() == 3


@given(
    n=st.integers(1, 3_000),
    window=st.integers(100, 700),
    hop=st.integers(50, 700),
    lead=st.integers(0, 50),
    share=st.integers(1, 100),
)
@settings(max_examples=200, deadline=None)
def test_whole_windows_hold_the_recording_and_silence(
    n: int, window: int, hop: int, lead: int, share: int
) -> None:
    hop = min(hop, window)
    least = 1 + share * (window - 1) // 100
    spec = AudioPreprocessing(RATE, window / RATE, hop / RATE, lead=lead / RATE, least=least / RATE)
    samples = np.arange(1, n + 1, dtype=np.float32)
    got = windows(samples, spec).numpy()
    led = np.concatenate([np.zeros(lead, np.float32), samples, np.zeros(4_000, np.float32)])
    held = [i for i in range(1, 80) if lead + n - i * hop >= least]
    expected = [led[i * hop : i * hop + window] for i in [0, *held]]
    np.testing.assert_array_equal(got, np.stack(expected))


def test_row_is_the_same_to_the_bit_whatever_its_neighbours() -> None:
    clips = [tone(n, hz=3) for n in (3, 250, 500, 800, 1_901)]
    together = extractor().transform(clips)
    backwards = extractor(batch_size=2).transform(clips[::-1])[::-1]
    alone = np.concatenate([extractor().transform([clip]) for clip in clips])
    assert together.tobytes() == backwards.tobytes() == alone.tobytes()


def test_hour_of_windows_goes_through_in_several_passes() -> None:
    wave = tone(100_000, hz=3)
    reader = AudioReader(PLAIN)
    cut = reader.tensor(wave, "x")[0]
    expected = Moments()(cut).detach().double().mean(dim=0).numpy()
    got = extractor().transform([wave])[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=64 * EPS * 3)


def test_hours_of_sound_are_not_all_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Room for two of these: the others wait until somebody takes what is ready.
    n, made = 10_000, []
    monkeypatch.setattr(_prepare, "_AHEAD", 2 * 4 * n)
    monkeypatch.setenv("PYFEAT_NUM_THREADS", "2")
    reader = AudioReader(replace(PLAIN, window=10.0, hop=10.0))
    make = reader.tensor

    def tensor(content: Any, name: str) -> Any:
        made.append(name)
        return make(content, name)

    monkeypatch.setattr(reader, "tensor", tensor)
    inputs = [Input(str(i), np.full(n, i, np.float32)) for i in range(20)]
    preparer = _prepare.Preparer(reader, None)
    for taken, p in enumerate(_prepare.prepare_all(preparer, inputs, 16), 1):
        # Two that are held, one that passed beside each of two threads, one that was waited for.
        assert len(made) <= taken + 2 + 2 + 1
        assert p.tensor is not None
        assert p.tensor[0, 0] == taken - 1
    assert len(made) == 20


def test_overlapping_windows_share_memory() -> None:
    got = windows(np.zeros(100_000, np.float32), replace(PLAIN, hop=0.01, least=0.5))
    assert got.numel() > 40 * got.untyped_storage().nbytes() / 4


# --- normalisation ----------------------------------------------------------------------------


def test_unit_has_mean_0_and_variance_1(rng: np.random.Generator) -> None:
    got = normalized((3 + 5 * rng.standard_normal(10_000)).astype(np.float32), "unit")
    assert abs(got.mean(dtype=np.float64)) < 8 * EPS
    assert got.var(dtype=np.float64) == pytest.approx(1, abs=64 * EPS)


def test_volume_raises_to_minus_30_dbfs(rng: np.random.Generator) -> None:
    got = normalized((1e-4 * rng.standard_normal(10_000)).astype(np.float32), "volume")
    power = np.mean(got.astype(np.float64) ** 2)
    assert 10 * np.log10(power) == pytest.approx(-30, abs=1e-4)


def test_volume_leaves_what_is_louder(rng: np.random.Generator) -> None:
    loud = rng.standard_normal(1_000).astype(np.float32)
    assert normalized(loud, "volume") is loud


def test_volume_leaves_silence_silent() -> None:
    assert not normalized(np.zeros(100, np.float32), "volume").any()


def test_store_knows_a_recording_again_under_another_name(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(encoded(tone(900), RATE))
    rows = extractor(store=tmp_path / "store").transform([tmp_path / "a.wav", tmp_path / "b.wav"])
    assert np.array_equal(rows[0], rows[1])
    space = FeatureStore.spaces(tmp_path / "store")[0]
    assert len(FeatureStore(tmp_path / "store", space, mode="r")) == 1


class Counted:
    """A recording that notes when it is read."""

    times: int = 0

    def __init__(self, n: int) -> None:
        self.n = n

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        Counted.times += 1
        return tone(self.n)


def test_recordings_of_many_lengths_do_not_wait_for_the_end(monkeypatch) -> None:
    monkeypatch.setattr(_run, "_HELD", 3_000)
    monkeypatch.setattr(Counted, "times", 0)
    inputs = [Input(f"X[{n}]", Counted(n)) for n in range(200, 400)]
    outcomes = run(inputs, extractor().get_backbone(), None, RunOptions())
    first = next(outcomes)
    assert Counted.times < len(inputs)
    assert sorted(o.position for o in (first, *outcomes)) == list(range(len(inputs)))
