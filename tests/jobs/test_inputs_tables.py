"""Cells of parquet and arrow files, and data sets of Hugging Face, as inputs."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfeat.jobs import _inputs_arrow, collect, collect_inputs, extract, fit
from pyfeat.jobs._labels import read_labels
from tests.jobs.files import contents, keys, png
from tests.jobs.test_jobs import pooled_colours

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PHOTOS = [png(i) for i in range(6)]


def write_arrow(path: Path, table: Any, *, stream: bool = True) -> Path:
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table, 2)
    return path


def structs(photos: list[bytes]) -> list[dict[str, Any]]:
    return [{"bytes": photo, "path": f"{i}.png"} for i, photo in enumerate(photos)]


@pytest.mark.parametrize(
    "kind", ["binary", "large_binary", "binary_view", "list<uint8>", "dictionary", "struct"]
)
def test_cells_of_bytes_are_images(tmp_path: Path, kind: str) -> None:
    types = {
        "binary": pa.binary(),
        "large_binary": pa.large_binary(),
        "binary_view": pa.binary_view(),
        "list<uint8>": pa.list_(pa.uint8()),
        "dictionary": pa.dictionary(pa.int32(), pa.binary()),
        "struct": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    }
    values = structs(PHOTOS) if kind == "struct" else PHOTOS
    if kind == "list<uint8>":
        values = [list(photo) for photo in PHOTOS]
    column = pa.array(values, types["binary" if kind == "dictionary" else kind])
    column = column.dictionary_encode() if kind == "dictionary" else column
    path = write_arrow(tmp_path / "t.arrow", pa.table({"id": range(6), "photo": column}))
    found = collect_inputs(path, "image")
    assert [i.name for i in found] == [f"{path}#{i}" for i in range(1, 7)]
    assert contents(found) == PHOTOS


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_every_kind_of_file_gives_its_cells(tmp_path: Path, kind: str) -> None:
    table = pa.table({"image": structs(PHOTOS), "label": list("aabbcc")})
    if kind == "parquet":
        pq.write_table(table, path := tmp_path / "t.parquet", row_group_size=4)
    else:
        path = write_arrow(tmp_path / "t.arrow", table, stream=kind == "stream")
    assert contents(collect_inputs(path, "image")) == PHOTOS


def test_column_is_path_then_that_of_the_modality_then_the_first_of_files(tmp_path: Path) -> None:
    table = pa.table({"n": [1], "thumb": [b"thumb"], "image": [b"image"], "path": ["a.png"]})
    for columns, first in [
        (["n", "thumb", "image", "path"], None),
        (["n", "thumb", "image"], b"image"),
        (["n", "thumb"], b"thumb"),
    ]:
        pq.write_table(table.select(columns), tmp_path / "t.parquet")
        found = collect_inputs(tmp_path / "t.parquet", "image")[0]
        assert (None if isinstance(found.value, str) else found.value.read()) == first


def test_column_is_chosen_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), tmp_path / "t.parquet")
    assert contents(collect_inputs(tmp_path / "t.parquet", "image", "b")) == [b"2"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("c", r"column must be one of \['a', 'b'\], got 'c'"),
        ("a", r"column must hold bytes, a struct of bytes and path, or text, got 'a' of int64"),
    ],
)
def test_column_that_holds_no_inputs_is_refused(tmp_path: Path, column: str, message: str) -> None:
    pq.write_table(pa.table({"a": [1], "b": [b"2"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=message):
        collect_inputs(tmp_path / "t.parquet", "image", column)


def test_table_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"at least one image, got .*: the table .* has no rows"):
        collect_inputs(tmp_path / "t.parquet", "image")


def test_null_and_empty_cells_are_in_quarantine(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(1), None, b"", png(2)]}), tmp_path / "t.parquet")
    s = extract(tmp_path / "t.parquet", tmp_path / "feats", pooled_colours())
    assert s.computed == 2
    assert [(q.path[-2:], q.reason) for q in s.quarantined] == [
        ("#2", "it is null"),
        ("#3", "it is empty"),
    ]


def test_struct_without_bytes_leads_to_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    cells = [{"bytes": None, "path": path} for path in ("a.png", str(tmp_path / "a.png"), "no.png")]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "t.parquet")
    assert contents(collect_inputs(tmp_path / "t.parquet", "image")) == [
        png(1),
        png(1),
        "there is no such file",
    ]


def test_cells_are_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_inputs_arrow, "_STEP", 2**12)
    cells = [b"%d" % i * 300 for i in range(500)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet", row_group_size=64)
    found = collect_inputs(tmp_path / "t.parquet", "image")
    order = np.random.default_rng(0).permutation(500)
    assert contents(found.take(order)) == [cells[i] for i in order]


def test_damaged_group_of_rows_costs_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    cells = [np.random.default_rng(i).bytes(1000) for i in range(12)]
    pq.write_table(pa.table({"image": cells}), path, row_group_size=4, use_dictionary=False)
    about = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[about.data_page_offset : about.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(content)
    found = contents(collect_inputs(path, "image"))
    assert found[:4] + found[8:] == cells[:4] + cells[8:]
    assert all(str(reason).startswith("its table is cut off or damaged") for reason in found[4:8])


def test_cut_arrow_file_gives_the_batches_before_the_cut(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "t.arrow", pa.table({"image": PHOTOS}))
    content = path.read_bytes()
    path.write_bytes(content[: int(0.9 * len(content))])
    found = contents(collect_inputs(path, "image"))
    assert found[:-1] == PHOTOS[:4]
    assert str(found[-1]).startswith("it is cut off or damaged")


def test_offsets_that_lead_out_of_an_arrow_file_are_not_followed(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "t.arrow", pa.table({"image": PHOTOS}))
    content = bytearray(path.read_bytes())
    ends = np.cumsum([0, len(PHOTOS[0]), len(PHOTOS[1])]).astype(np.int32).tobytes()
    content[content.index(ends) + 6] ^= 0x40  # the end of the first image, 4 MiB further
    path.write_bytes(content)
    found = contents(collect_inputs(path, "image"))
    assert found[2:] == PHOTOS[2:]
    assert all(str(reason).startswith("it cannot be read: ArrowInvalid") for reason in found[:2])


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_file_of_another_kind_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"t.{suffix}").write_bytes(b"this is a letter" * 10)
    with pytest.raises(ValueError, match=f"must be an? {suffix} file"):
        collect_inputs(tmp_path / f"t.{suffix}", "image")


def test_row_that_is_gone_when_its_turn_comes_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": PHOTOS}), path)
    found = collect_inputs(path, "image")
    pq.write_table(pa.table({"image": PHOTOS[:2]}), path)
    assert contents(found)[2:] == ["its source ends before it"] * 4


def test_rows_of_cells_are_those_of_files(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(PHOTOS[1])
    pq.write_table(pa.table({"image": structs(PHOTOS)}), tmp_path / "t.parquet")
    extract(tmp_path / "one.png", tmp_path / "feats", pooled_colours())
    s = extract(tmp_path / "t.parquet", tmp_path / "feats", pooled_colours())
    assert (s.computed, s.stored) == (5, 1)
    names = keys(tmp_path / "feats")
    assert names[str(tmp_path / "one.png")] == names[f"{tmp_path}/t.parquet#2"]


def test_cells_have_no_path_of_their_own(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": PHOTOS}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"files with a path, got '.*#1'"):
        collect(tmp_path / "t.parquet")


def test_table_of_inputs_labels_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": PHOTOS, "label": [*"ababa", None]}), path)
    extract(path, tmp_path / "feats", pooled_colours())
    s = fit(tmp_path / "feats", path, tmp_path / "m.safetensors", cv=0)
    assert (s.classes, s.unlabelled) == ({"a": 3, "b": 2}, 1)


def test_table_of_texts_labels_its_rows(tmp_path: Path, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,label\ngood,x\nbad,y\ngood,y\n")
    extract(path, tmp_path / "feats", words)
    s = fit(tmp_path / "feats", path, tmp_path / "m.safetensors", cv=0)
    assert s.classes == {"x": 1, "y": 2}


def recording(seconds: float) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.zeros(int(seconds * 16000), np.int16).tobytes())
    return content.getvalue()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A data set of photos, recordings, texts and labels, in two files of arrow."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    kinds = datasets.Features(
        {
            "photo": datasets.Image(),
            # How `Audio` is stored; making one needs torchcodec.
            "sound": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    columns = {
        "photo": structs(PHOTOS),
        "sound": [{"bytes": recording(0.1 * i), "path": None} for i in range(6)],
        "text": [f"text {i}" for i in range(6)],
        "label": [0, 1] * 3,
    }
    table = datasets.Dataset.from_dict(columns, features=kinds)
    table.save_to_disk(str(tmp_path / "set"), num_shards=2)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "sets"))
    return tmp_path


def test_data_set_on_disk_gives_its_images(saved: Path) -> None:
    found = collect_inputs(saved / "set", "image")
    assert [i.name for i in found] == [f"{saved}/set#{i}" for i in range(1, 7)]
    assert contents(found) == PHOTOS


def test_data_set_on_disk_gives_its_recordings_and_texts(saved: Path) -> None:
    found = contents(collect_inputs(saved / "set", "audio", "sound"))
    assert found == [recording(0.1 * i) for i in range(6)]
    assert contents(collect_inputs(saved / "set", "text"))[5] == b"text 5"


def test_splits_of_a_data_set_have_their_own_names(saved: Path) -> None:
    found = collect_inputs(saved / "sets", "image")
    assert [found[0].name, found[11].name] == [f"{saved}/sets/train#1", f"{saved}/sets/test#6"]


def test_labels_of_a_data_set_are_the_names_of_its_classes(saved: Path) -> None:
    assert list(read_labels(saved / "sets").items())[5:7] == [
        (f"{saved}/sets/train#6", "dog"),
        (f"{saved}/sets/test#1", "cat"),
    ]


def test_data_set_labels_its_rows(saved: Path) -> None:
    extract(saved / "set", saved / "feats", pooled_colours())
    s = fit(saved / "feats", saved / "set", saved / "m.safetensors", cv=0)
    assert s.classes == {"cat": 3, "dog": 3}


def test_folder_of_hugging_face_s_cache_is_a_data_set(saved: Path) -> None:
    (saved / "set" / "state.json").unlink()
    assert contents(collect_inputs(saved / "set", "image")) == PHOTOS


def test_data_set_chosen_by_indices_is_refused(saved: Path) -> None:
    state = saved / "set" / "state.json"
    state.write_text(state.read_text().replace("{", '{"_indices_files": [{"filename": "i"}],', 1))
    with pytest.raises(ValueError, match="must be saved without indices"):
        collect_inputs(saved / "set", "image")
