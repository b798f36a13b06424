"""Models of transformers that take spectrograms: the encoder of Whisper, and AST.

The spectrogram is a part of the network here, so that every engine has it and samples go in. Its
settings are those of `preprocessor_config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyfeat.backbones._hf_files import check_complete, load_model
from pyfeat.backbones._mel import KaldiSpectrogram, MelSpectrogram
from pyfeat.backbones._modality import AudioPreprocessing

_RATE = 16_000
_SHORTEST = 0.1
_WHISPER = {
    "sampling_rate": _RATE,
    "feature_size": 80,
    "n_fft": 400,
    "hop_length": 160,
    "chunk_length": 30,
    "do_normalize": False,
    "dither": 0.0,
    "padding_value": 0.0,
}
_AST: dict[str, Any] = {
    "sampling_rate": _RATE,
    "num_mel_bins": 128,
    "max_length": 1024,
    "do_normalize": True,
    "mean": -4.2677393,
    "std": 4.5689974,
}
_FRAME, _HOP = 400, 160  # of AST, 25 ms and 10 ms
_FLOOR, _KALDI_FLOOR = 1e-10, 1.192092955078125e-07  # of the power, before the logarithm
_RANGE = 8.0  # decades below the loudest band


class WhisperRows(nn.Module):
    """Samples to the mean of Whisper's states, over those that the recording reaches.

    Parameters
    ----------
    encoder : nn.Module
        Takes log-mel spectrograms (n, mels, 2 l), returns states (n, l, d).
    said : mapping
        Settings of the feature extractor.
    """

    def __init__(self, encoder: Any, said: Mapping[str, Any]) -> None:
        super().__init__()
        rate, hop = said["sampling_rate"], said["hop_length"]
        self.encoder = encoder
        self.mel = MelSpectrogram(rate, said["n_fft"], hop, said["feature_size"])
        self._samples = said["chunk_length"] * rate
        self._side = said["n_fft"] // 2
        self._stride = 2 * hop  # samples from one state to the next

    def heard(self, samples: Tensor) -> Tensor:
        """Return (n, l): 1 for states that begin before the end of the recording."""
        return self._filled(torch.ones_like(samples))[:, :: self._stride]

    def forward(self, samples: Tensor) -> Tensor:
        """Return (n, d)."""
        around = nn.functional.pad(
            self._filled(samples)[:, None], (self._side, self._side), mode="reflect"
        )
        power = self.mel(around[:, 0])[:, :-1]  # (n, 2 l, mels)
        logs = power.clamp(min=_FLOOR).log10()
        logs = torch.maximum(logs, logs.amax(dim=(1, 2), keepdim=True) - _RANGE)
        states = self.encoder((logs.transpose(1, 2) + 4) / 4).last_hidden_state
        share = self.heard(samples)[:, :, None].to(states.dtype)
        rows: Tensor = (states * share).sum(dim=1) / share.sum(dim=1)
        return rows

    def _filled(self, samples: Tensor) -> Tensor:
        silence = samples.new_zeros(len(samples), self._samples)
        return torch.cat([samples, silence], dim=1)[:, : self._samples]


class AstRows(nn.Module):
    """Samples to the pooled output of an audio spectrogram transformer.

    Parameters
    ----------
    model : nn.Module
        Takes spectrograms (n, frames, mels).
    said : mapping
        Settings of the feature extractor.
    """

    num_prefix_tokens = 2  # the class token, and the one of distillation

    def __init__(self, model: Any, said: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.mel = KaldiSpectrogram(said["sampling_rate"], _FRAME, _HOP, said["num_mel_bins"])
        self._frames = said["max_length"]
        self._mean, self._scale = said["mean"], 2 * said["std"]
        self._normalize = said["do_normalize"]

    def forward(self, samples: Tensor) -> Tensor:
        """Return (n, d)."""
        logs = self.mel(samples).clamp(min=_KALDI_FLOOR).log()  # (n, frames, mels)
        rest = logs.new_zeros(len(logs), self._frames, logs.shape[2])
        logs = torch.cat([logs, rest], dim=1)[:, : self._frames]
        if self._normalize:
            logs = (logs - self._mean) / self._scale
        rows: Tensor = self.model(logs).pooler_output
        return rows


def whisper(
    transformers: Any, place: str, name: str, own: Mapping[str, Any]
) -> tuple[Any, nn.Module, AudioPreprocessing, dict[str, Any]]:
    """Return the model, its rows, what recordings go through, and the settings of its spectrogram.

    Raises
    ------
    ValueError
        If its spectrogram is another than we compute, or weights are missing.
    """
    said = _said(own, _WHISPER, name)
    model, missing = load_model(transformers.AutoModel, place, name)
    check_complete({key for key in missing if key.startswith("encoder.")}, name)
    encoder = model.get_encoder()
    states = said["chunk_length"] * said["sampling_rate"] // (2 * said["hop_length"])
    if states != encoder.config.max_source_positions:
        rule = f"{encoder.config.max_source_positions} states of a window"
        raise ValueError(f"preprocessor_config.json of {name} must make {rule}, got {states}")
    if said["dither"] or said["padding_value"]:
        raise ValueError(f"{name} must add no noise and fill up with zeros, got {said}")
    preprocessing = AudioPreprocessing(
        said["sampling_rate"],
        window=said["chunk_length"],
        hop=said["chunk_length"],
        normalize="unit" if said["do_normalize"] else "none",
        shortest=_SHORTEST,
    )
    return encoder, WhisperRows(encoder, said), preprocessing, said


def ast(
    transformers: Any, place: str, name: str, own: Mapping[str, Any]
) -> tuple[Any, nn.Module, AudioPreprocessing, dict[str, Any]]:
    """Return what `whisper` does."""
    said = _said(own, _AST, name)
    model, missing = load_model(transformers.AutoModel, place, name)
    check_complete(missing, name)
    window = (_FRAME + (said["max_length"] - 1) * _HOP) / said["sampling_rate"]
    preprocessing = AudioPreprocessing(
        said["sampling_rate"], window=window, hop=window, shortest=_SHORTEST
    )
    return model, AstRows(model, said), preprocessing, said


def _said(own: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> dict[str, Any]:
    said = {key: own.get(key, value) for key, value in defaults.items()}
    if said["sampling_rate"] != _RATE:  # the mel scales end at 8 kHz
        rule = f"have sampling_rate {_RATE}"
        raise ValueError(f"preprocessor_config.json of {name} must {rule}, got {said}")
    return said
