"""Jobs on texts: cells, lines and files, each with its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyfeat import FeatureExtractor
from pyfeat.errors import InputError
from pyfeat.jobs import collect_inputs, collect_texts, extract, fit, modality_of_space, predict
from pyfeat.store import FeatureStore, read_items
from tests.jobs.conftest import MeanOfWords, word_tokenizer

CELLS = ["good film", "bad film", "good film", "the film was not bad", "very boring"]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    lines = [f"{'neg' if 'bad' in c else 'pos'},{c}" for c in CELLS]
    path.write_text("\n".join(["label,text", *lines]) + "\n")
    return path


def values(path: object, **settings: str) -> list[str]:
    return [str(item.value) for item in collect_texts(str(path), **settings)]


def test_cells_are_texts_with_the_number_of_their_row(reviews: Path) -> None:
    found = collect_texts(reviews, column="text")
    assert [item.value for item in found] == CELLS
    assert [item.name for item in found] == [f"{reviews}#{i}" for i in range(1, 6)]


def test_column_is_text_by_default_or_else_the_first(reviews: Path, tmp_path: Path) -> None:
    assert values(reviews) == CELLS
    other = tmp_path / "other.tsv"
    other.write_text("a\tb\none\ttwo\n")
    assert values(other) == ["one"]


def test_cells_with_commas_quotes_and_new_lines_are_whole(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('text,n\n"good, ""very"" good",1\n"two\nlines",2\n')
    assert values(table) == ['good, "very" good', "two\nlines"]
    assert [item.name[-2:] for item in collect_texts(table)] == ["#1", "#2"]


def test_parquet_column_is_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [1, 2], "text": ["good", None]}), tmp_path / "t.parquet")
    good, null = collect_texts(tmp_path / "t.parquet")
    assert good.value.read() == b"good"
    with pytest.raises(InputError, match="it is null"):
        null.value.read()


def test_lines_of_a_list_are_texts_with_their_number(tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes("\ufeffgood film\r\n\n  bad film  \n".encode())
    found = collect_texts(file)
    assert [(item.name, item.value) for item in found] == [
        (f"{file}#1", "good film"),
        (f"{file}#3", "bad film"),
    ]


def test_files_of_a_folder_are_texts(tmp_path: Path) -> None:
    (tmp_path / "neg").mkdir()
    for name in ("b.txt", "a.txt", "neg/c.txt", "d.jpg"):
        (tmp_path / name).write_text("good\nfilm")
    found = collect_texts(tmp_path)
    assert [item.name for item in found] == [
        str(tmp_path / name) for name in ("a.txt", "b.txt", "neg/c.txt")
    ]
    assert [item.value for item in found] == [Path(item.name) for item in found]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("good")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "top" / "round").symlink_to(tmp_path / "top")
    assert [i.name for i in collect_texts(tmp_path / "top")] == [str(tmp_path / "top/link/a.txt")]


def test_another_file_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "letter.md").write_text("good\nfilm")
    assert [item.value for item in collect_texts(tmp_path / "letter.md")] == [
        tmp_path / "letter.md"
    ]


def test_glob_gives_what_each_match_gives(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_text("three\n")
    assert values(tmp_path / "*.txt") == ["one", "two", "three"]


def test_file_given_twice_is_read_once(reviews: Path) -> None:
    assert len(collect_texts([reviews, reviews])) == len(CELLS)


@pytest.mark.parametrize(
    ("given", "column", "message"),
    [
        ("nosuch.csv", None, "inputs must exist, got .*nosuch.csv': no such file or folder"),
        ("nosuch*.csv", None, "inputs must match something, got the glob"),
        ("empty", None, "inputs must name at least one text, got"),
        ("reviews.csv", "nosuch", r"column must be one of \['label', 'text'\], got 'nosuch'"),
        ("empty", "text", r"column must be given with a table \(.csv ...\), got 'text' without"),
    ],
)
def test_what_names_no_texts_is_refused(
    reviews: Path, tmp_path: Path, given: str, column: str | None, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        collect_texts(tmp_path / given, column=column)


def test_images_are_still_paths(class_folders: Path) -> None:
    found = collect_inputs(class_folders, "image")
    assert len(found) == 12
    assert all(item.value == item.name for item in found)
    assert collect_inputs(found, "text") is found


def test_equal_texts_have_one_row_and_every_name(reviews: Path, tmp_path: Path, words: str) -> None:
    s = extract(reviews, tmp_path / "feats", words, column="text")
    assert (s.total, s.computed, s.stored, s.quarantined) == (5, 4, 1, [])
    (space,) = FeatureStore.spaces(tmp_path / "feats")
    items = {i.name: i.key for i in read_items(tmp_path / "feats", space)}
    assert set(items) == {f"{reviews}#{i}" for i in range(1, 6)}
    assert items[f"{reviews}#1"] == items[f"{reviews}#3"]
    with FeatureStore(tmp_path / "feats", space, mode="r") as store:
        assert len(store) == 4


def test_rows_are_those_of_the_words(reviews: Path, tmp_path: Path, words: str) -> None:
    s = extract(reviews, tmp_path / "feats", words)
    assert (s.modality, s.engine, s.precision, s.choice) == ("text", "torch", "fp32", None)
    (space,) = FeatureStore.spaces(tmp_path / "feats")
    assert modality_of_space(space) == "text"
    keys = {i.name: i.key for i in read_items(tmp_path / "feats", space)}
    with FeatureStore(tmp_path / "feats", space, mode="r") as store:
        rows = store.get([keys[f"{reviews}#{i}"] for i in range(1, 6)])
    tokenizer, weight = word_tokenizer(), MeanOfWords().words.weight.detach()
    want = [weight[tokenizer.encode(cell).ids].mean(dim=0).numpy() for cell in CELLS]
    # at most 32 terms, summed in float32 in another order
    assert np.allclose(rows, want, rtol=0, atol=32 * np.finfo(np.float32).eps * 4)


def test_second_job_computes_nothing(reviews: Path, tmp_path: Path, words: str) -> None:
    extract(reviews, tmp_path / "feats", words)
    again = extract(reviews, tmp_path / "feats", words)
    assert (again.computed, again.stored) == (0, 5)


def test_long_texts_are_cut_and_counted(tmp_path: Path, words: str) -> None:
    (tmp_path / "t.txt").write_text("good film\n" + "bad " * 33 + "\n" + "bad " * 32 + "\n")
    s = extract(tmp_path / "t.txt", tmp_path / "feats", words)
    assert (s.computed, s.truncated) == (3, 1)
    assert extract(tmp_path / "t.txt", tmp_path / "feats", words).truncated == 0


def test_cells_that_are_no_texts_are_in_quarantine(tmp_path: Path, words: str) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b"text,n\ngood,1\n,2\ncaf\xe9,3\n")
    s = extract(table, tmp_path / "feats", words)
    assert s.computed == 1
    assert [(q.path, q.reason.split(":")[0]) for q in s.quarantined] == [
        (f"{table}#2", "it is empty"),
        (f"{table}#3", "it is no text"),
    ]


def test_lone_surrogates_are_no_text(words: str) -> None:
    extractor = FeatureExtractor(words, on_error="nan", store=None)
    rows = extractor.transform(["good", "\ud800"])
    assert np.isfinite(rows[0]).all()
    assert np.isnan(rows[1]).all()


def test_model_of_texts_labels_cells(reviews: Path, tmp_path: Path, words: str) -> None:
    store, model = tmp_path / "feats", tmp_path / "model.safetensors"
    extract(reviews, store, words)
    labels = tmp_path / "labels.csv"
    names = [f"{reviews}#{i},{'neg' if 'bad' in c else 'pos'}" for i, c in enumerate(CELLS, 1)]
    labels.write_text("\n".join(["path,label", *names]) + "\n")
    fit(store, labels, model, cv=0)
    found = predict(model, reviews, store=store)
    assert found.extraction.computed == 0
    assert [p.path for p in found.predictions] == [f"{reviews}#{i}" for i in range(1, 6)]
    by_text = dict(zip(CELLS, [p.label for p in found.predictions], strict=True))
    assert by_text["good film"] == "pos"
    assert by_text["the film was not bad"] == "neg"


def test_fidelity_of_a_job_of_texts(reviews: Path, tmp_path: Path, words: str) -> None:
    extractor = FeatureExtractor(words, precision="bf16")
    s = extract(reviews, tmp_path / "feats", extractor, fidelity=True)
    assert s.fidelity is not None
    assert s.fidelity.sample == len(CELLS)
    assert (s.engine, s.precision, s.choice) == ("torch", "bf16", None)
    assert s.to_dict()["fidelity"]["measured"][0]["precision"] == "bf16"


def test_choice_of_a_job_is_told_and_kept(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyfeat.extract import _choice
    from pyfeat.ops import Preprocessing

    extractor = FeatureExtractor(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Flatten()),
        engine="torch",
        precision="auto",
        min_cosine=0.9,
        device="cpu",
        preprocessing=Preprocessing(resize=36, crop=32),
    )
    first = extract(class_folders, tmp_path / "feats", extractor)
    assert first.fidelity is not None
    assert first.choice == first.fidelity.reason()
    monkeypatch.setattr(_choice, "_made", type(_choice._made)())  # as in another process
    again = extract(class_folders, tmp_path / "feats", extractor)
    assert (again.engine, again.precision) == (first.engine, first.precision)
    assert again.choice == f"torch {first.precision}: what was chosen for the store before"
    assert (again.computed, again.fidelity) == (0, None)
