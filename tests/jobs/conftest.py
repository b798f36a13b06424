"""Photos in class folders, and the folder of horrors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pyfeat import FeatureExtractor
from pyfeat.backbones import Tokenization, _load
from pyfeat.backbones._pretrained import Pretrained
from pyfeat.ops import Preprocessing

SMALL = Preprocessing(resize=36, crop=32, interpolation="bilinear")


def pooled_colours() -> FeatureExtractor:
    """Mean colour of each of 64 tiles: a backbone without weights."""
    return FeatureExtractor(
        nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), preprocessing=SMALL, device="cpu"
    )


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Red and blue noise, six images each."""
    rng = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 180
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def horrors(tmp_path: Path) -> Path:
    """Everything a folder of photos should not hold; two of the files are fine."""
    folder = tmp_path / "horrors"
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    (folder / "empty.jpg").write_bytes(b"")
    noise.save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "whole.jpg").unlink()
    (folder / "text.jpg").write_text("this is a letter, not a photo\n" * 20)
    Image.new("RGB", (1, 1), (200, 10, 10)).save(folder / "one_pixel.png")
    strip = rng.integers(0, 256, (10, 20000, 3), dtype=np.uint8)
    Image.fromarray(strip).save(folder / "strip.png")
    (folder / "a.jpg").mkdir()
    # Opens, and gives an input/output error on the first read, for root too.
    (folder / "unreadable.jpg").symlink_to("/proc/self/mem")
    return folder


WORDS = ["good", "bad", "film", "was", "the", "a", "not", "very", "boring", "lovely"]


class MeanOfWords(nn.Module):
    """Embeddings of tokens, averaged over those that the mask counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(len(WORDS) + 2, 16)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        share = mask[:, :, None].float()
        return (self.words(ids) * share).sum(dim=1) / share.sum(dim=1)


def word_tokenizer() -> Any:
    """Return a tokenizer of whole words: padding 0, unknown words 1."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the name of a small backbone of texts, at most 32 words long."""
    spec = Tokenization(word_tokenizer(), max_length=32, pad_id=0, identity="words")

    def load(name: str, _: Any) -> Pretrained:
        return Pretrained(f"words/{name}", "words", "words/mean", MeanOfWords(), spec)

    known = _load.find_source
    monkeypatch.setitem(_load._LOADERS, "words", load)
    monkeypatch.setattr(
        _load,
        "find_source",
        lambda name: ("words", name[6:]) if name.startswith("words/") else known(name),
    )
    _load._load_named.cache_clear()
    yield "words/mean"
    _load._load_named.cache_clear()
