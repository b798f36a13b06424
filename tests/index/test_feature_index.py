"""FeatureIndex against scikit-learn's brute force in float64, and its own contract."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyfeat._identity import Space
from pyfeat.errors import SpaceError
from tests.rows_on_disk import RowsOnDisk

pytest.importorskip("faiss", reason="faiss is not installed")

from pyfeat.index import FeatureIndex

EPS32 = float(np.finfo(np.float32).eps)
METRICS = ["cosine", "inner_product", "l2"]


@parametrize_with_checks([FeatureIndex(metric=metric) for metric in METRICS])
def test_follows_the_scikit_learn_contract(estimator, check):
    check(estimator)


def rows(rng: np.random.Generator, n: int = 80, d: int = 6):
    return rng.standard_normal((n, d)).astype(np.float32)


def exact(X, metric: str) -> NearestNeighbors:
    """Return scikit-learn's index in float64."""
    if metric == "inner_product":
        metric = lambda a, b: -float(a @ b)  # noqa: E731
    name = "euclidean" if metric == "l2" else metric
    return NearestNeighbors(metric=name, algorithm="brute").fit(X.astype(np.float64))


def squared_bound(X) -> float:
    """Return how far float32 sums of d products of these rows may be off."""
    return 4 * X.shape[1] * EPS32 * float((X.astype(float) ** 2).sum(axis=1).max())


@pytest.mark.parametrize("metric", METRICS)
def test_positions_are_those_of_scikit_learn(rng, metric):
    X, queries = rows(rng), rows(rng, 20)
    found = FeatureIndex(metric=metric).fit(X).kneighbors(queries, 7, return_distance=False)
    expected = exact(X, metric).kneighbors(queries.astype(float), 7, return_distance=False)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_distances_are_those_of_scikit_learn(rng, metric):
    X, queries = rows(rng), rows(rng, 20)
    found, _ = FeatureIndex(metric=metric).fit(X).kneighbors(queries, 7)
    expected, _ = exact(X, metric).kneighbors(queries.astype(float), 7)
    np.testing.assert_allclose(found, expected, atol=squared_bound(np.concatenate([X, queries])))


def test_euclidean_distances_are_those_of_scikit_learn(rng):
    X, queries = rows(rng), rows(rng, 20)
    found, _ = FeatureIndex(metric="l2").fit(X).kneighbors(queries, 7)
    expected, _ = exact(X, "l2").kneighbors(queries.astype(float), 7)
    bound = squared_bound(np.concatenate([X, queries]))
    np.testing.assert_allclose(found**2, expected**2, atol=bound)


@pytest.mark.parametrize("metric", METRICS)
def test_distances_grow(rng, metric):
    distances, _ = FeatureIndex(metric=metric).fit(rows(rng)).kneighbors(rows(rng, 9), 10)
    assert (np.diff(distances, axis=1) >= 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_without_queries_no_row_is_its_own_neighbour(rng, metric):
    X = rows(rng)
    found = FeatureIndex(metric=metric).fit(X).kneighbors(n_neighbors=79, return_distance=False)
    assert (np.sort(found, axis=1) == [np.delete(np.arange(80), i) for i in range(80)]).all()


def test_without_queries_the_neighbours_are_those_of_scikit_learn(rng):
    X = rows(rng)
    found = FeatureIndex().fit(X).kneighbors(return_distance=False)
    np.testing.assert_array_equal(found, exact(X, "cosine").kneighbors(return_distance=False))


def test_copies_of_one_row_are_neighbours_of_each_other():
    distances, found = FeatureIndex(metric="l2").fit(np.ones((6, 2))).kneighbors(n_neighbors=2)
    assert not distances.any()
    assert (found != np.arange(6)[:, None]).all()


@pytest.mark.parametrize("n", [50, 3000])
def test_blocks_of_queries_are_put_together_in_order(rng, monkeypatch, n):
    monkeypatch.setattr("pyfeat._tensors.BLOCK_BYTES", {"cpu": 0})
    X = rows(rng, n, 3)
    found = FeatureIndex(metric="l2").fit(X).kneighbors(X, 1, return_distance=False)
    assert found[:, 0].tolist() == list(range(n))


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_scores_of_similarities_fall(rng, metric):
    scores, _ = FeatureIndex(metric=metric).fit(rows(rng)).search(rows(rng, 9), k=10)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_scores_of_l2_are_squared_distances(rng):
    index = FeatureIndex(metric="l2").fit(rows(rng))
    queries = rows(rng, 9)
    scores, _ = index.search(queries, k=3)
    np.testing.assert_allclose(np.sqrt(scores), index.kneighbors(queries, 3)[0], rtol=EPS32)


@pytest.mark.parametrize(
    "ids",
    [np.arange(80) * 10, [f"photo {i}.jpg" for i in range(80)], [Path(str(i)) for i in range(80)]],
    ids=["integers", "text", "paths"],
)
def test_search_names_rows_by_id(rng, ids):
    X = rows(rng)
    _, found = FeatureIndex(metric="l2").fit(X, ids=ids).search(X[[7, 3]], k=1)
    assert found[:, 0].tolist() == [type(found[0, 0].item())(ids[i]) for i in (7, 3)]


def test_ids_are_positions_by_default(rng):
    X = rows(rng)
    assert FeatureIndex(metric="l2").fit(X).search(X[[7]], k=1)[1].tolist() == [[7]]


def test_float16_rows_are_accepted(rng):
    X = rows(rng).astype(np.float16)
    assert FeatureIndex(metric="l2").fit(X).kneighbors(X, 1)[1][:, 0].tolist() == list(range(80))


def test_an_all_zero_row_has_cosine_distance_one(rng):
    distances, _ = FeatureIndex().fit(rows(rng)).kneighbors(np.zeros((1, 6)), 3)
    assert distances.tolist() == [[1.0, 1.0, 1.0]]


def test_an_all_zero_row_has_cosine_distance_one_to_itself():
    distances, _ = FeatureIndex().fit(np.zeros((2, 6))).kneighbors(np.zeros((1, 6)), 2)
    assert distances.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (np.float32, 1e25),
        (np.float32, 1e-30),
        (np.float32, 1e-42),
        (np.float64, 1e200),
        (np.float64, 1e-200),
    ],
)
def test_the_cosine_does_not_depend_on_the_scale(rng, dtype, scale, kind):
    # Squares left the range of float32: rows became zero and every distance 1, or not a number.
    X, queries = rows(rng), rows(rng, 20)
    scaled = np.asarray(X * np.asarray(scale, np.float64), dtype)
    index = FeatureIndex().fit(kind(scaled))
    found, _ = index.kneighbors(queries, 7)
    # What the scaled numbers are, after rounding, is what is compared.
    expected, _ = exact(scaled.astype(np.float64) / scale, "cosine").kneighbors(
        queries.astype(float), 7
    )
    np.testing.assert_allclose(found, expected, atol=4 * 6 * EPS32)


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
@pytest.mark.parametrize(
    "big",
    [np.full((1, 3), 1e25, np.float32), np.full((1, 3), 1e200), torch.full((1, 3), 1e25)],
    ids=["float32", "float64", "tensor"],
)
def test_rows_whose_products_overflow_are_refused(metric, big):
    # faiss found nothing and said so with position -1, which named the last row, often twice.
    with pytest.raises(ValueError, match=rf"^X must have rows no longer than 2\^62 .* '{metric}'"):
        FeatureIndex(metric=metric).fit(big)
    with pytest.raises(ValueError, match=r"^X must have rows no longer than 2\^62 .*, got "):
        FeatureIndex(metric=metric).fit(np.eye(3)).search(big, 2)


@pytest.mark.parametrize("n", [3, 100])
def test_the_longest_rows_are_compared(n):
    # Few and many queries take two ways through faiss; both add squares of opposite rows.
    X = np.zeros((n, 2), np.float32)
    X[:, 0] = 2.0**62
    distances, found = (
        FeatureIndex(metric="l2").fit(np.concatenate([X[:1], -X[:1]])).kneighbors(X, 2)
    )
    assert distances.tolist() == [[0.0, 2.0**63]] * n
    assert found.tolist() == [[0, 1]] * n


def test_a_second_fit_drops_the_rows_of_the_first(rng):
    index = FeatureIndex().fit(rows(rng)).fit(rows(rng, 5))
    assert index.index_.ntotal == 5


def test_a_metric_set_after_the_fit_waits_for_the_next(rng):
    # Queries were treated by the new metric, rows by the old one.
    X, queries = rows(rng), rows(rng, 9)
    index = FeatureIndex(metric="cosine").fit(X)
    before = index.kneighbors(queries)
    index.set_params(metric="l2")
    np.testing.assert_array_equal(index.kneighbors(queries), before)
    expected = FeatureIndex(metric="l2").fit(X).kneighbors(queries)
    np.testing.assert_array_equal(index.fit(X).kneighbors(queries), expected)


def test_a_metric_set_after_the_fit_is_saved_as_set_and_as_fitted(rng, tmp_path):
    # The file knew the new metric only and mixed the two from then on.
    X, queries = rows(rng), rows(rng, 9)
    index = FeatureIndex(metric="cosine").fit(X).set_params(metric="l2")
    index.save(tmp_path / "index.safetensors")
    again = FeatureIndex.load(tmp_path / "index.safetensors")
    np.testing.assert_array_equal(again.kneighbors(queries), index.kneighbors(queries))
    assert again.metric == "l2"


def ids_too_few(X):
    return X[:, :4], range(3)


def row_too_long_in_the_last_block(X):
    return np.concatenate([X[:, :4], np.full((1, 4), 1e30)]), None


@pytest.mark.parametrize("fault", [ids_too_few, row_too_long_in_the_last_block])
def test_a_failed_fit_leaves_the_rows_of_the_one_before(rng, monkeypatch, fault):
    # The width, the ids and part of the rows were already the new ones.
    monkeypatch.setattr("pyfeat._tensors.BLOCK_BYTES", {"cpu": 0})
    X = rows(rng, 300)
    index = FeatureIndex(metric="l2").fit(X, ids=[f"{i}.jpg" for i in range(300)])
    before = index.search(X, 3)
    bad, ids = fault(X)
    with pytest.raises(ValueError, match=r"ids must have|X must have"):
        index.fit(bad, ids=ids)
    for old, new in zip(before, index.search(X, 3), strict=True):
        np.testing.assert_array_equal(old, new)


def test_column_names_go_with_the_rows_they_came_with(rng):
    pandas = pytest.importorskip("pandas")
    index = FeatureIndex().fit(pandas.DataFrame(rows(rng), columns=list("abcdef")))
    assert not hasattr(index.fit(rows(rng)), "feature_names_in_")


def test_ids_in_foreign_byte_order_come_back_as_a_tensor(rng):
    # torch takes arrays in the machine's byte order only.
    X = torch.from_numpy(rows(rng))
    foreign = np.arange(80).astype(np.dtype(np.int64).newbyteorder())
    _, found = FeatureIndex(metric="l2").fit(X, ids=foreign).search(X, 1)
    assert found[:, 0].tolist() == list(range(80))


def test_tensors_give_tensors(rng):
    X = torch.from_numpy(rows(rng))
    outputs = FeatureIndex().fit(X).kneighbors(X, 2) + FeatureIndex().fit(X).search(X, 2)
    assert all(isinstance(out, torch.Tensor) for out in outputs)


# --- store views -----------------------------------------------------------------------------


def test_a_view_is_searched_by_position(rng, tmp_path):
    X = rows(rng, 300)
    index = FeatureIndex(metric="l2").fit(RowsOnDisk(tmp_path / "rows.npy", X))
    assert index.kneighbors(X, 1, return_distance=False)[:, 0].tolist() == list(range(300))


def test_a_view_without_queries_keeps_its_positions(rng, tmp_path):
    X = rows(rng, 300)
    index = FeatureIndex().fit(RowsOnDisk(tmp_path / "rows.npy", X))
    np.testing.assert_array_equal(
        index.kneighbors(return_distance=False),
        FeatureIndex().fit(X).kneighbors(return_distance=False),
    )


def test_queries_may_be_a_view(rng, tmp_path):
    X = rows(rng, 300)
    view = RowsOnDisk(tmp_path / "rows.npy", X)
    found = FeatureIndex(metric="l2").fit(X).kneighbors(view, 1, return_distance=False)
    assert found[:, 0].tolist() == list(range(300))


def test_queries_of_another_space_are_refused(rng, tmp_path):
    X = rows(rng)
    index = FeatureIndex().fit(RowsOnDisk(tmp_path / "a.npy", X))
    other = RowsOnDisk(tmp_path / "b.npy", X, Space(6, parts={"weights": "v"}))
    with pytest.raises(SpaceError, match="weights is 'w' here and 'v' there"):
        index.search(other, k=1)


# --- saving ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [None, [f"ä{i}" for i in range(80)]], ids=["positions", "text"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_saved_index_finds_the_same(rng, tmp_path, metric, ids):
    X, queries = rows(rng), rows(rng, 9)
    index = FeatureIndex(metric=metric).fit(X, ids=ids)
    index.save(tmp_path / "index.safetensors")
    again = FeatureIndex.load(tmp_path / "index.safetensors")
    for before, after in zip(index.search(queries, 4), again.search(queries, 4), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_saved_index_of_a_view_keeps_positions_and_space(rng, tmp_path):
    X = rows(rng)
    view = RowsOnDisk(tmp_path / "rows.npy", X)
    FeatureIndex(metric="l2").fit(view).save(tmp_path / "index.safetensors")
    again = FeatureIndex.load(tmp_path / "index.safetensors")
    assert again.space_ == view.space
    assert again.kneighbors(X, 1, return_distance=False)[:, 0].tolist() == list(range(80))


def test_a_clone_is_empty(rng):
    with pytest.raises(NotFittedError):
        clone(FeatureIndex().fit(rows(rng))).search(rows(rng), k=1)


# --- refusals --------------------------------------------------------------------------------


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"kind must be one of \['exact'\], got 'hnsw'"):
        FeatureIndex("hnsw").fit(np.eye(3))


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"metric must be one of .*'l2'\], got 'l1'"):
        FeatureIndex(metric="l1").fit(np.eye(3))


@pytest.mark.parametrize("k", [0, 4])
def test_more_neighbours_than_rows_are_refused(k):
    with pytest.raises(ValueError, match=rf"k must be in \[1, 3\], got {k}"):
        FeatureIndex().fit(np.eye(3)).search(np.eye(3), k)


@pytest.mark.parametrize("k", [np.int64(2), np.uint8(2)])
def test_counts_may_be_integers_of_numpy(k):
    # They went on to faiss as they were, whose wrapper refused them.
    index = FeatureIndex().fit(np.eye(3))
    assert index.search(np.eye(3), k)[1].shape == (3, 2)
    assert index.kneighbors(np.eye(3), k)[1].shape == (3, 2)
    assert index.kneighbors(n_neighbors=k)[1].shape == (3, 2)


@pytest.mark.parametrize("k", [2.0, None, "2"])
def test_counts_of_another_type_are_refused(k):
    # They failed inside a comparison or inside faiss, in its words.
    index = FeatureIndex().fit(np.eye(3))
    with pytest.raises(TypeError, match=f"^k must be an integer, got {k!r}"):
        index.search(np.eye(3), k)
    with pytest.raises(TypeError, match=f"^n_neighbors must be an integer, got {k!r}"):
        index.kneighbors(np.eye(3), k)


def test_without_queries_one_neighbour_less_is_there():
    with pytest.raises(ValueError, match=r"n_neighbors must be in \[1, 2\], got 3"):
        FeatureIndex().fit(np.eye(3)).kneighbors(n_neighbors=3)


def test_queries_of_another_width_are_refused():
    with pytest.raises(ValueError, match="X has 2 features, but FeatureIndex is expecting 3"):
        FeatureIndex().fit(np.eye(3)).search(np.eye(2), 1)


def test_ids_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"ids must have shape \(3,\), got \(2,\)"):
        FeatureIndex().fit(np.eye(3), ids=[1, 2])


@pytest.mark.parametrize("ids", [[0.5, 1.0, 2.0], [("a",), None, 3]], ids=["floats", "objects"])
def test_ids_of_other_types_are_refused(ids):
    names = np.empty(3, dtype=object) if ids[0] == ("a",) else np.array(ids)
    with pytest.raises(TypeError, match="ids must be integers or text"):
        FeatureIndex().fit(np.eye(3), ids=names)


def test_a_missing_faiss_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "pyfeat\[index\]", or "pyfeat\[gpu\]"'):
        FeatureIndex().fit(np.eye(3))
