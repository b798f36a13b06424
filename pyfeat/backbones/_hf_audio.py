"""Models of transformers that take recordings: wav2vec 2.0 and its kin, Whisper's encoder, AST."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pyfeat.backbones._hf_files import (
    architecture_of,
    check_complete,
    import_transformers,
    load_model,
    place_of,
    read_json,
)
from pyfeat.backbones._hf_spectrogram import ast, whisper
from pyfeat.backbones._modality import AudioPreprocessing, Preparation
from pyfeat.backbones._pretrained import Pretrained

_SAMPLES = (
    "data2vec-audio",
    "hubert",
    "sew",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    "wav2vec2-conformer",
    "wavlm",
)
_SPECTROGRAMS: dict[str, Any] = {"audio-spectrogram-transformer": ast, "whisper": whisper}
# Their spectrograms are not written here.
_OTHERS = ("clap", "speech_to_text", "wav2vec2-bert")
AUDIO_TYPES = (*_SAMPLES, *_SPECTROGRAMS, *_OTHERS)

# Attention over a window costs its length squared; the models were trained on clips of about it.
_WINDOW = 10.0
_SHORTEST = 0.1


class _Rows(nn.Module):
    """Samples to the mean of the states over time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: Tensor) -> Tensor:
        """Return (n, d)."""
        states: Tensor = self.model(samples).last_hidden_state
        return states.mean(dim=1)


def load_hf_audio(name: str, preprocessing: Preparation | None) -> Pretrained:
    """Return a model of transformers that takes recordings.

    Parameters
    ----------
    name : str
        A folder, or a repository of the Hugging Face hub.
    preprocessing : AudioPreprocessing or None
        None means the rate and the normalisation of `preprocessor_config.json`, and windows one
        after the other: of 10 seconds, or as long as the spectrogram that the model takes.

    Raises
    ------
    ImportError
        If transformers is missing.
    ValueError
        If the model takes spectrograms of another kind, needs code from the hub or lacks weights;
        or if `preprocessing` is not one of audio that fits it.
    OSError
        If files can neither be read from the cache nor downloaded.

    Notes
    -----
    The row is the mean over time of the last states, averaged over the windows of a recording; of
    AST its pooled output. Recordings shorter than a window keep their length, since silence at the
    end would change their row: a batch holds recordings of one length only. The extractor of the
    model and its batches with padding are not used. Whisper and AST take spectrograms of one
    length, which are filled up as they were in training; states of Whisper that the recording does
    not reach are left out of the mean.
    """
    place = place_of(name)
    full_name = f"hf/{place}"
    transformers = import_transformers(full_name)
    settings = read_json(place, "config.json") or {}
    kind = settings.get("model_type")
    if kind in _SPECTROGRAMS:
        own = _own(place, full_name)
        model, rows, usual, said = _SPECTROGRAMS[kind](transformers, place, full_name, own)
        chosen = _checked(preprocessing or usual, full_name)
        if chosen.sample_rate != usual.sample_rate or chosen.window > usual.window:
            rule = f"have sample_rate {usual.sample_rate} and windows of {usual.window:g} s at most"
            raise ValueError(f"preprocessing of {full_name} must {rule}, got {chosen}")
        return Pretrained(full_name, "hf", architecture_of(model, place, said), rows, chosen)
    if kind not in _SAMPLES:
        known = [*_SAMPLES, *_SPECTROGRAMS]
        hint = "for another one pass an nn.Module on samples, and preprocessing=AudioPreprocessing"
        raise ValueError(f"{full_name} must be one of {known}, got {kind!r}: {hint}(...)")
    chosen = _checked(preprocessing or _preprocessing_of(place, full_name, settings), full_name)
    model, missing = load_model(transformers.AutoModel, place, full_name)
    # Only training reads it; checkpoints of some models lack it.
    check_complete({key for key in missing if key != "masked_spec_embed"}, full_name)
    return Pretrained(full_name, "hf", architecture_of(model, place), _Rows(model), chosen)


def _checked(preprocessing: Preparation, name: str) -> AudioPreprocessing:
    if not isinstance(preprocessing, AudioPreprocessing):
        got = type(preprocessing).__name__
        raise ValueError(f"preprocessing must be AudioPreprocessing for {name}, got {got}")
    return preprocessing


def _own(place: str, name: str) -> dict[str, Any]:
    """Return the settings of the feature extractor of a model."""
    own: dict[str, Any] | None = read_json(place, "preprocessor_config.json")
    if own is None:
        rule = "have a preprocessor_config.json"
        raise ValueError(f"{name} must {rule}, got none")
    return own


def _preprocessing_of(place: str, name: str, settings: dict[str, Any]) -> AudioPreprocessing:
    """Return what the feature extractor of a model does to one recording, in our words."""
    own = read_json(place, "preprocessor_config.json")
    if own is None:
        rule = "have a preprocessor_config.json, or be given preprocessing="
        raise ValueError(f"{name} must {rule}, got neither")
    rate = int(own.get("sampling_rate", 16_000))
    field = _field(settings.get("conv_kernel", ()), settings.get("conv_stride", ()))
    return AudioPreprocessing(
        sample_rate=rate,
        window=_WINDOW,
        hop=_WINDOW,
        normalize="unit" if own.get("do_normalize", True) else "none",
        shortest=max(_SHORTEST, field / rate),
    )


def _field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many samples one state is made of."""
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field
