"""What a caller of FeatureStore may rely on."""

from __future__ import annotations

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat.errors import StoreError

from .conftest import DIM, some_keys, some_rows


def test_row_put_is_row_got(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path, space) as store:
        store.put(some_keys(5), some_rows(5))
        np.testing.assert_array_equal(store.get(some_keys(5)), some_rows(5))


def test_rows_are_there_after_close_and_open(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path, space) as store:
        store.put(some_keys(5), some_rows(5))
    np.testing.assert_array_equal(FeatureStore(tmp_path, mode="r").get(some_keys(5)), some_rows(5))


def test_float16_rows_round_to_nearest_even(tmp_path: Path) -> None:
    rows = np.array([[1 + 2**-11, 1 + 3 * 2**-11, 65504.0]], np.float32)
    with FeatureStore(tmp_path, Space(3, "float16")) as store:
        store.put(some_keys(1), rows)
        got = store.get(some_keys(1))
    np.testing.assert_array_equal(got, np.array([[1, 1 + 2**-9, 65504]], np.float16))


def test_keys_as_bytes_and_as_array_are_the_same(tmp_path: Path, space: Space) -> None:
    keys = some_keys(4)
    with FeatureStore(tmp_path, space) as store:
        store.put([k.tobytes() for k in keys], some_rows(4))
        assert store.contains(keys).all()


def test_keys_as_v16_are_the_same(tmp_path: Path, space: Space) -> None:
    keys = some_keys(4)
    with FeatureStore(tmp_path, space) as store:
        store.put(keys.view("V16").ravel(), some_rows(4))
        np.testing.assert_array_equal(store.get(keys.view("V16").ravel()[::-1]), some_rows(4)[::-1])


@pytest.mark.parametrize("sealed", [False, True], ids=["tail", "segment"])
def test_float16_rows_are_got_as_float32(tmp_path: Path, sealed: bool) -> None:
    rows = some_rows(700).astype(np.float16)
    store = FeatureStore(tmp_path, Space(DIM, "float16"))
    store.put(some_keys(700), rows)
    if sealed:
        store.close()
    got = store.get(some_keys(700), dtype="float32")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, rows.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float64", "int8", "float16", "bfloat16"])
def test_get_refuses_another_dtype(tmp_path: Path, space: Space, dtype: str) -> None:
    with pytest.raises(ValueError, match=f"dtype must be float32, got {dtype}"):
        FeatureStore(tmp_path, space).get([], dtype=dtype)


def test_rows_of_tails_and_segments_come_in_the_order_of_keys(tmp_path: Path, space: Space) -> None:
    keys, rows = some_keys(900), some_rows(900)
    for part in (slice(0, 300), slice(300, 600)):
        with FeatureStore(tmp_path, space) as store:
            store.put(keys[part], rows[part])
    store = FeatureStore(tmp_path, space)
    store.put(keys[600:], rows[600:])
    mixed = np.random.default_rng(5).permutation(900)
    np.testing.assert_array_equal(store.get(keys[mixed]), rows[mixed])


def test_number_of_threads_changes_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = some_keys(6000)
    rows = np.random.default_rng(1).standard_normal((6000, 101)).astype(np.float16)
    with FeatureStore(tmp_path, Space(101, "float16")) as store:
        store.put(keys, rows)
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("PYFEAT_NUM_THREADS", threads)
        np.testing.assert_array_equal(store.get(keys), rows)


def test_contains_says_no_for_unknown_keys(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path, space) as store:
        store.put(some_keys(100), some_rows(100))
        both = np.concatenate([some_keys(100), some_keys(100, seed=9)])
        assert store.contains(both).tolist() == [True] * 100 + [False] * 100


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 1000])
def test_every_key_of_a_segment_is_found(tmp_path: Path, space: Space, n: int) -> None:
    with FeatureStore(tmp_path, space) as store:
        store.put(some_keys(n), some_rows(n))
    store = FeatureStore(tmp_path, mode="r")
    np.testing.assert_array_equal(store.get(some_keys(n)[::-1]), some_rows(n)[::-1])


def test_keys_that_are_no_hashes_are_found_too(tmp_path: Path, space: Space) -> None:
    # Interpolation guesses badly here: all keys share their first fifteen bytes.
    keys = np.zeros((200, 16), np.uint8)
    keys[:, 15] = np.arange(200)
    with FeatureStore(tmp_path, space) as store:
        store.put(keys, some_rows(200))
    store = FeatureStore(tmp_path, mode="r")
    np.testing.assert_array_equal(store.get(keys), some_rows(200))
    assert not store.contains(np.full((1, 16), 255, np.uint8)).any()


def test_newest_row_of_a_key_wins(tmp_path: Path, space: Space) -> None:
    for seed in (1, 2):
        with FeatureStore(tmp_path, space) as store:
            store.put(some_keys(3), some_rows(3, seed))
    np.testing.assert_array_equal(store.get(some_keys(3)), some_rows(3, 2))
    assert len(store) == 3


def test_get_of_unknown_key_names_it(tmp_path: Path, space: Space) -> None:
    store = FeatureStore(tmp_path, space)
    with pytest.raises(KeyError, match="got 1 that are not, the first 30313233"):
        store.get([b"0123456789abcdef"])


def test_get_intact_gives_nan_for_missing(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path, space) as store:
        store.put(some_keys(1), some_rows(1))
        rows, intact = store.get_intact(np.concatenate([some_keys(1), some_keys(1, 5)]))
    assert intact.tolist() == [True, False]
    assert np.isnan(rows[1]).all()


def test_tail_is_sealed_when_it_is_large_enough(tmp_path: Path, space: Space) -> None:
    store = FeatureStore(tmp_path, space, segment_bytes=4 * DIM * 10)
    for i in range(5):
        store.put(some_keys(5, i), some_rows(5, i))
    suffixes = sorted(Path(p).suffix for p in store.files())
    assert suffixes == [".safetensors", ".safetensors", ".tail"]


def test_segments_open_with_safetensors_alone(tmp_path: Path, space: Space) -> None:
    from safetensors.numpy import load_file

    with FeatureStore(tmp_path, space) as store:
        store.put(some_keys(9), some_rows(9))
    tensors = load_file(next(iter(store.files())))
    np.testing.assert_array_equal(tensors["rows"], some_rows(9))
    np.testing.assert_array_equal(tensors["keys"], some_keys(9)[tensors["order"]])


def test_reader_sees_rows_of_living_writer_after_refresh(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path, space) as writer:
        reader = FeatureStore(tmp_path, mode="r")
        writer.put(some_keys(2), some_rows(2))
        writer.flush()
        reader.refresh()
        np.testing.assert_array_equal(reader.get(some_keys(2)), some_rows(2))


def test_reader_survives_sealing_by_writer(tmp_path: Path, space: Space) -> None:
    writer = FeatureStore(tmp_path, space)
    writer.put(some_keys(2), some_rows(2))
    reader = FeatureStore(tmp_path, mode="r")
    view = reader.view()
    writer.close()
    reader.refresh()
    np.testing.assert_array_equal(np.asarray(view), reader.get(view.keys))
    assert [Path(p).suffix for p in reader.files()] == [".safetensors"]


def test_two_writers_do_not_disturb_each_other(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path, space) as one, FeatureStore(tmp_path, space) as two:
        one.put(some_keys(3, 1), some_rows(3, 1))
        two.put(some_keys(3, 2), some_rows(3, 2))
    store = FeatureStore(tmp_path, mode="r")
    assert len(store) == 6
    np.testing.assert_array_equal(store.get(some_keys(3, 1)), some_rows(3, 1))


def test_eight_threads_may_put_into_one_store(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path, space) as store, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.put(some_keys(20, i), some_rows(20, i)), range(32)))
    for i in range(32):
        np.testing.assert_array_equal(store.get(some_keys(20, i)), some_rows(20, i))


def test_spaces_of_one_store_are_kept_apart(tmp_path: Path, space: Space) -> None:
    other = Space(DIM, parts={"name": "other"})
    with FeatureStore(tmp_path, space) as a, FeatureStore(tmp_path, other) as b:
        a.put(some_keys(1), some_rows(1, 1))
        b.put(some_keys(1), some_rows(1, 2))
    np.testing.assert_array_equal(a.get(some_keys(1)), some_rows(1, 1))
    assert {s.fingerprint for s in FeatureStore.spaces(tmp_path)} == {
        space.fingerprint,
        other.fingerprint,
    }


def test_store_of_two_spaces_asks_which(tmp_path: Path, space: Space) -> None:
    FeatureStore(tmp_path, space)
    FeatureStore(tmp_path, Space(7))
    with pytest.raises(ValueError, match="space must be given"):
        FeatureStore(tmp_path)


def test_pickled_store_opens_the_same_place(tmp_path: Path, space: Space) -> None:
    with FeatureStore(tmp_path, space) as store:
        store.put(some_keys(1), some_rows(1))
    again = pickle.loads(pickle.dumps(store))
    assert again.contains(some_keys(1)).all()


def test_deepcopy_is_the_same_handle(tmp_path: Path, space: Space) -> None:
    store = FeatureStore(tmp_path, space)
    assert copy.deepcopy(store) is store


def test_forked_child_writes_into_its_own_tail(tmp_path: Path, space: Space) -> None:
    store = FeatureStore(tmp_path, space)
    store.put(some_keys(2, 1), some_rows(2, 1))
    child = os.fork()
    if child == 0:
        store.put(some_keys(2, 2), some_rows(2, 2))
        store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.put(some_keys(2, 3), some_rows(2, 3))
    store.close()
    again = FeatureStore(tmp_path, mode="r")
    for seed in (1, 2, 3):
        np.testing.assert_array_equal(again.get(some_keys(2, seed)), some_rows(2, seed))


def test_read_only_store_refuses_put(tmp_path: Path, space: Space) -> None:
    FeatureStore(tmp_path, space)
    with pytest.raises(StoreError, match="mode='a' to put rows, got mode='r'"):
        FeatureStore(tmp_path, mode="r").put(some_keys(1), some_rows(1))


def test_closed_store_refuses_put(tmp_path: Path, space: Space) -> None:
    store = FeatureStore(tmp_path, space)
    store.close()
    with pytest.raises(StoreError, match="got a closed store"):
        store.put(some_keys(1), some_rows(1))


def test_folder_with_other_files_is_refused(tmp_path: Path, space: Space) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(StoreError, match="or an empty folder"):
        FeatureStore(tmp_path, space)


def test_missing_folder_is_no_store_to_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="must be a feature store"):
        FeatureStore(tmp_path / "nothing", mode="r")


def test_rows_of_another_width_are_refused(tmp_path: Path, space: Space) -> None:
    with pytest.raises(ValueError, match=r"rows must have shape \(2, 3\), got \(2, 4\)"):
        FeatureStore(tmp_path, space).put(some_keys(2), np.zeros((2, 4)))


def test_keys_of_another_length_are_refused(tmp_path: Path, space: Space) -> None:
    with pytest.raises(ValueError, match="keys must be 16 bytes each, got b'short'"):
        FeatureStore(tmp_path, space).contains([b"short"])


def test_rows_put_last_win_also_after_closing(tmp_path: Path, space: Space) -> None:
    # Age was that of the tail, not of its rows: closing brought an older row back.
    early = FeatureStore(tmp_path, space)
    early.put(some_keys(1, 5), some_rows(1, 5))
    with FeatureStore(tmp_path, space) as late:
        late.put(some_keys(1), some_rows(1, 1))
    early.refresh()
    early.put(some_keys(1), some_rows(1, 2))
    early.close()
    for store in (early, FeatureStore(tmp_path, mode="r")):
        np.testing.assert_array_equal(store.get(some_keys(1)), some_rows(1, 2))


def test_eight_threads_may_make_one_store(tmp_path: Path, space: Space) -> None:
    for i in range(20):
        with ThreadPoolExecutor(8) as pool:
            stores = list(pool.map(lambda _, i=i: FeatureStore(tmp_path / str(i), space), range(8)))
        assert {s.space.fingerprint for s in stores} == {space.fingerprint}


def test_parent_rows_stay_in_sight_of_a_forked_child(tmp_path: Path, space: Space) -> None:
    store = FeatureStore(tmp_path, space)
    store.put(some_keys(2, 1), some_rows(2, 1))
    store.flush()
    child = os.fork()
    if child == 0:
        store.put(some_keys(2, 2), some_rows(2, 2))
        os._exit(0 if store.contains(some_keys(2, 1)).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_relative_path_survives_a_change_of_folder(
    tmp_path: Path, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = FeatureStore("feats", space)
    store.put(some_keys(1), some_rows(1))
    monkeypatch.chdir("/")
    store.close()
    assert len(FeatureStore(tmp_path / "feats", mode="r")) == 1


def test_path_that_is_no_unicode_is_fine(tmp_path: Path, space: Space) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9"))
    with FeatureStore(root, space) as store:
        store.put(some_keys(1), some_rows(1))
    assert store.contains(some_keys(1)).all()


def test_path_that_is_a_file_is_refused(tmp_path: Path, space: Space) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="path must be a folder, got the file"):
        FeatureStore(tmp_path / "file", space)


def test_native_gather_refuses_rows_that_are_not_there(tmp_path: Path, space: Space) -> None:
    store = FeatureStore(tmp_path, space)
    store.put(some_keys(1), some_rows(1))
    (tail,) = store._sources()
    out, zero = np.zeros((1, 12), np.uint8), np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="rows must lie in the source"):
        tail.gather(some_keys(1), zero + 10**12, zero, out, 1)
    with pytest.raises(ValueError, match="out must have shape"):
        tail.gather(some_keys(1), zero, zero, out[:, :1].copy(), 1)
