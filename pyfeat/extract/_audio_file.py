"""Audio files decoded and resampled block by block; what is cut off or damaged is refused."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat.errors import InputError

_BLOCK = 2**18  # frames
_RATES = (1_000, 1_000_000)  # Hz; another one would make a small file fill the memory
_UNKNOWN = 2**62  # frames that libsndfile gives a stream without a length


def read_samples(content: bytes, sample_rate: int, name: str) -> NDArray[np.float32]:
    """Return the mono samples of an encoded file at a rate, in [-1, 1].

    Parameters
    ----------
    content : bytes
        Of a wav, flac, ogg or mp3 file, or whatever else libsndfile knows.
    sample_rate : int
        Hz.
    name : str
        For messages.

    Raises
    ------
    ImportError
        If soundfile or soxr is missing.
    InputError
        If it cannot be decoded, is cut off, or lacks frames that its header promises.

    Notes
    -----
    Channels are averaged in float32. Memory: the file, and its samples at the new rate twice.
    """
    soundfile = _package("soundfile")
    if cut := _cut_off(content):
        raise InputError(name, f"it is cut off: {cut}")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            blocks = _Mono(file)
            samples = resample(blocks, file.samplerate, sample_rate, name)
            promised, got = file.frames, blocks.frames
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".")
        raise InputError(name, f"it cannot be decoded: {reason}") from error
    if got < promised < _UNKNOWN and (file.format != "MP3" or _has_xing(content)):
        raise InputError(name, f"it is damaged: {got} of {promised} frames can be decoded")
    return samples


class _Mono:
    """The blocks of an open file, channels averaged, and how many frames they have been."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.frames = 0

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        while len(block := self._file.read(_BLOCK, dtype="float32", always_2d=True)):
            self.frames += len(block)
            yield block.mean(axis=1)


def resample(
    blocks: Iterable[NDArray[np.float32]], rate: float, wanted: int, name: str
) -> NDArray[np.float32]:
    """Return blocks of mono samples as one array at another rate.

    Raises
    ------
    ImportError
        If soxr is missing.
    InputError
        If the rate is no rate of a recording.
    """
    if not _RATES[0] <= rate <= _RATES[1]:
        raise InputError(name, f"sample rate must be in [{_RATES[0]}, {_RATES[1]}], got {rate:g}")
    if rate == wanted:
        parts = list(blocks)
    else:
        stream = _package("soxr").ResampleStream(rate, wanted, 1, dtype="float32")
        parts = [stream.resample_chunk(block) for block in blocks]
        parts.append(stream.resample_chunk(np.empty(0, np.float32), last=True))
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _package(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise ImportError(f'audio needs {missing}: pip install "pyfeat[audio]"') from error


def _cut_off(content: bytes) -> str:
    """Return what is missing at the end of a wav or ogg file, which libsndfile does not tell."""
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        return _wav_cut_off(content)
    if content[:4] == b"OggS":
        return _ogg_cut_off(content)
    return ""


def _wav_cut_off(content: bytes) -> str:
    at = 12
    while at + 8 <= len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        if content[at : at + 4] == b"data":
            there = len(content) - at - 8
            # A stream of unknown length has all bits set.
            return f"{there} of {size} bytes" if there < size < 0xFFFFFFFF else ""
        at += 8 + size + size % 2
    return "it has no data"


def _ogg_cut_off(content: bytes) -> str:
    # The last page: 27 bytes, of which the sixth holds flags and the last the number of segments,
    # then their sizes, then the segments (RFC 3533, section 6).
    page = content[content.rfind(b"OggS") :]
    sizes = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) <= 26 or len(page) < 27 + page[26] + sum(sizes):
        return "its last page is not whole"
    return "" if page[5] & 4 else "it lacks its last page"


def _has_xing(content: bytes) -> bool:
    """Return whether an mp3 file says how many frames it has; if not, libsndfile estimates it."""
    start = 0
    if content[:3] == b"ID3":  # ID3v2: four times 7 bits
        start = 10 + sum(b << 7 * (3 - i) for i, b in enumerate(content[6:10]))
    head = content[start : start + 4096]
    return b"Xing" in head or b"Info" in head
