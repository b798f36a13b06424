"""Rows of every dtype: what comes back, how far off it may be, and what a crash leaves of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pyfeat import FeatureStore, Space
from pyfeat._identity import ROW_DTYPES
from pyfeat.errors import StoreWarning
from pyfeat.heads import LogisticHead
from pyfeat.ops import dequantize_rows, quantize_rows
from pyfeat.store import _sources as at
from pyfeat.store import as_kept
from pyfeat.store._encoding import decode, encode

from .conftest import some_keys

DIM = 37  # fills no register evenly
ROUNDED = ["bfloat16", "int8"]


def some_rows(n: int, dim: int = DIM) -> NDArray[np.float32]:
    """Rows whose sizes lie far apart."""
    rng = np.random.default_rng(1)
    sizes = np.exp(2 * rng.standard_normal((n, 1)))
    return np.asarray(rng.standard_normal((n, dim)) * sizes, np.float32)


def by_definition(rows: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """What a store gives back, by the reference of the ops."""
    if dtype == "int8":
        codes = quantize_rows(torch.from_numpy(rows), backend="reference")
        return dequantize_rows(*codes, backend="reference").numpy()
    return torch.from_numpy(rows).to(getattr(torch, dtype)).float().numpy()


@pytest.fixture(params=ROW_DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("sealed", [False, True], ids=["tail", "segment"])
@pytest.mark.parametrize("dim", [1, 16, DIM, 5000])
def test_rows_come_back_as_the_ops_define_them(
    tmp_path: Path, dtype: str, sealed: bool, dim: int
) -> None:
    rows = some_rows(30, dim)
    store = FeatureStore(tmp_path, Space(dim, dtype))
    store.put(some_keys(30), rows)
    if sealed:
        store.close()
    got = store.get(some_keys(30)[::-1], dtype="float32")
    np.testing.assert_array_equal(got, by_definition(rows, dtype)[::-1])


def test_rows_of_tails_and_segments_come_in_the_order_of_keys(tmp_path: Path, dtype: str) -> None:
    keys, rows = some_keys(3000), some_rows(3000)
    with FeatureStore(tmp_path, Space(DIM, dtype), segment_bytes=20_000) as writer:
        for part in np.array_split(np.arange(2000), 10):
            writer.put(keys[part], rows[part])
    store = FeatureStore(tmp_path)
    store.put(keys[2000:], rows[2000:])
    mixed = np.random.default_rng(5).permutation(3000)
    np.testing.assert_array_equal(store.get(keys[mixed]), as_kept(rows, dtype)[mixed])


@pytest.mark.parametrize("dtype", ROUNDED)
def test_number_of_threads_changes_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    rows = some_rows(6000, 101)
    with FeatureStore(tmp_path, Space(101, dtype)) as store:
        store.put(some_keys(6000), rows)
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("PYFEAT_NUM_THREADS", threads)
        np.testing.assert_array_equal(store.get(some_keys(6000)), by_definition(rows, dtype))


def test_kept_rows_have_the_dtype_that_numpy_has_for_them(tmp_path: Path, dtype: str) -> None:
    store = FeatureStore(tmp_path, Space(DIM, dtype))
    store.put(some_keys(3), some_rows(3))
    expected = np.float16 if dtype == "float16" else np.float32
    view = store.view()
    got = (store.get(some_keys(3)), view, view[:], as_kept(some_rows(3), dtype))
    assert {rows.dtype for rows in got} == {np.dtype(expected)}


def test_blocks_of_a_view_are_the_kept_rows(tmp_path: Path, dtype: str) -> None:
    with FeatureStore(tmp_path, Space(DIM, dtype)) as store:
        store.put(some_keys(50), some_rows(50))
    for positions, block in store.view().blocks(7):
        np.testing.assert_array_equal(block, as_kept(some_rows(50), dtype)[positions])


@pytest.mark.parametrize("wanted", ["float16", "bfloat16", "int8"])
def test_get_gives_rounded_rows_as_float32_only(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"dtype must be float32, got {wanted}"):
        FeatureStore(tmp_path, Space(DIM, "bfloat16")).get([], dtype=wanted)


def test_raw_rows_are_what_was_encoded(tmp_path: Path, dtype: str) -> None:
    keys, rows = some_keys(20), some_rows(20)
    space = Space(DIM, dtype)
    with FeatureStore(tmp_path, space) as writer:
        writer.put(keys[:10], rows[:10])
    store = FeatureStore(tmp_path)
    store.put(keys[10:], rows[10:])
    sources = store._sources()
    raw, damaged = at.gather_raw(sources, keys, at.locate(sources, keys), space)
    np.testing.assert_array_equal(raw, encode(rows, dtype))
    assert damaged == []


def test_decoding_undoes_encoding_up_to_rounding(dtype: str) -> None:
    rows = some_rows(40)
    np.testing.assert_array_equal(
        decode(encode(rows, dtype), dtype).astype(np.float32), by_definition(rows, dtype)
    )


# --- how far off ---------------------------------------------------------------------------

finite = st.floats(-(2.0**99), 2.0**99, width=32)


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=finite))
@settings(max_examples=200, deadline=None)
def test_int8_is_off_by_half_a_scale_and_rounding(rows: NDArray[np.float32]) -> None:
    # |scale * code - x| <= scale (1/2 + 2^-15), see quantize_rows; the product, at most 127 scales,
    # is rounded to float32, which adds 127 * 2^-24 < 2^-17 of them. Below 2^-126 / 127 a row is 0.
    largest = np.abs(rows).max(axis=1, keepdims=True).astype(np.float64)
    bound = largest / 127 * (0.5 + 2**-14) + (largest < 127 * 2.0**-126) * largest
    assert (np.abs(as_kept(rows, "int8").astype(np.float64) - rows) <= bound).all()


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=finite))
@settings(max_examples=200, deadline=None)
def test_bfloat16_is_off_by_half_a_unit_of_eight_bits(rows: NDArray[np.float32]) -> None:
    # Eight significant bits; subnormal numbers lie 2^-133 apart.
    bound = np.maximum(np.abs(rows).astype(np.float64) * 2**-8, 2.0**-134)
    assert (np.abs(as_kept(rows, "bfloat16").astype(np.float64) - rows) <= bound).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_int8_row_that_is_not_finite_comes_back_as_nan(tmp_path: Path, value: float) -> None:
    rows = some_rows(3)
    rows[1, 5] = value
    with FeatureStore(tmp_path, Space(DIM, "int8")) as store:
        store.put(some_keys(3), rows)
    got = store.get(some_keys(3))
    assert np.isnan(got).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bfloat16_keeps_what_is_not_finite(tmp_path: Path, value: float) -> None:
    rows = some_rows(1)
    rows[0, 5] = value
    store = FeatureStore(tmp_path, Space(DIM, "bfloat16"))
    store.put(some_keys(1), rows)
    got = store.get(some_keys(1))
    np.testing.assert_array_equal(got[0, 5], np.float32(value))
    assert np.isfinite(got).sum() == DIM - 1


def test_int8_row_of_zeros_stays_zero(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, Space(DIM, "int8"))
    store.put(some_keys(1), np.zeros((1, DIM)))
    np.testing.assert_array_equal(store.get(some_keys(1)), np.zeros((1, DIM)))


def test_a_head_learns_from_rows_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    rows = rng.standard_normal((400, DIM)) + 3 * y[:, None]
    with FeatureStore(tmp_path, Space(DIM, dtype)) as store:
        store.put(some_keys(400), rows)
    view = store.view(some_keys(400))
    assert LogisticHead().fit(view, y).score(view, y) == 1.0


# --- what a crash leaves ---------------------------------------------------------------------


def test_flipped_scale_costs_only_its_row(tmp_path: Path) -> None:
    with FeatureStore(tmp_path, Space(5, "int8")) as store:
        store.put(some_keys(3), some_rows(3, 5))
    (path,) = tmp_path.glob("spaces/*/*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3 * 5 - 4] ^= 1  # the last scale lies before the codes
    path.write_bytes(content)
    with pytest.warns(StoreWarning, match="fails its checksum"):
        rows, intact = FeatureStore(tmp_path, mode="r").get_intact(some_keys(3))
    assert intact.tolist() == [True, True, False]
    np.testing.assert_array_equal(rows[:2], as_kept(some_rows(3, 5), "int8")[:2])


@pytest.mark.parametrize("dtype", ROUNDED)
def test_recovered_tail_is_sealed_whole(tmp_path: Path, dtype: str) -> None:
    writer = FeatureStore(tmp_path / "alive", Space(DIM, dtype))
    writer.put(some_keys(9), some_rows(9))
    writer.flush()
    shutil.copytree(tmp_path / "alive", tmp_path / "dead")
    FeatureStore(tmp_path / "dead").close()
    assert [Path(f).suffix for f in FeatureStore(tmp_path / "dead").files()] == [".safetensors"]
    np.testing.assert_array_equal(
        FeatureStore(tmp_path / "dead").get(some_keys(9)), as_kept(some_rows(9), dtype)
    )
