"""Inputs at addresses: in memory, in zip files, and on a web server of this machine."""

from __future__ import annotations

import http.server
import re
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyfeat.jobs import _inputs_remote, collect, collect_inputs, extract, fit
from pyfeat.jobs._labels import folder_of
from tests.jobs.files import contents, keys, png, write_tar
from tests.jobs.test_jobs import pooled_colours

fsspec = pytest.importorskip("fsspec")

PHOTOS = {f"{folder}/{i}.png": png(i) for folder in ("cat", "dog") for i in range(2)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of photos, alone and in an archive of either kind, lists and tables."""
    root = tmp_path / "photos"
    for name, content in PHOTOS.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(content)
    (root / "notes.md").write_text("no photo")
    write_tar(root / "a.tar", PHOTOS)
    write_tar(root / "a.tar.gz", PHOTOS, "w:gz")
    (root / "list.txt").write_text("cat/0.png\ndog/1.png\n")
    (root / "list.csv").write_text("path,label\ncat/0.png,x\nnowhere.png,y\n")
    return root


@pytest.fixture
def memory(photos: Path) -> Iterator[str]:
    """Give the address of the photos in fsspec's memory."""
    system = fsspec.filesystem("memory")
    for file in photos.rglob("*.*"):
        system.pipe(f"/b/{file.relative_to(photos)}", file.read_bytes())
    yield "memory://b"
    system.rm("/b", recursive=True)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, parts of them where it may, and errors where it is told to."""

    sends_parts = True
    errors: list[int] = []  # noqa: RUF012  one for each request to come
    requests: list[str] = []  # noqa: RUF012

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        type(self).requests.append(self.path)
        if self.errors:
            self.send_error(self.errors.pop())
            return
        file = Path(self.translate_path(self.path))
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not (self.sends_parts and asked and file.is_file()):
            super().do_GET()
            return
        whole = file.read_bytes()
        start = int(asked[1])
        part = whole[start : int(asked[2]) + 1 if asked[2] else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(whole)}")
        self.end_headers()
        self.wfile.write(part)


class Server(http.server.ThreadingHTTPServer):
    """Does not mind that somebody hangs up."""

    def handle_error(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def web(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the address of a web server of the photos."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(_inputs_remote, "PAUSES", (0, 0))
    monkeypatch.setattr(Handler, "errors", [])
    monkeypatch.setattr(Handler, "requests", [])
    with Server(("127.0.0.1", 0), partial(Handler, directory=str(photos))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_folder_is_searched(memory: str) -> None:
    found = collect_inputs(memory, "image")
    assert [i.name for i in found] == [f"memory:///b/{name}" for name in PHOTOS]
    assert contents(found) == list(PHOTOS.values())


def test_glob_is_expanded(memory: str) -> None:
    found = collect_inputs(f"{memory}/*/0.png", "image")
    assert [i.name for i in found] == ["memory:///b/cat/0.png", "memory:///b/dog/0.png"]


def test_file_is_itself(memory: str) -> None:
    assert contents(collect_inputs(f"{memory}/dog/1.png", "image")) == [PHOTOS["dog/1.png"]]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_archive_gives_its_members(memory: str, name: str) -> None:
    found = collect_inputs(f"{memory}/{name}", "image")
    assert [i.name for i in found] == [f"{memory}/{name}::{photo}" for photo in PHOTOS]
    assert contents(found) == list(PHOTOS.values())


def test_braces_in_an_address_are_expanded(memory: str) -> None:
    assert len(collect_inputs(f"{memory}/{{cat,dog}}/{{0..1}}.png", "image")) == 4


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_table_gives_its_cells(memory: str, suffix: str) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"image": list(PHOTOS.values())})
    with fsspec.open(f"{memory}/t.{suffix}", "wb") as file:
        if suffix == "parquet":
            pq.write_table(table, file, row_group_size=3)
        else:
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table, 1)
    found = collect_inputs(f"{memory}/t.{suffix}", "image")
    assert contents(found) == list(PHOTOS.values())


def test_paths_of_a_list_are_beside_it(memory: str) -> None:
    assert contents(collect_inputs(f"{memory}/list.txt", "image")) == [png(0), png(1)]
    assert contents(collect_inputs(f"{memory}/list.csv", "image")) == [
        png(0),
        "there is no such file",
    ]


def test_local_list_may_hold_addresses(memory: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{memory}/cat/1.png\n")
    assert contents(collect_inputs(tmp_path / "list.txt", "image")) == [png(1)]
    assert collect(tmp_path / "list.txt") == [f"{memory}/cat/1.png"]


def test_lines_of_a_list_are_texts(memory: str) -> None:
    found = collect_inputs(f"{memory}/list.txt", "text")
    assert [(i.name, i.value) for i in found][1] == (f"{memory}/list.txt#2", "dog/1.png")


def test_address_of_this_machine_is_a_path(photos: Path) -> None:
    (found,) = collect_inputs(f"file://{photos}/cat/0.png", "image")
    assert found.name == found.value == f"{photos}/cat/0.png"


def test_members_of_a_zip_file_are_found_by_a_chained_address(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name, content in PHOTOS.items():
            archive.writestr(name, content)
    found = collect_inputs(f"zip://*/*.png::{tmp_path}/z.zip", "image")
    assert [i.name for i in found] == [f"zip://{name}::{tmp_path}/z.zip" for name in PHOTOS]
    assert contents(found) == list(PHOTOS.values())
    assert folder_of(found[3].name) == "dog"


def test_damaged_member_of_a_zip_file_is_in_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in PHOTOS.items():
            archive.writestr(name, content)
    content = bytearray(path.read_bytes())
    content[content.find(PHOTOS["cat/1.png"]) + 500] ^= 1
    path.write_bytes(content)
    s = extract(f"zip://**/*.png::{path}", tmp_path / "feats", pooled_colours())
    assert (s.total, len(s.quarantined)) == (4, 1)
    assert "BadZipFile" in s.quarantined[0].reason


def test_one_image_near_and_far_is_one_row(photos: Path, memory: str, tmp_path: Path) -> None:
    extract(photos, tmp_path / "feats", pooled_colours())
    s = extract([memory, f"{memory}/a.tar"], tmp_path / "feats", pooled_colours())
    assert (s.computed, s.stored, s.quarantined) == (0, 8, [])
    names = keys(tmp_path / "feats")
    assert names[f"{photos}/cat/0.png"] == names[f"{memory}/a.tar::cat/0.png"]


def test_folders_of_addresses_are_labels(memory: str, tmp_path: Path) -> None:
    extract(memory, tmp_path / "feats", pooled_colours())
    s = fit(tmp_path / "feats", "folder", tmp_path / "m.safetensors", cv=0)
    assert s.classes == {"cat": 2, "dog": 2}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://b/nowhere", "inputs must exist, got 'memory://b/nowhere': no such file"),
        ("memory://b/nowhere.tar", "inputs must exist, got 'memory://b/nowhere.tar'"),
        ("memory://b/*.gif", r"inputs must match something, got the glob 'memory://b/\*.gif'"),
        ("nosuch://b/a.png", "inputs must be at an address of a known kind, got 'nosuch://"),
    ],
)
def test_address_of_nothing_is_refused(memory: str, address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect_inputs(address, "image")


def test_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=r'need fsspec: pip install "pyfeat\[remote\]"'):
        collect_inputs("memory://b/a.png", "image")


def test_missing_package_of_one_kind_is_named_with_its_command() -> None:
    if "s3fs" in sys.modules or _is_installed("s3fs"):
        pytest.skip("s3fs is there")
    with pytest.raises(ImportError, match="s3:// needs another package: pip install s3fs"):
        collect_inputs("s3://bucket/a.png", "image")


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def test_page_of_a_web_server_is_a_folder(web: str) -> None:
    found = collect_inputs(f"{web}/cat", "image")
    assert [i.name for i in found] == [f"{web}/cat/0.png", f"{web}/cat/1.png"]
    assert contents(found) == [png(0), png(1)]


def test_question_mark_in_an_address_of_the_web_is_no_pattern(web: str) -> None:
    assert contents(collect_inputs(f"{web}/cat/0.png?size=1", "image")) == [png(0)]


@pytest.mark.parametrize("sends_parts", [True, False])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_archive_on_a_web_server_gives_its_members(
    web: str, monkeypatch: pytest.MonkeyPatch, name: str, sends_parts: bool
) -> None:
    monkeypatch.setattr(Handler, "sends_parts", sends_parts)
    assert contents(collect_inputs(f"{web}/{name}", "image")) == list(PHOTOS.values())


def test_large_archive_of_a_server_that_sends_no_parts_is_read_once(
    web: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "sends_parts", False)
    members = {f"{i}.png": bytes([i]) * 2**20 for i in range(8)}
    write_tar(photos / "large.tar", members)
    found = collect_inputs(f"{web}/large.tar", "image")
    Handler.requests.clear()
    assert contents(found) == list(members.values())
    assert Handler.requests == ["/large.tar"]


def test_error_of_a_server_that_passes_is_no_error(web: str) -> None:
    found = collect_inputs(f"{web}/cat/0.png", "image")
    Handler.errors[:] = [503, 500]
    assert contents(found) == [png(0)]


@pytest.mark.parametrize(
    ("errors", "reason", "requests"),
    [
        ([503] * 9, "it cannot be read: tried 3 times, ClientResponseError: 503", 3),
        ([403] * 9, "it cannot be read: the server says 403", 1),
        ([404] * 9, "there is no such file", 1),
    ],
)
def test_error_that_stays_is_a_reason(
    web: str, errors: list[int], reason: str, requests: int
) -> None:
    found = collect_inputs(f"{web}/cat/0.png", "image")
    Handler.errors[:] = errors
    assert str(contents(found)[0]).startswith(reason)
    assert len(Handler.requests) == requests


def test_stream_that_breaks_goes_on_where_it_was(web: str, photos: Path) -> None:
    members = {f"{i}.png": png(i) * 400 for i in range(8)}
    write_tar(photos / "large.tar.gz", members, "w:gz")
    found = collect_inputs(f"{web}/large.tar.gz", "image")
    Handler.errors[:] = [503]
    assert contents(found) == list(members.values())


def test_server_that_is_gone_is_told_from_a_file_that_is_not_there(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(_inputs_remote, "PAUSES", (0, 0))
    server = Server(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    server.server_close()
    (reason,) = contents(collect_inputs(f"{address}/a.png", "image"))
    assert "tried 3 times, ClientConnectorError" in str(reason)
    with pytest.raises(OSError, match=r"a.tar cannot be read: tried 3 times"):
        collect_inputs(f"{address}/a.tar", "image")


def test_job_goes_on_when_some_of_it_cannot_be_had(web: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{web}/cat/0.png\n{web}/gone.png\n{web}/dog/1.png\n")
    s = extract(tmp_path / "list.txt", tmp_path / "feats", pooled_colours())
    assert s.computed == 2
    assert [(q.path, q.reason) for q in s.quarantined] == [
        (f"{web}/gone.png", "there is no such file")
    ]
