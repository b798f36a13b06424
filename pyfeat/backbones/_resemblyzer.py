"""Resemblyzer's speaker encoder, with the weights that come in its Python package: no download.

The network, its spectrogram and its windows are written here: the package itself, which needs
librosa, numba and a voice detector, is never imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, load, nn

from pyfeat.backbones._mel import MelSpectrogram
from pyfeat.backbones._modality import AudioPreprocessing
from pyfeat.backbones._pretrained import Pretrained, explain_missing_weights

RESEMBLYZER = "resemblyzer"

_RATE, _FRAME, _HOP, _MELS = 16_000, 400, 160, 40  # frames of 25 ms, every 10 ms
_FRAMES, _STEP = 160, 77  # frames of a window, and between the starts of two: 1.3 a second
_COVERAGE = 0.75  # least share of a window, but the first, that the recording reaches into
_WIDTH, _LAYERS = 256, 3
# Frames are centred on every 160th sample: those of a window reach half a frame beyond each side,
# into silence at both ends of the recording.
PREPROCESSING = AudioPreprocessing(
    sample_rate=_RATE,
    window=((_FRAMES - 1) * _HOP + _FRAME) / _RATE,
    hop=_STEP * _HOP / _RATE,
    normalize="volume",
    lead=_FRAME / 2 / _RATE,
    least=(_COVERAGE * _FRAMES * _HOP + _FRAME / 2) / _RATE,
)


class SpeakerEncoder(nn.Module):
    """Mel spectrogram, three LSTM layers, and a linear layer on the last state.

    References
    ----------
    Wan, Wang, Papir, Lopez Moreno, "Generalized end-to-end loss for speaker verification",
    ICASSP 2018.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mel = MelSpectrogram(_RATE, _FRAME, _HOP, _MELS)
        self.lstm = nn.LSTM(_MELS, _WIDTH, _LAYERS, batch_first=True)
        self.linear = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, samples: Tensor) -> Tensor:
        """Return (n, 256), not negative, of norm 1, from windows (n, samples)."""
        _, (hidden, _) = self.lstm(self.mel(samples))
        return nn.functional.normalize(self.linear(hidden[-1]).relu(), dim=1)


def load_resemblyzer(name: str, preprocessing: AudioPreprocessing | None) -> Pretrained:
    """Return the speaker encoder.

    Parameters
    ----------
    name : str
        "resemblyzer".
    preprocessing : AudioPreprocessing or None
        None means the one that belongs to the weights. Other windows lose the equality with the
        package.

    Raises
    ------
    ImportError
        If the package with the weights is missing.
    ValueError
        If `preprocessing` is of another sample rate, or not one of audio.
    OSError
        If the weights cannot be read.

    Notes
    -----
    A row equals `VoiceEncoder.embed_utterance` of the package on the resampled recording, raised
    to -30 dBFS. The package's `preprocess_wav` also cuts long silences out, by a voice detector;
    that is not done here.
    """
    spec = find_spec("resemblyzer")
    if spec is None or not spec.submodule_search_locations:
        # Its own requirements are for code that is not run here.
        hint = "pip install --no-deps resemblyzer"
        raise ImportError(f"{name} needs the package resemblyzer, for its weights: {hint}")
    chosen = preprocessing or PREPROCESSING
    if not isinstance(chosen, AudioPreprocessing) or chosen.sample_rate != _RATE:
        rule = f"AudioPreprocessing with sample_rate={_RATE} for {name}"
        raise ValueError(f"preprocessing must be {rule}, got {chosen!r}")
    path = Path(next(iter(spec.submodule_search_locations)), "pretrained.pt")
    with explain_missing_weights(name, "the package resemblyzer", str(path)):
        state: dict[str, Any] = load(path, map_location="cpu", weights_only=True)["model_state"]
    module = SpeakerEncoder()
    # The rest belongs to the loss it was trained with.
    used = {key: value for key, value in state.items() if not key.startswith("similarity_")}
    module.load_state_dict(used, strict=True)
    return Pretrained(name, "pyfeat", "pyfeat/speaker_encoder", module, chosen, l2=True)
