"""Members of tar archives as inputs."""

from __future__ import annotations

import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pyfeat.jobs import _forward, _inputs_tar, collect, collect_inputs, extract, fit
from pyfeat.jobs._collect import braces
from tests.jobs.files import contents, keys, png, write_tar
from tests.jobs.test_jobs import pooled_colours

NAMES = [f"{folder}/{i}.png" for folder in ("cat", "dog") for i in range(3)]
PHOTOS = {name: png(i) for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_members_are_inputs_with_their_names(tmp_path: Path, suffix: str) -> None:
    mode = {"tar": "w", "tgz": "w:gz"}.get(suffix, f"w:{suffix[4:]}")
    path = write_tar(tmp_path / f"photos.{suffix}", PHOTOS, mode)
    found = collect_inputs(path, "image")
    assert [i.name for i in found] == [f"{path}::{name}" for name in NAMES]
    assert contents(found) == list(PHOTOS.values())


def test_member_is_chosen_by_suffix(tmp_path: Path) -> None:
    members = {"a.JPG": b"1", "a.cls": b"3", "a.json": b"{}", "b/c.wav": b"4", "./d.png": b"5"}
    path = write_tar(tmp_path / "t.tar", members)
    assert [i.name for i in collect_inputs(path, "image")] == [f"{path}::a.JPG", f"{path}::d.png"]
    assert [i.name for i in collect_inputs(path, "audio")] == [f"{path}::b/c.wav"]


def test_column_is_what_follows_the_stem(tmp_path: Path) -> None:
    members = {f"{i}.{part}": png(i) for i in (1, 2) for part in ("left.png", "right.png")}
    path = write_tar(tmp_path / "t.tar", members)
    found = collect_inputs(path, "image", "left.png")
    assert [i.name for i in found] == [f"{path}::1.left.png", f"{path}::2.left.png"]


def test_shards_of_webdataset_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/s-%03d.tar", maxcount=2, verbose=0) as shards:
        for i in range(5):
            shards.write({"__key__": f"k{i}", "png": png(i), "cls": i % 2})
    found = collect_inputs(f"{tmp_path}/s-{{000..002}}.tar", "image")
    assert contents(found) == [png(i) for i in range(5)]


def test_braces_count_and_choose() -> None:
    assert braces("s-{098..100}.tar") == ["s-098.tar", "s-099.tar", "s-100.tar"]
    assert braces("{train,val}/{0..1}.tar") == [
        "train/0.tar",
        "train/1.tar",
        "val/0.tar",
        "val/1.tar",
    ]


def test_file_named_with_braces_is_itself(tmp_path: Path) -> None:
    (tmp_path / "{1..2}.png").write_bytes(png(1))
    assert len(collect_inputs(tmp_path / "{1..2}.png", "image")) == 1


def test_missing_shard_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", PHOTOS)
    with pytest.raises(ValueError, match=r"inputs must exist, got '.*/1.tar'"):
        collect_inputs(f"{tmp_path}/{{0..1}}.tar", "image")


def test_archive_given_twice_is_read_once(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", PHOTOS)
    assert len(collect_inputs([path, f"{tmp_path}/*.tar"], "image")) == len(PHOTOS)


def test_archive_of_other_members_says_which(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", {"a.json": b"{}", "b.txt": b"x"})
    with pytest.raises(ValueError, match=r"at least one image, .* are others, like \['a.json'"):
        collect_inputs(path, "image")


def test_members_of_one_name_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    for number in range(3):
        write_tar(path, {"a.png": png(number)}, "a")
    found = collect_inputs(path, "image")
    assert [i.name[len(str(path)) :] for i in found] == ["::a.png", "::a.png#2", "::a.png#3"]
    assert contents(found) == [png(0), png(1), png(2)]


def test_links_have_the_bytes_of_what_they_lead_to(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", {"cat/1.png": png(1)})
    with tarfile.open(path, "a") as archive:
        for name, kind, target in [
            ("dog/hard.png", tarfile.LNKTYPE, "cat/1.png"),
            ("dog/soft.png", tarfile.SYMTYPE, "../cat/1.png"),
            ("dog/gone.png", tarfile.SYMTYPE, "nowhere.png"),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    found = contents(collect_inputs(path, "image"))
    assert found[:3] == [png(1)] * 3
    assert str(found[3]).startswith("it is a link to dog/nowhere.png")


def test_long_names_and_those_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    names = ["d" * 150 + "/" + "n" * 120 + ".png", b"caf\xe9.png".decode(errors="surrogateescape")]
    path = write_tar(tmp_path / "t.tar", {name: png(1) for name in names})
    assert [i.name.partition("::")[2] for i in collect_inputs(path, "image")] == names


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_cut_archive_gives_what_lies_before_the_cut(tmp_path: Path, suffix: str) -> None:
    whole = write_tar(tmp_path / f"w.{suffix}", PHOTOS, "w" if suffix == "tar" else "w:gz")
    content = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for size in range(0, len(content), len(content) // 23):
        cut.write_bytes(content[:size])
        found = contents(collect_inputs(cut, "image"))
        n_whole = sum(isinstance(c, bytes) for c in found)
        assert found[:n_whole] == list(PHOTOS.values())[:n_whole]
        assert all(isinstance(reason, str) for reason in found[n_whole:])
        assert len(found) > n_whole or n_whole == len(PHOTOS)
        if suffix == "tar":
            assert n_whole == sum(size >= end for end in ends_of_members(whole))


def ends_of_members(path: Path) -> list[int]:
    with tarfile.open(path) as archive:
        return [info.offset_data + info.size for info in archive]


@pytest.mark.parametrize("lost", [0, 1024])
def test_job_puts_the_rest_of_a_cut_archive_into_quarantine(tmp_path: Path, lost: int) -> None:
    path = write_tar(tmp_path / "t.tar", PHOTOS)
    path.write_bytes(path.read_bytes()[: ends_of_members(path)[3] + lost])
    s = extract(path, tmp_path / "feats", pooled_colours())
    assert s.computed == 4
    assert s.quarantined[-1].path == str(path)
    assert "cut off" in s.quarantined[-1].reason


def test_archive_without_its_end_is_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", {"a.png": png(1)})
    path.write_bytes(path.read_bytes()[: 512 + -(-len(png(1)) // 512) * 512])
    assert contents(collect_inputs(path, "image")) == [
        png(1),
        "it has no mark at its end: members may be missing",
    ]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_archives_one_behind_the_other_give_all_members(tmp_path: Path, suffix: str) -> None:
    mode = "w" if suffix == "tar" else "w:gz"
    parts = [
        write_tar(tmp_path / f"{i}.{suffix}", {f"{i}.png": png(i)}, mode).read_bytes()
        for i in range(3)
    ]
    (tmp_path / f"all.{suffix}").write_bytes(b"".join(parts))
    found = collect_inputs(tmp_path / f"all.{suffix}", "image")
    assert contents(found) == [png(0), png(1), png(2)]


def test_what_else_lies_behind_an_archive_is_left(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", {"a.png": png(1)})
    path.write_bytes(path.read_bytes() + b"signed" * 200)
    assert contents(collect_inputs(path, "image")) == [png(1)]


def test_damaged_header_in_the_middle_is_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", PHOTOS)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        content[archive.getmembers()[2].offset] ^= 1
    path.write_bytes(content)
    found = contents(collect_inputs(path, "image"))
    assert found[:2] == list(PHOTOS.values())[:2]
    assert found[2:] == ["it is cut off or damaged: bad checksum"]


def test_size_below_zero_is_told(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + (-2048 & 0xFFFF).to_bytes(2, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "t.tar").write_bytes(bytes(header) + bytes(4096))
    (reason,) = contents(collect_inputs(tmp_path / "t.tar", "image"))[-1:]
    assert "damaged" in str(reason)


def test_file_that_is_no_archive_is_in_quarantine(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(b"this is a letter\n" * 100)
    s = extract(tmp_path / "t.tar", tmp_path / "feats", pooled_colours())
    assert [q.path for q in s.quarantined] == [str(tmp_path / "t.tar")]


def test_flipped_bit_in_a_compressed_archive_is_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar.gz", PHOTOS, "w:gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8  # noise is stored as it is: only the checksum can tell
    path.write_bytes(content)
    last = collect_inputs(path, "image")[-1]
    assert last.name == str(path)
    assert "CRC check failed" in str(contents([last])[0])


def test_one_image_in_three_places_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "loose.png").write_bytes(png(1))
    write_tar(tmp_path / "a.tar", {"x/1.png": png(1)})
    write_tar(tmp_path / "b.tgz", {"y/1.png": png(1)}, "w:gz")
    given = [tmp_path / name for name in ("loose.png", "a.tar", "b.tgz")]
    s = extract(given, tmp_path / "feats", pooled_colours())
    assert (s.computed, s.stored) == (1, 2)
    assert len(set(keys(tmp_path / "feats").values())) == 1


def test_folders_in_an_archive_are_labels(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", PHOTOS)
    extract(path, tmp_path / "feats", pooled_colours())
    s = fit(tmp_path / "feats", "folder", tmp_path / "m.safetensors", cv=0)
    assert s.classes == {"cat": 3, "dog": 3}


def test_archive_of_flat_members_is_a_label(tmp_path: Path) -> None:
    for i, name in enumerate(("n01.tar", "n02.tar.gz")):
        members = {f"{k}.png": png(10 * i + k) for k in range(2)}
        write_tar(tmp_path / name, members, "w:gz" if i else "w")
    extract(f"{tmp_path}/n*", tmp_path / "feats", pooled_colours())
    s = fit(tmp_path / "feats", "folder", tmp_path / "m.safetensors", cv=0)
    assert s.classes == {"n01": 2, "n02": 2}


def test_labels_of_members_come_from_a_table(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", PHOTOS)
    extract(path, tmp_path / "feats", pooled_colours())
    lines = [f"{path}::{name},{i % 2}" for i, name in enumerate(NAMES)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    s = fit(tmp_path / "feats", tmp_path / "labels.csv", tmp_path / "m.safetensors", cv=0)
    assert s.classes == {"0": 3, "1": 3}


def test_texts_of_an_archive_are_read(tmp_path: Path, words: str) -> None:
    path = write_tar(tmp_path / "t.tar", {"a.txt": b"good film", "b.txt": b"bad film"})
    s = extract(path, tmp_path / "feats", words)
    assert (s.computed, s.quarantined) == (2, [])


def test_compressed_archive_is_decompressed_once_by_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = {f"{i:03}.png": random.Random(i).randbytes(30_000) for i in range(200)}
    path = write_tar(tmp_path / "t.tar.gz", blobs, "w:gz")
    found = collect_inputs(path, "image")
    opened = []
    plain = _inputs_tar._decompressed

    def counted(*given: Any) -> Any:
        opened.append(given)
        return plain(*given)

    monkeypatch.setattr(_inputs_tar, "_decompressed", counted)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: i.value.read(), found)) == list(blobs.values())
    assert len(opened) == 1


def test_going_back_further_than_is_kept_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_forward, "_KEPT", 2**21)
    blobs = {f"{i}.png": random.Random(i).randbytes(2**20) for i in range(8)}
    found = collect_inputs(write_tar(tmp_path / "t.tar.gz", blobs, "w:gz"), "image")
    order = [7, 0, 6, 1, 5, 2, 4, 3]
    assert [found[i].value.read() for i in order] == [list(blobs.values())[i] for i in order]


def test_archive_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    for number in (1, 2):
        path = write_tar(tmp_path / "t.tar.gz", {"a.png": png(number)}, "w:gz")
        assert contents(collect_inputs(path, "image")) == [png(number)]


def test_member_has_no_path_of_its_own(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", PHOTOS)
    with pytest.raises(ValueError, match=r"files with a path, got '.*t.tar::cat/0.png'"):
        collect(path)


def test_only_headers_are_read(tmp_path: Path) -> None:
    # Two members of 1 TiB each, with holes for their bytes.
    path = tmp_path / "t.tar"
    info = tarfile.TarInfo("a.png")
    info.size = 2**40
    header = info.tobuf(tarfile.GNU_FORMAT)
    with path.open("wb") as file:
        for i in range(2):
            file.seek(i * (2**40 + 512))
            file.write(header)
        file.seek(2 * (2**40 + 512))
        file.write(bytes(1024))
    assert len(collect_inputs(path, "image")) == 2
