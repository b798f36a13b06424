"""Inputs found again by the names that a store lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyfeat.jobs import _named, collect_inputs, extract, recompute
from pyfeat.jobs._named import inputs_named
from tests.jobs.files import contents, png, write_tar

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Give the names of a file, two members, a cell and what looks like a cell."""
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "a#4.png").write_bytes(png(4))
    tar = write_tar(tmp_path / "t.tar", {"x/1.png": png(1), "2.png": png(2), "9.png": png(9)})
    pq.write_table(pa.table({"image": [png(8), png(3)]}), tmp_path / "t.parquet")
    inside = [f"{tar}::x/1.png", f"{tar}::2.png", f"{tmp_path}/t.parquet#2"]
    return [f"{tmp_path}/a.png", *inside, f"{tmp_path}/a#4.png"]


def test_every_kind_of_name_leads_to_its_bytes(names: list[str]) -> None:
    found = inputs_named(names, "image")
    assert set(found) == set(names)
    loose = [found[names[0]], found[names[4]]]
    assert [Path(item.value).read_bytes() for item in loose] == [png(0), png(4)]
    assert contents(found[name] for name in names[1:4]) == [png(1), png(2), png(3)]


def test_archive_is_listed_once(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []

    def counted(inputs: list[str], modality: str, column: str | None) -> object:
        listed.append(inputs)
        return collect_inputs(inputs, modality)

    monkeypatch.setattr(_named, "collect_inputs", counted)
    inputs_named(names, "image")
    assert [[Path(place).name for place in given] for given in listed] == [
        ["t.tar"],
        ["t.parquet"],
    ]


def test_what_is_gone_is_left_out(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.png").unlink()
    (tmp_path / "t.parquet").unlink()
    write_tar(tmp_path / "t.tar", {"2.png": png(2)})
    assert list(inputs_named(names, "image")) == [names[4], names[2]]


def test_lines_of_a_list_are_texts_again(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("good\n\nbad\n")
    (found,) = inputs_named([f"{tmp_path}/t.txt#3"], "text").values()
    assert found.value == "bad"


def test_file_at_an_address_is_found(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://named/a.png", "wb") as file:
        file.write(png(5))
    found = inputs_named(["memory://named/a.png"], "image")
    assert contents(found.values()) == [png(5)]


def test_rows_of_members_are_computed_again(tmp_path: Path, words: str) -> None:
    path = write_tar(tmp_path / "t.tar", {"a.txt": b"good film", "b.txt": b"bad film"})
    extract(path, tmp_path / "feats", words)
    (found,) = recompute(tmp_path / "feats")
    assert {c.name for c in found.compared} == {f"{path}::a.txt", f"{path}::b.txt"}
    assert found.beyond == []


@pytest.mark.parametrize("kind", ["csv", "parquet", "set"])
def test_rows_of_another_column_are_computed_again(kind: str, tmp_path: Path, words: str) -> None:
    place = tmp_path / f"t.{kind}"
    cells = {"text": ["good", "bad"], "n": ["1", "2"], "title": ["good film", "bad film"]}
    if kind == "csv":
        place.write_text("text,n,title\ngood,1,good film\nbad,2,bad film\n")
    elif kind == "parquet":
        pq.write_table(pa.table(cells), place)
    else:
        pytest.importorskip("datasets").Dataset.from_dict(cells).save_to_disk(place)
    extract(place, tmp_path / "feats", words, column="title")
    (found,) = recompute(tmp_path / "feats")
    assert {c.name for c in found.compared} == {f"{place}#1", f"{place}#2"}
    assert (found.beyond, found.changed, found.gone) == ([], 0, 0)


def test_members_of_another_column_are_computed_again(tmp_path: Path, words: str) -> None:
    path = write_tar(tmp_path / "t.tar", {"a.cap": b"good film", "b.cap": b"bad film"})
    extract(path, tmp_path / "feats", words, column="cap")
    (found,) = recompute(tmp_path / "feats")
    assert {c.name for c in found.compared} == {f"{path}::a.cap", f"{path}::b.cap"}


def test_cell_that_was_changed_is_in_no_column(tmp_path: Path, words: str) -> None:
    place = tmp_path / "t.csv"
    place.write_text("text,title\nbad,good film\nbad,bad film\n")
    extract(place, tmp_path / "feats", words, column="title")
    place.write_text("text,title\nbad,good film\nbad,lovely film\n")
    (found,) = recompute(tmp_path / "feats")
    assert ([c.name for c in found.compared], found.changed) == ([f"{place}#1"], 1)


def test_data_set_that_was_emptied_has_no_inputs(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": []}')
    assert inputs_named([f"{tmp_path}#1"], "text") == {}
