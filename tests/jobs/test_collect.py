"""What stands for which paths."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from pyfeat.jobs import collect
from pyfeat.jobs._labels import read_labels


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b/2.JPG", "b/1.png", "a/3.webp", "a/notes.txt", "top.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(paths: list[str], root: Path) -> list[str]:
    return [str(Path(p).relative_to(root)) for p in paths]


def test_folder_is_searched_for_images_in_a_fixed_order(tree: Path) -> None:
    assert names(collect(tree), tree) == ["top.jpeg", "a/3.webp", "b/1.png", "b/2.JPG"]


def test_glob_is_expanded(tree: Path) -> None:
    assert names(collect("**/*.png"), tree) == ["b/1.png"]


def test_collected_paths_are_not_expanded_again(tree: Path) -> None:
    # A folder named like an image was lost when the command and the job both collected.
    (tree / "a.jpg").mkdir()
    once = collect(tree)
    assert names(collect(once), tree) == names(once, tree)
    assert "a.jpg" in names(once, tree)


def test_file_is_itself_whatever_it_is_called(tree: Path) -> None:
    (tree / "photo").write_bytes(b"x")
    assert names(collect("photo"), tree) == ["photo"]


def test_each_path_comes_once(tree: Path) -> None:
    assert names(collect(["b", "b/1.png", tree / "b"]), tree) == ["b/1.png", "b/2.JPG"]


def test_text_list_has_one_path_a_line(tree: Path) -> None:
    (tree / "list.txt").write_text("b/1.png\n\n  a/3.webp  \n")
    assert names(collect("list.txt"), tree) == ["b/1.png", "a/3.webp"]


def test_path_in_a_text_list_may_hold_a_line_separator(tree: Path) -> None:
    (tree / "list.txt").write_text("b/1\u2028.png\n", "utf-8")
    assert names(collect("list.txt"), tree) == ["b/1\u2028.png"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_table_gives_its_column(tree: Path, suffix: str) -> None:
    frame = pd.DataFrame({"label": ["x", "y"], "file": ["b/1.png", "a/3.webp"]})
    if suffix == "parquet":
        frame.to_parquet("list.parquet")
    else:
        frame.to_csv(f"list.{suffix}", index=False, sep="\t" if suffix == "tsv" else ",")
    assert names(collect(f"list.{suffix}", column="file"), tree) == ["b/1.png", "a/3.webp"]


def test_column_path_is_taken_by_itself(tree: Path) -> None:
    (tree / "list.csv").write_text("id,path\n7,b/1.png\n")
    assert names(collect("list.csv"), tree) == ["b/1.png"]


def test_unknown_column_is_named_with_those_there_are(tree: Path) -> None:
    (tree / "list.csv").write_text("id,path\n7,b/1.png\n")
    with pytest.raises(ValueError, match=r"column must be one of \['id', 'path'\], got 'file'"):
        collect("list.csv", column="file")


def test_listed_path_that_is_missing_is_left_to_the_job(tree: Path) -> None:
    (tree / "list.txt").write_text("gone.png\n")
    assert names(collect("list.txt"), tree) == ["gone.png"]


def test_missing_input_is_refused(tree: Path) -> None:
    with pytest.raises(ValueError, match="got 'nowhere': no such file or folder"):
        collect("nowhere")


def test_glob_without_match_is_refused(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"got the glob '\*\.bmp': no match"):
        collect("*.bmp")


def test_folder_without_images_is_refused(tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(ValueError, match="inputs must name at least one image"):
        collect("empty")


def test_labels_are_read_by_absolute_path(tree: Path) -> None:
    (tree / "labels.csv").write_text("path,label\nb/1.png,cat\n")
    assert read_labels("labels.csv") == {str(tree / "b/1.png"): "cat"}


def test_null_of_a_parquet_list_is_no_path(tree: Path) -> None:
    # It became the text "None": a path, and a class.
    pd.DataFrame({"path": ["b/1.png", None], "label": ["cat", None]}).to_parquet("list.parquet")
    assert names(collect("list.parquet"), tree) == ["b/1.png"]


def test_byte_order_mark_is_no_part_of_a_path(tree: Path) -> None:
    (tree / "list.txt").write_text("b/1.png\n", encoding="utf-8-sig")
    (tree / "list.csv").write_text("path\nb/1.png\n", encoding="utf-8-sig")
    assert names(collect(["list.txt", "list.csv"]), tree) == ["b/1.png"]


def test_table_of_blank_lines_is_refused(tree: Path) -> None:
    (tree / "list.csv").write_text("\n\n")
    with pytest.raises(ValueError, match="inputs must not be empty"):
        collect("list.csv")


def test_file_that_is_no_parquet_is_refused(tree: Path) -> None:
    (tree / "list.parquet").write_text("letter")
    with pytest.raises(ValueError, match="must be a parquet file"):
        collect("list.parquet")


def test_column_without_a_list_is_refused(tree: Path) -> None:
    with pytest.raises(ValueError, match="column must be given with a list"):
        collect("b", column="file")


def test_folder_named_like_an_image_is_named(tree: Path) -> None:
    (tree / "a.jpg").mkdir()
    assert names(collect("a.jpg"), tree) == ["a.jpg"]
    assert "a.jpg" in names(collect("*"), tree)


def test_linked_folder_is_followed_once(tree: Path) -> None:
    (tree / "b" / "loop").symlink_to(tree)
    (tree / "c").symlink_to(tree / "a")
    found = names(collect(tree), tree)
    assert len(found) == len({os.path.realpath(p) for p in found}) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_folder_that_may_not_be_read_is_named(tree: Path) -> None:
    (tree / "b").chmod(0)
    try:
        assert "b" in names(collect(tree), tree)
    finally:
        (tree / "b").chmod(0o700)


def test_path_with_two_labels_is_refused(tree: Path) -> None:
    (tree / "labels.csv").write_text("path,label\nb/1.png,cat\nb/1.png,dog\n")
    with pytest.raises(ValueError, match=r"one label, got \['cat', 'dog'\]"):
        read_labels("labels.csv")


def test_folder_is_searched_for_recordings_when_told_so(tree: Path) -> None:
    for name in ("b/one.wav", "a/two.FLAC", "a/three.mp3"):
        (tree / name).write_bytes(b"x")
    assert names(collect(tree, modality="audio"), tree) == [
        "a/three.mp3",
        "a/two.FLAC",
        "b/one.wav",
    ]


def test_message_says_which_kind_of_file_is_missing(tree: Path) -> None:
    with pytest.raises(ValueError, match="inputs must name at least one recording"):
        collect(tree, modality="audio")


def test_unknown_modality_is_refused(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"modality must be one of .*, got 'smell'"):
        collect(tree, modality="smell")
