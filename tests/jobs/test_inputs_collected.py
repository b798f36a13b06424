"""Ten million inputs as a sequence."""

from __future__ import annotations

import pickle
import sys
import tracemalloc
from pathlib import Path

import pytest

from pyfeat import FeatureExtractor
from pyfeat.extract import Input, Readable
from pyfeat.jobs import Collected, collect_inputs
from pyfeat.jobs._collected import Files, Lost
from tests.jobs.files import contents, png, write_tar
from tests.jobs.test_jobs import pooled_colours


@pytest.fixture
def mixed(tmp_path: Path) -> Collected:
    """Two files, three members of an archive, one file."""
    for name in ("a.png", "b.png", "z.png"):
        (tmp_path / name).write_bytes(png(0))
    path = write_tar(tmp_path / "t.tar", {f"{i}.png": png(i) for i in range(3)})
    return collect_inputs(
        [tmp_path / "a.png", tmp_path / "b.png", path, tmp_path / "z.png"], "image"
    )


def short(inputs: Collected) -> list[str]:
    return [Path(item.name).name for item in inputs]


NAMES = ["a.png", "b.png", "t.tar::0.png", "t.tar::1.png", "t.tar::2.png", "z.png"]


def test_items_are_in_order_over_all_parts(mixed: Collected) -> None:
    assert short(mixed) == NAMES
    assert [Path(mixed[i].name).name for i in range(len(mixed))] == NAMES
    assert [mixed[-i - 1] for i in range(6)] == list(mixed)[::-1]


@pytest.mark.parametrize("at", [6, -7])
def test_index_beyond_the_end_is_refused(mixed: Collected, at: int) -> None:
    with pytest.raises(IndexError, match=f"index must be below 6, got {at}"):
        mixed[at]


def test_slice_is_such_a_sequence(mixed: Collected) -> None:
    assert short(mixed[1::2]) == NAMES[1::2]
    assert short(mixed[1::2][::-1][:2]) == NAMES[1::2][::-1][:2]


def test_positions_are_taken_in_their_order(mixed: Collected) -> None:
    assert short(mixed.take([4, 0, 4])) == [NAMES[4], NAMES[0], NAMES[4]]


def test_item_is_found_as_in_a_list(mixed: Collected) -> None:
    assert mixed[3] in mixed
    assert mixed.index(mixed[3]) == 3


def test_inputs_travel_to_other_processes(mixed: Collected) -> None:
    again = pickle.loads(pickle.dumps(mixed))
    assert list(again) == list(mixed)
    member = pickle.dumps(mixed[2])
    assert len(member) < 400
    assert pickle.loads(member).value.read() == png(0)


def test_many_files_cost_their_names_only() -> None:
    tracemalloc.start()
    places = [f"/photos/{i:09}.jpg" for i in range(100_000)]
    names = tracemalloc.get_traced_memory()[0]
    found = Collected([Files(places, "image")])
    assert found[99_999] == Input("/photos/000099999.jpg", "/photos/000099999.jpg")
    assert tracemalloc.get_traced_memory()[0] - names < 10_000
    tracemalloc.stop()


def test_members_of_an_archive_cost_their_names_and_16_bytes(tmp_path: Path) -> None:
    n = 3_000
    path = write_tar(tmp_path / "t.tar", {f"{i:06}.png": b"" for i in range(n)})
    tracemalloc.start()
    found = collect_inputs(path, "image")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(found) == n
    assert held < n * (sys.getsizeof("000000.png") + 8 + 16) + 200_000


def test_what_is_lost_says_so_when_it_is_read() -> None:
    assert contents(Collected([Lost("a.png", "it is gone")])) == ["it is gone"]


def test_transform_takes_what_can_be_read(mixed: Collected) -> None:
    assert isinstance(mixed[2].value, Readable)
    extractor = pooled_colours().set_params(store=None)
    rows = extractor.transform([item.value for item in mixed])
    assert (rows[0] == rows[2]).all()
    assert (rows[0] != rows[3]).any()


class Texts:
    """Reads what is no bytes."""

    def read(self) -> str:
        return "photo.png"


def test_what_is_read_must_be_bytes() -> None:
    extractor: FeatureExtractor = pooled_colours()
    with pytest.raises(ValueError, match=r"X\[0\]: must be read as bytes, got str"):
        extractor.transform([Texts()])
