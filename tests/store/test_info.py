"""What a store says of itself, without its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat.store import Item, _live, info, items_where, quarantined, write_items

from .conftest import DIM, some_keys, some_rows

N = 4


def test_rows_of_several_segments_and_a_tail_are_counted_once(tmp_path: Path, space: Space) -> None:
    for seed in (0, 1, 0):
        with FeatureStore(tmp_path, space) as store:
            store.put(some_keys(N, seed), some_rows(N, seed))
    writer = FeatureStore(tmp_path, space)
    writer.put(some_keys(N + 1, 1), some_rows(N + 1, 1))
    (found,) = info(tmp_path)
    rows = len(np.unique(np.concatenate([some_keys(N, 0), some_keys(N + 1, 1)]), axis=0))
    stored = 3 * N + N + 1
    assert (found.rows, found.overwritten) == (rows, stored - rows)
    assert (found.segments, found.tails, found.writers) == (3, 1, 1)
    writer.close()
    assert info(tmp_path)[0].tails == 0


def test_count_in_many_parts_is_the_same(
    tmp_path: Path, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1, 0):
        with FeatureStore(tmp_path, space) as store:
            store.put(some_keys(100, seed), some_rows(100, seed))
    monkeypatch.setattr(_live, "_PART", 7)
    assert info(tmp_path)[0].rows == 200


def test_keys_that_begin_alike_are_told_apart(tmp_path: Path, space: Space) -> None:
    keys = [bytes(8) + bytes([0] * 7 + [i]) for i in range(3)]
    for mine in (keys[:2], keys[1:]):
        with FeatureStore(tmp_path, space) as store:
            store.put(mine, some_rows(2))
    assert info(tmp_path)[0].rows == 3


def test_each_space_says_what_it_is(tmp_path: Path) -> None:
    parts = {"name": "net", "layer": ["a", "b"], "precision": "bf16", "engine": "openvino"}
    for space in (Space(2, "float16", parts), Space(3)):
        FeatureStore(tmp_path, space).close()
    one = next(s for s in info(tmp_path) if s.dim == 2)
    assert (one.backbone, one.layer, one.engine, one.precision, one.dtype) == (
        *("net", "a, b", "openvino", "bf16"),
        "float16",
    )


def test_bytes_are_those_of_all_files_of_the_space(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path, space) as store:
        store.put(some_keys(N), some_rows(N))
    size = sum(p.stat().st_size for p in (tmp_path / "spaces").rglob("*") if p.is_file())
    assert info(tmp_path)[0].bytes == size


def test_latest_word_on_an_input_counts(tmp_path: Path, space: Space) -> None:
    key = bytes(some_keys(1)[0])
    write_items(tmp_path, space, [Item("good", key), Item("mended", None, "torn")])
    write_items(tmp_path, space, [Item("mended", key), Item("gone bad", key)])
    write_items(tmp_path, space, [Item("gone bad", None, "torn now")])
    assert info(tmp_path)[0].images == 2
    assert quarantined(tmp_path, space) == [Item("gone bad", None, "torn now")]


def test_name_with_quotes_and_other_letters_is_one_name(tmp_path: Path, space: Space) -> None:
    name = 'a "b" \\ \u00e9 \udcff'
    write_items(tmp_path, space, [Item(name, None, "torn")])
    write_items(tmp_path, space, [Item(name, bytes(16))])
    assert (info(tmp_path)[0].images, quarantined(tmp_path, space)) == (1, [])


@pytest.fixture
def cats_and_dogs(tmp_path: Path, space: Space) -> FeatureStore:
    store = FeatureStore(tmp_path, space)
    store.put(some_keys(N), some_rows(N))
    names = ["p/cat/1.png", "p/dog/2.png", "p/cat/3.png", "p/dog/4.png"]
    items = [Item(n, bytes(k)) for n, k in zip(names, some_keys(N), strict=True)]
    write_items(tmp_path, space, [*items, Item("p/cat/0.png", None, "torn")])
    return store


def test_view_by_glob_has_a_row_for_each_input_that_fits(cats_and_dogs: FeatureStore) -> None:
    view = cats_and_dogs.view(where="*/cat/*")
    np.testing.assert_array_equal(np.asarray(view), some_rows(N)[[0, 2]])


def test_view_by_callable_has_a_row_for_each_input_that_fits(cats_and_dogs: FeatureStore) -> None:
    view = cats_and_dogs.view(where=lambda item: item.name.endswith(("2.png", "3.png")))
    np.testing.assert_array_equal(np.asarray(view), some_rows(N)[[2, 1]])


def test_view_is_in_the_order_of_items_where(cats_and_dogs: FeatureStore) -> None:
    items = items_where(cats_and_dogs.path, cats_and_dogs.space, "*.png")
    view = cats_and_dogs.view(where="*.png")
    assert [bytes(k) for k in view.keys] == [i.key for i in items]


def test_view_by_keys_and_where_is_refused(cats_and_dogs: FeatureStore) -> None:
    with pytest.raises(ValueError, match="keys must be None with where"):
        cats_and_dogs.view(some_keys(1), where="*")


def test_where_that_is_neither_is_refused(cats_and_dogs: FeatureStore) -> None:
    with pytest.raises(TypeError, match="where must be a glob or a callable on Item, got 3"):
        cats_and_dogs.view(where=3)  # type: ignore[arg-type]


def test_head_is_fitted_on_a_view_by_where(cats_and_dogs: FeatureStore) -> None:
    from pyfeat.heads import LogisticHead

    items = list(items_where(cats_and_dogs.path, cats_and_dogs.space, "*"))
    y = np.array([Path(i.name).parent.name for i in items])
    head = LogisticHead().fit(cats_and_dogs.view(where="*"), y)
    assert head.space_ == cats_and_dogs.space
    assert head.coef_.shape[1] == DIM
