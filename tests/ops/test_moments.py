"""The op `moments` against its float64 reference, numpy and scikit-learn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyfeat.errors import BackendError
from pyfeat.ops import Moments, explain, moments
from tests.ops.conftest import RunOn
from tests.rows_on_disk import RowsOnDisk

EPS32, EPS64 = np.finfo(np.float32).eps, np.finfo(np.float64).eps
# Most rows that are summed in float32 before float64 takes over: csrc/bindings/moments.cpp adds
# slabs of 256 to chunks of 4096, and Triton's launcher sums as many in one product.
SUMMED = 256 + 4096 / 256
# Rounding of a centred number enters a product twice; its weight, a root, as often again.
ROUNDED = 8


def quiet():
    """Keep numpy from warning, which Triton's interpreter computes with."""
    return np.errstate(over="ignore", invalid="ignore")


def rows_of(rng, n, d, dtype=torch.float32, mean=3.0):
    return torch.from_numpy(rng.standard_normal((n, d)) + mean).to(dtype)


def bound(n, eps=EPS32):
    """Return the largest error of scatter[i, j], in units of sqrt(scatter[i, i] scatter[j, j])."""
    return eps * (min(n, SUMMED) + ROUNDED)


def scatter_error(found, expected):
    """Return max |difference| / sqrt(s_ii s_jj), of every group."""
    got, true = (torch.as_tensor(m.scatter).double().cpu() for m in (found, expected))
    diagonal = got.ndim == torch.as_tensor(found.mean).ndim
    spread = true if diagonal else true.diagonal(dim1=-2, dim2=-1)
    scale = spread if diagonal else (spread[..., :, None] * spread[..., None, :]).sqrt()
    difference = (got - true).abs()
    if not difference.numel():
        return 0.0
    return float(torch.where(scale > 0, difference / scale, difference).max())


def mean_error(found, expected):
    """Return max |difference| of the means."""
    got, true = (torch.as_tensor(m.mean).double().cpu() for m in (found, expected))
    return float((got - true).abs().max()) if got.numel() else 0.0


def choices(rng, n):
    """Return every kind of weights and groups for n rows."""
    some = torch.from_numpy(rng.random(n) > 0.3)
    real = torch.from_numpy(rng.random(n)) * some
    labels = torch.from_numpy(rng.integers(-1, 3, n))
    return {
        "plain": {},
        "bool weights": {"weights": some},
        "weights": {"weights": real},
        "groups": {"groups": labels, "n_groups": 4},
        "weights and groups": {"weights": real, "groups": labels, "n_groups": 4},
    }


KINDS = [*choices(np.random.default_rng(0), 1)]


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 33), (61, 29), (257, 5)])
def test_equals_reference(backend, rng, n, d, kind, diagonal):
    X = rows_of(rng, n, d)
    given = {"diagonal": diagonal, **choices(rng, n)[kind]}
    expected = moments(X, backend="reference", **given)
    found = moments(X.to(backend.device), backend=backend.name, **given)
    assert scatter_error(found, expected) <= bound(n)
    # Rows lie within 6 of 0: their mean is off by the rounding of one of them, and of a short sum.
    assert mean_error(found, expected) <= 6 * EPS32
    totals = (torch.as_tensor(m.total).cpu() for m in (found, expected))
    assert float(torch.sub(*totals).abs().max()) <= n * EPS32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_are_read_as_they_are_stored(backend, rng, dtype):
    X = rows_of(rng, 83, 37, dtype)
    found = moments(X.to(backend.device), backend=backend.name)
    assert scatter_error(found, moments(X, backend="reference")) <= bound(83)


def test_int8_rows_count_with_their_scale(backend, rng):
    X = torch.from_numpy(rng.integers(-127, 128, (83, 37)).astype(np.int8))
    scales = torch.from_numpy(rng.random(83).astype(np.float32) + 0.5)
    expected = moments(X.double() * scales[:, None].double(), backend="reference")
    found = moments(X.to(backend.device), scales=scales, backend=backend.name)
    assert scatter_error(found, expected) <= bound(83)


def test_int8_rows_without_scale_count_once(backend, rng):
    X = torch.from_numpy(rng.integers(-127, 128, (83, 5)).astype(np.int8))
    found = moments(X.to(backend.device), backend=backend.name)
    assert scatter_error(found, moments(X.double())) <= bound(83)


def test_many_chunks_and_tiles_equal_reference(rng):
    X = rows_of(rng, 9001, 301)
    found, expected = moments(X, backend="cpp"), moments(X, backend="reference")
    assert scatter_error(found, expected) <= bound(9001)


def test_ten_groups_of_many_chunks_equal_reference(rng):
    X = rows_of(rng, 9001, 70)
    labels = torch.from_numpy(rng.integers(0, 10, 9001))
    found, expected = (moments(X, groups=labels, backend=b) for b in ("cpp", "reference"))
    assert scatter_error(found, expected) <= bound(9001)


def test_result_is_symmetric_to_the_bit(backend, rng):
    scatter = moments(rows_of(rng, 50, 71).to(backend.device), backend=backend.name).scatter
    assert torch.equal(scatter, scatter.T)


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_large_mean_costs_no_digits(backend, rng, diagonal):
    X = rows_of(rng, 500, 3, torch.float64) * 2**-4 + 2**10
    X = X.float()
    expected = moments(X.double(), diagonal=diagonal)
    found = moments(X.to(backend.device), diagonal=diagonal, backend=backend.name)
    assert scatter_error(found, expected) <= bound(500)


def test_a_mean_that_drifts_with_the_rows_costs_no_digits(backend, rng):
    X = rows_of(rng, 600, 3)
    X += torch.linspace(0, 1000, 600)[:, None]
    found = moments(X.to(backend.device), backend=backend.name)
    assert scatter_error(found, moments(X, backend="reference")) <= bound(600)


def test_one_heavy_row_costs_no_digits(backend, rng):
    # The mean is the heavy row's, far from the others' in units of the weighted spread.
    X = rows_of(rng, 200, 3)
    weights = torch.ones(200)
    weights[77] = 2.0**20
    found = moments(X.to(backend.device), weights, backend=backend.name)
    expected = moments(X, weights, backend="reference")
    # What is left of the heavy row: its distance to the rounded mean, EPS32 * 6, at full weight.
    left = 2**20 * (6 * EPS32) ** 2 / float(expected.scatter.diagonal().min())
    assert scatter_error(found, expected) <= bound(200) + left


def test_equal_rows_have_no_scatter(backend):
    X = torch.full((300, 4), 0.1)
    found = moments(X.to(backend.device), backend=backend.name)
    # Centred rows are at most the rounding of their mean.
    assert float(found.scatter.abs().max()) <= 300 * (0.1 * EPS32) ** 2


def test_covariance_is_that_of_numpy(rng):
    X = rng.standard_normal((50, 3)) + 5.0
    weights = rng.integers(0, 3, size=50)
    found = moments(X, weights).covariance(ddof=1)
    np.testing.assert_allclose(found, np.cov(X.T, fweights=weights), atol=50 * 30 * EPS64)


def test_covariance_is_that_of_scikit_learn(rng):
    from sklearn.covariance import EmpiricalCovariance

    X = rng.standard_normal((50, 3)) + 5.0
    expected = EmpiricalCovariance().fit(X).covariance_
    np.testing.assert_allclose(moments(X).covariance(), expected, atol=50 * 30 * EPS64)


@pytest.mark.parametrize("diagonal", [False, True])
def test_gram_is_the_product_of_rows(rng, diagonal):
    X = rng.standard_normal((50, 3)) + 5.0
    expected = X.T @ X
    found = moments(X, diagonal=diagonal).gram()
    expected = expected.diagonal() if diagonal else expected
    np.testing.assert_allclose(found, expected, rtol=50 * EPS64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("diagonal", [False, True])
def test_merged_halves_are_the_whole(rng, kind, diagonal):
    X = rng.standard_normal((90, 4)) + 5.0
    given = choices(rng, 90)[kind]
    n_groups = given.pop("n_groups", None)
    halves = [
        moments(
            X[part],
            **{name: values[part] for name, values in given.items()},
            n_groups=n_groups,
            diagonal=diagonal,
        )
        for part in (slice(0, 40), slice(40, 90))
    ]
    whole = moments(X, **given, n_groups=n_groups, diagonal=diagonal)
    merged = halves[0].merge(halves[1])
    np.testing.assert_allclose(merged.total, whole.total, rtol=90 * EPS64)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=90 * EPS64)
    np.testing.assert_allclose(merged.scatter, whole.scatter, atol=90 * 30 * EPS64)
    np.testing.assert_allclose(merged.covariance(1), whole.covariance(1), atol=90 * 30 * EPS64)


def test_merging_nothing_changes_nothing(rng):
    some, none = moments(rng.standard_normal((9, 2))), moments(np.zeros((0, 2)))
    for merged in (some.merge(none), none.merge(some)):
        assert all(np.array_equal(a, b) for a, b in zip(merged, some, strict=True))


def test_nothing_merged_with_nothing_is_nothing():
    none = moments(np.zeros((0, 2)), groups=np.zeros(0, int), n_groups=3)
    merged = none.merge(none)
    assert all(np.array_equal(a, b) for a, b in zip(merged, none, strict=True))


def test_merge_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"other must have mean and scatter of shapes \(2,\)"):
        moments(np.ones((3, 2))).merge(moments(np.ones((3, 4))))


@pytest.mark.parametrize("shape", [(0, 3), (0, 0), (4, 0), (1, 3)])
def test_no_rows_or_columns_give_zeros(backend, shape):
    n, d = shape
    found = moments(torch.ones(shape, device=backend.device), backend=backend.name)
    assert found.total == n
    assert found.mean.shape == (d,)
    assert torch.equal(found.scatter.cpu(), torch.zeros((d, d), dtype=torch.float64))


def test_a_group_without_rows_is_zero(backend, rng):
    X = rows_of(rng, 20, 3).to(backend.device)
    found = moments(X, groups=torch.full((20,), 2), n_groups=4, backend=backend.name)
    empty = [0, 1, 3]
    assert found.total.tolist() == [0, 0, 20, 0]
    assert not found.mean[empty].any()
    assert not found.scatter[empty].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_gives_what_its_rows_give(rng, tmp_path, kind):
    X = rng.standard_normal((300, 4)).astype(np.float32)
    given = choices(rng, 300)[kind]
    view = RowsOnDisk(tmp_path / "rows.npy", X)
    assert scatter_error(moments(view, **given), moments(X, **given)) <= 2 * bound(300)


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_a_view_of_float16_is_streamed(rng, tmp_path, name):
    X = rng.standard_normal((300, 4)).astype(np.float16)
    view = RowsOnDisk(tmp_path / "rows.npy", X)
    found = moments(view, backend=name)
    assert scatter_error(found, moments(X.astype(float))) <= bound(300)


def test_left_out_rows_may_hold_anything(backend, rng):
    X = rows_of(rng, 30, 3)
    X[3:5] = float("nan")
    keep = torch.ones(30, dtype=torch.bool)
    keep[3:5] = False
    found = moments(X.to(backend.device), keep, backend=backend.name)
    expected = moments(X[keep], backend="reference")
    assert scatter_error(found, expected) <= bound(30)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_refused(backend, rng, value):
    X = rows_of(rng, 30, 3)
    X[7, 1] = value
    with quiet(), pytest.raises(ValueError, match=r"X contains (NaN|infinity)"):
        moments(X.to(backend.device), backend=backend.name)


def test_a_view_with_nan_is_refused(rng, tmp_path):
    X = rng.standard_normal((300, 4))
    X[200, 2] = np.nan
    with pytest.raises(ValueError, match="X contains NaN"):
        moments(RowsOnDisk(tmp_path / "rows.npy", X))


def test_squares_that_overflow_are_refused(backend, rng):
    X = rows_of(rng, 30, 3) * 1e25
    with (
        quiet(),
        pytest.raises(ValueError, match=r"rows must hold .* squares add up in float32"),
    ):
        moments(X.to(backend.device), name="rows", backend=backend.name)


def test_small_numbers_keep_their_digits(backend, rng):
    # The smallest square is 2^-120 or so: far from where float32 loses digits, 2^-126.
    X = rows_of(rng, 30, 3) * 2.0**-55
    found = moments(X.to(backend.device), backend=backend.name)
    expected = moments(X, backend="reference")
    assert scatter_error(found, expected) <= bound(30)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2],
        lambda a: a[:, 1:4],
        lambda a: a[:, ::3],
        lambda a: a[::-1],
        lambda a: a[:, ::-1],
        lambda a: a.T,
        lambda a: np.broadcast_to(a[:1], (30, 9)),
    ],
)
@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_strides_do_not_matter(rng, name, view):
    X = view(rng.standard_normal((20, 9)).astype(np.float32))
    found, expected = moments(X, backend=name), moments(X.copy(), backend=name)
    assert np.array_equal(found.scatter, expected.scatter)


def test_read_only_memmap_is_read(rng, tmp_path):
    X = rng.standard_normal((20, 9)).astype(np.float32)
    np.save(tmp_path / "rows.npy", X)
    found = moments(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    assert np.array_equal(found.scatter, moments(X).scatter)


def test_rows_are_not_changed(backend, rng):
    X = rows_of(rng, 30, 5).to(backend.device)
    before = X.clone()
    moments(X, backend=backend.name)
    assert torch.equal(X, before)


def test_arrays_give_arrays_and_tensors_tensors(rng):
    X = rng.standard_normal((9, 2))
    assert all(isinstance(part, np.ndarray) for part in moments(X)[1:])
    assert all(isinstance(part, Tensor) for part in moments(torch.from_numpy(X))[1:])


def test_the_number_of_threads_changes_no_bit(monkeypatch, rng):
    X = rows_of(rng, 5000, 150)
    found = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("PYFEAT_NUM_THREADS", threads)
        found.append(moments(X, backend="cpp").scatter)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_eight_threads_give_the_same_bits(backend, rng):
    if backend == RunOn("triton", "cpu"):
        pytest.skip("Triton's interpreter is not made for threads")
    X = [rows_of(rng, 60 + 3 * i, 40).to(backend.device) for i in range(8)]

    def run(rows):
        return moments(rows, backend=backend.name).scatter

    alone = [run(rows) for rows in X]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(run, X)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    n=st.integers(0, 40),
    d=st.integers(1, 70),
    offset=st.integers(0, 7),
    n_groups=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_cpp_equals_reference_for_any_shape(n, d, offset, n_groups, seed):
    rng = np.random.default_rng(seed)
    store = torch.from_numpy(rng.standard_normal(n * d + offset).astype(np.float32))
    X = store[offset:].reshape(n, d)  # an address that is no multiple of a vector
    labels = rng.integers(-1, n_groups, n)
    found, expected = (
        moments(X, groups=labels, n_groups=n_groups, backend=b) for b in ("cpp", "reference")
    )
    assert scatter_error(found, expected) <= bound(n)


def test_reference_has_a_gradient(rng):
    X = torch.from_numpy(rng.standard_normal((7, 3))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moments(x).scatter, X)


def test_cpp_refuses_what_needs_a_gradient(rng):
    X = rows_of(rng, 5, 2).requires_grad_()
    with pytest.raises(BackendError, match="X must not require a gradient"):
        moments(X, backend="cpp")


@pytest.mark.parametrize("size", [1e-50, 1e50])
def test_weights_beyond_float32_run_on_the_reference(rng, size):
    # Bug: weights of 1e-50 were rounded to 0 and left every row out; those of 1e50 became infinite.
    X = rng.standard_normal((5, 2), dtype=np.float32)
    found, expected = moments(X, np.full(5, size)), moments(X.astype(float))
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.scatter / size, expected.scatter, rtol=1e-12)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32])
def test_weights_and_groups_may_be_unsigned(rng, kind):
    # Bug: torch compares no unsigned integers of more than one byte.
    X, numbers = rng.standard_normal((5, 2), dtype=np.float32), np.array([0, 1, 2, 1, 0])
    found = moments(X, numbers.astype(kind), groups=numbers.astype(kind))
    assert np.array_equal(found.scatter, moments(X, numbers, groups=numbers).scatter)


def test_cpp_refuses_float64():
    reasons = explain("moments", torch.ones(3, 2, dtype=torch.float64))
    assert "float64" in reasons["cpp"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"X": np.ones(3)}, ValueError, r"X must have shape \(n, d\), got \(3,\)"),
        ({"X": [[1.0]]}, TypeError, "X must be an ndarray or a Tensor, got list"),
        ({"X": np.ones((3, 2), int)}, TypeError, "X must hold floating point numbers or int8"),
        ({"weights": np.ones(2)}, ValueError, r"weights must have shape \(3,\), got \(2,\)"),
        ({"weights": np.array([1, -1, 1])}, ValueError, "weights must be at least 0, got -1.0"),
        ({"weights": np.array([1, np.nan, 1])}, ValueError, "weights must be finite, got NaN"),
        ({"weights": np.ones(3, complex)}, TypeError, "weights must hold real numbers"),
        ({"scales": np.array([1, np.inf, 1])}, ValueError, "scales must be finite, got NaN or"),
        ({"groups": np.zeros(2, int)}, ValueError, r"groups must have shape \(3,\), got \(2,\)"),
        ({"groups": np.zeros(3)}, TypeError, "groups must hold integers, got torch.float64"),
        ({"groups": np.zeros(3, np.uint64)}, TypeError, "groups must hold integers that int64"),
        ({"groups": np.arange(3), "n_groups": 3.0}, TypeError, "n_groups must be an integer, got"),
        ({"groups": np.arange(3), "n_groups": 2}, ValueError, "groups must be below n_groups=2"),
        ({"groups": np.full(3, -1)}, ValueError, "n_groups must be at least 1, got 0"),
        ({"n_groups": 2}, ValueError, "n_groups must be left out without groups, got 2"),
    ],
)
def test_rejects(given, error, message):
    with pytest.raises(error, match=message):
        moments(**{"X": np.ones((3, 2)), **given})


def test_moments_are_a_tuple_of_three():
    total, mean, scatter = moments(np.ones((2, 1)))
    assert Moments(total, mean, scatter).total == 2.0
