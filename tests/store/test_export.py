"""Rows go out with keys and names, and come back the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat.errors import CorruptStoreError
from pyfeat.store import Item, _live, export, import_rows, read_items, write_items

from .conftest import DIM, some_keys, some_rows

N = 6
DTYPES = ["float32", "float16", "bfloat16", "int8"]


def fill(root: Path, space: Space) -> FeatureStore:
    """Two segments, the second with a row that stands for one of the first; a tail; two names."""
    with FeatureStore(root, space) as store:
        store.put(some_keys(N)[:3], some_rows(N)[:3] + 1)
    with FeatureStore(root, space) as store:
        store.put(some_keys(N)[1:5], some_rows(N)[1:5])
    store = FeatureStore(root, space)
    store.put(some_keys(N)[[0, 5]], some_rows(N)[[0, 5]])
    items = [Item(f"{i}.png", bytes(k)) for i, k in enumerate(some_keys(N)[1:], 1)]
    write_items(root, space, [*items, Item("again/3.png", bytes(some_keys(N)[3]))])
    return store


@pytest.fixture
def store(tmp_path: Path, space: Space) -> FeatureStore:
    return fill(tmp_path / "feats", space)


def check(rows: Any, keys: Any, names: list[list[str]]) -> None:
    """Every key is there once, with its own row and its names."""
    order = [bytes(k) for k in some_keys(N)]
    at = [order.index(bytes(k)) for k in keys]
    assert sorted(at) == list(range(N))
    np.testing.assert_array_equal(np.asarray(rows), some_rows(N)[at])
    of = {0: [], 3: ["3.png", "again/3.png"]}
    assert names == [of.get(i, [f"{i}.png"]) for i in at]


def names_in(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_npy(store: FeatureStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = export(store, out, format="npy")
    check(np.load(out / "rows.npy"), np.load(out / "keys.npy"), names_in(out / "names.jsonl"))
    assert Space.from_json((out / "space.json").read_text()) == store.space
    assert (done.rows, done.bytes) == (N, sum(p.stat().st_size for p in out.iterdir()))


def test_parquet(store: FeatureStore, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    export(store, tmp_path / "out.parquet", format="parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    rows = np.array(table["row"].to_pylist(), np.float32)
    keys = [np.frombuffer(k, np.uint8) for k in table["key"].to_pylist()]
    check(rows, keys, table["names"].to_pylist())
    assert Space.from_json(table.schema.metadata[b"pyfeat.space"].decode()) == store.space


def test_safetensors(store: FeatureStore, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    out = tmp_path / "out.safetensors"
    export(store, out, format="safetensors")
    tensors = load_file(out)
    check(tensors["rows"], tensors["keys"], names_in(tmp_path / "out.safetensors.names.jsonl"))


def test_datasets_folder(store: FeatureStore, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export(store, tmp_path / "out", format="hf")
    found = datasets.load_from_disk(str(tmp_path / "out"))
    keys = [np.frombuffer(k, np.uint8) for k in found["key"]]
    check(np.array(found["row"], np.float32), keys, list(found["names"]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format_", ["npy", "parquet", "safetensors", "hf"])
def test_rows_are_those_that_get_returns(tmp_path: Path, dtype: str, format_: str) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    store = fill(tmp_path / "feats", Space(DIM, dtype))
    out = tmp_path / "out"
    export(store, out, format=format_)
    keys, rows = _load(out, format_)
    np.testing.assert_array_equal(rows, store.get(keys))
    assert rows.dtype == store.get(keys).dtype


def _load(out: Path, format_: str) -> tuple[Any, Any]:
    if format_ == "npy":
        return np.load(out / "keys.npy"), np.load(out / "rows.npy")
    if format_ == "safetensors":
        from safetensors.numpy import load_file

        return load_file(out)["keys"], load_file(out)["rows"]
    if format_ == "parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(out)
    else:
        import datasets

        table = datasets.load_from_disk(str(out)).data.table
    keys = np.array([np.frombuffer(k, np.uint8) for k in table["key"].to_pylist()])
    column = table["row"].combine_chunks()
    return keys, column.flatten().to_numpy().reshape(len(keys), -1)


def test_float16_rows_are_widened_on_request(tmp_path: Path) -> None:
    store = fill(tmp_path / "feats", Space(DIM, "float16"))
    export(store, tmp_path / "out", dtype="float32")
    assert np.load(tmp_path / "out" / "rows.npy").dtype == np.float32


def test_where_keeps_to_inputs_that_fit(store: FeatureStore, tmp_path: Path) -> None:
    done = export(store, tmp_path / "out", where="*3.png")
    assert done.rows == 1
    assert np.load(tmp_path / "out" / "keys.npy").tobytes() == bytes(some_keys(N)[3])
    assert names_in(tmp_path / "out" / "names.jsonl") == [["3.png", "again/3.png"]]


def test_where_that_fits_nothing_gives_no_rows(store: FeatureStore, tmp_path: Path) -> None:
    assert export(store, tmp_path / "out", where="nothing").rows == 0
    assert np.load(tmp_path / "out" / "rows.npy").shape == (0, DIM)


def test_rows_come_in_the_order_they_lie_on_disk(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path / "feats", space) as store:
        store.put(some_keys(N), some_rows(N))
    export(store, tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "keys.npy"), some_keys(N))


def test_rows_are_read_in_blocks(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_live, "BLOCK", 2)
    monkeypatch.setattr(_live.live_keys, "__defaults__", (2,))
    export(store, tmp_path / "out")
    out = tmp_path / "out"
    check(np.load(out / "rows.npy"), np.load(out / "keys.npy"), names_in(out / "names.jsonl"))


def test_what_is_there_is_not_overwritten(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out must not be there yet"):
        export(store, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["out[1]", "out*", "out?"])
def test_name_of_an_export_is_no_pattern(store: FeatureStore, tmp_path: Path, name: str) -> None:
    export(store, tmp_path / name)
    out = tmp_path / name
    check(np.load(out / "rows.npy"), np.load(out / "keys.npy"), names_in(out / "names.jsonl"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["feats", name]


def test_names_beside_an_export_are_not_overwritten(store: FeatureStore, tmp_path: Path) -> None:
    there = tmp_path / "out.safetensors.names.jsonl"
    there.write_text("mine")
    with pytest.raises(ValueError, match="out must not be there yet"):
        export(store, tmp_path / "out.safetensors", format="safetensors")
    assert there.read_text() == "mine"


def test_unknown_format_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format must be one of .*, got 'csv'"):
        export(store, tmp_path / "out", format="csv")


def test_damaged_row_ends_the_export_and_leaves_nothing(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path / "feats", space) as store:
        store.put(some_keys(N), some_rows(N))
    (path,) = tmp_path.glob("feats/spaces/*/*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptStoreError, match="the row fails its checksum"):
        export(FeatureStore(tmp_path / "feats", mode="r"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["feats"]


def test_imported_rows_are_found_by_key_and_name(tmp_path: Path, space: Space) -> None:
    names = [["a.png", "b.png"], ["c.png"]]
    assert import_rows(tmp_path, space, some_rows(2), keys=some_keys(2), names=names) == 2
    np.testing.assert_array_equal(FeatureStore(tmp_path, mode="r").get(some_keys(2)), some_rows(2))
    assert [(i.name, i.key) for i in read_items(tmp_path, space)] == [
        ("a.png", bytes(some_keys(2)[0])),
        ("b.png", bytes(some_keys(2)[0])),
        ("c.png", bytes(some_keys(2)[1])),
    ]


def test_imported_rows_without_keys_get_those_of_the_files(tmp_path: Path, space: Space) -> None:
    from pyfeat._identity import content_key

    files = [tmp_path / name for name in ("a", "b")]
    for f in files:
        f.write_text(f.name)
    import_rows(tmp_path / "feats", space, some_rows(2), names=[str(f) for f in files])
    rows = FeatureStore(tmp_path / "feats", mode="r").get([content_key(b"a"), content_key(b"b")])
    np.testing.assert_array_equal(rows, some_rows(2))


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        (some_rows(2)[:, :2], {"keys": some_keys(2)}, r"rows must have shape \(n, 3\)"),
        (some_rows(2), {}, "keys or names must be given"),
        (some_rows(2), {"keys": some_keys(3)}, "keys must be one for each of 2 rows, got 3"),
        (some_rows(2), {"keys": some_keys(2), "names": ["a"]}, "names must be one for each"),
        (some_rows(2), {"names": ["no", "such"]}, "names must be files .*'no' and 1 more"),
    ],
)
def test_import_that_does_not_fit_is_refused(
    tmp_path: Path, space: Space, rows: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_rows(tmp_path / "feats", space, rows, **given)
    assert not (tmp_path / "feats").exists()
