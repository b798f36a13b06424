"""The op `rbf_sum` against its float64 reference, scikit-learn and autograd."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise

from pyfeat.errors import BackendError
from pyfeat.ops import Gaussian, Laplacian, Linear, Polynomial, _rbf_sum_device, explain, rbf_sum

EPS = 2.0**-24  # half a unit in the last place of float32
FIELDS = ("value", "x_sums", "y_sums", "x_gradient", "y_gradient")
D = 7
KERNELS = {
    "gaussian": Gaussian(0.5 / D),
    "chain": Gaussian([0.1 / D, 0.2 / D, 0.4 / D, 1.6 / D]),
    "bandwidths": Gaussian([0.1 / D, 0.3 / D, 3 / D]),
    "laplacian": Laplacian(0.3 / D),
    "polynomial": Polynomial(0.5 / D, 0.7, 3),
    "linear": Linear(),
}
SHAPES = [(1, 1, 1), (5, 3, D), (67, 131, D), (129, 2, 33)]


def rows(n, d, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator).to(device)


def weights(n, seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, generator=generator) + 0.5).to(device)


def largest_error(got, expected):
    worst = 0.0
    for name in FIELDS:
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None and a.numel():
            assert a.shape == b.shape, name
            size = b.double().abs().max().clamp(min=1e-300)
            worst = max(worst, float((a.double() - b.double()).abs().max() / size))
    return worst


def bound(n, m, d):
    """Return what rounding allows: d + 4 products to a distance, n + m terms, exp and squaring.

    Random signs leave the square root of the first two; three standard deviations. Positive
    weights: results are of the size of their terms, but gradients are differences, hence 4.
    """
    return 4 * EPS * (3 * (d + 4) ** 0.5 + 3 * (n + m) ** 0.5 + 32)


def both(backend, X, Y=None, **how):
    got = rbf_sum(X, Y, backend=backend.name, **how)
    return got, rbf_sum(X, Y, backend="reference", **how)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_two_samples_equal_the_reference(backend, name, n, m, d):
    X, Y = rows(n, d, 1, backend.device), rows(m, d, 2, backend.device)
    how = {"x_weights": weights(n, 3, backend.device), "y_weights": weights(m, 4, backend.device)}
    got, expected = both(backend, X, Y, kernel=KERNELS[name], gradient="rows", **how)
    assert largest_error(got, expected) <= bound(n, m, d)


@pytest.mark.parametrize("name", ["gaussian", "chain", "polynomial"])
@pytest.mark.parametrize("gradient", [None, "weights"])
def test_less_is_the_same_as_the_reference_gives(backend, name, gradient):
    X, Y = rows(67, D, 1, backend.device), rows(30, D, 2, backend.device)
    for right in (Y, None):
        got, expected = both(backend, X, right, kernel=KERNELS[name], gradient=gradient)
        assert largest_error(got, expected) <= bound(67, 67, D)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize(("n", "d"), [(2, 1), (131, D)])
def test_one_sample_equals_the_reference(backend, name, diagonal, n, d):
    X, w = rows(n, d, 1, backend.device), weights(n, 3, backend.device)
    how = {"x_weights": w, "gradient": "rows", "diagonal": diagonal}
    got, expected = both(backend, X, kernel=KERNELS[name], **how)
    assert largest_error(got, expected) <= bound(n, n, d)


@pytest.mark.parametrize(("n", "m"), [(700, 901), (1500, 130), (90, 1500)])
def test_several_chunks_equal_the_reference(cpp, n, m):
    X, Y = rows(n, 37, 1), rows(m, 37, 2)
    got, expected = both(cpp, X, Y, kernel=Gaussian(0.01), gradient="rows")
    assert largest_error(got, expected) <= bound(n, m, 37)


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("n", [113, 1500])
def test_several_chunks_of_one_sample_equal_the_reference(cpp, n, diagonal):
    X = rows(n, 21, 1)
    how = {"kernel": Gaussian(0.01), "gradient": "rows", "diagonal": diagonal}
    got, expected = both(cpp, X, **how)
    assert largest_error(got, expected) <= bound(n, n, 21)


@pytest.mark.parametrize("name", ["chain", "laplacian"])
@pytest.mark.parametrize("m", [70, None])
def test_slabs_of_rows_add_up(backend, monkeypatch, name, m):
    if backend.name == "cpp":
        pytest.skip("has no slabs")
    monkeypatch.setattr(_rbf_sum_device, "_SLAB_NUMBERS", 1)  # one tile high
    X, Y = rows(150, 3, 1, backend.device), None if m is None else rows(m, 3, 2, backend.device)
    got, expected = both(
        backend, X, Y, kernel=KERNELS[name], gradient="rows", diagonal=Y is not None
    )
    assert largest_error(got, expected) <= bound(150, m or 150, 3)


@pytest.fixture
def cpp(backend):
    """Return the backend, only where it is a native one: large shapes take others too long."""
    if backend.name == "triton":
        pytest.skip("large shapes take the interpreter too long")
    return backend


@pytest.mark.parametrize(
    ("kernel", "name", "options"),
    [
        (Gaussian(0.1), "rbf", {"gamma": 0.1}),
        (Laplacian(0.1), "laplacian", {"gamma": 0.1}),
        (Polynomial(0.2, 0.5, 2), "poly", {"gamma": 0.2, "coef0": 0.5, "degree": 2}),
        (Linear(), "linear", {}),
    ],
)
def test_sums_are_those_of_scikit_learns_kernel(backend, kernel, name, options):
    X, Y = rows(9, 5, 1), rows(14, 5, 2)
    k = pairwise.pairwise_kernels(X.double(), Y.double(), metric=name, **options)
    got = rbf_sum(
        X.to(backend.device),
        Y.to(backend.device),
        kernel=kernel,
        gradient="weights",
        backend=backend.name,
    )
    size = np.abs(k).sum()
    assert abs(float(got.value) - k.sum()) <= bound(9, 14, 5) * size
    assert np.abs(got.x_sums.cpu().numpy() - k.sum(axis=1)).max() <= bound(9, 14, 5) * size


def pairs(kernel, X, Y):
    """Return the matrix of kernel values, from differences, to be differentiated."""
    difference = X[:, None] - Y
    if isinstance(kernel, Gaussian):
        squared = difference.square().sum(dim=2)
        return sum(torch.exp(-gamma * squared) for gamma in kernel.gammas)
    if isinstance(kernel, Laplacian):
        return torch.exp(-kernel.gamma * difference.abs().sum(dim=2))
    product = X @ Y.T
    if isinstance(kernel, Linear):
        return product
    return (kernel.gamma * product + kernel.coef0) ** kernel.degree


@pytest.mark.parametrize("name", KERNELS)
def test_reference_gradient_is_that_of_the_formula(name):
    X, Y = rows(11, 4, 1).double().requires_grad_(), rows(8, 4, 2).double().requires_grad_()
    wx, wy = weights(11, 3).double(), weights(8, 4).double()
    (wx @ pairs(KERNELS[name], X, Y) @ wy).backward()
    got = rbf_sum(
        X.detach(), Y.detach(), kernel=KERNELS[name], x_weights=wx, y_weights=wy, gradient="rows"
    )
    torch.testing.assert_close(got.x_gradient, X.grad)
    torch.testing.assert_close(got.y_gradient, Y.grad)


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("name", KERNELS)
def test_reference_gradient_of_one_sample_counts_both_roles(name, diagonal):
    X = rows(11, 4, 1).double().requires_grad_()
    counted = torch.ones(11, 11, dtype=torch.float64) - (0 if diagonal else 1) * torch.eye(11)
    (pairs(KERNELS[name], X, X) * counted).sum().backward()
    got = rbf_sum(X.detach(), kernel=KERNELS[name], gradient="rows", diagonal=diagonal)
    torch.testing.assert_close(got.x_gradient, X.grad)


@pytest.mark.parametrize("name", ["chain", "laplacian", "polynomial"])
def test_backward_gives_the_gradients_of_the_op(backend, name):
    X, Y, wx = rows(9, 3, 1, backend.device), rows(6, 3, 2, backend.device), weights(9, 3)
    wx = wx.to(backend.device)
    how = {"kernel": KERNELS[name], "backend": backend.name}
    expected = rbf_sum(X, Y, x_weights=wx, gradient="rows", **how)
    inputs = [t.clone().requires_grad_() for t in (X, Y, wx)]
    (3 * rbf_sum(inputs[0], inputs[1], x_weights=inputs[2], **how).value).backward()
    fields = (expected.x_gradient, expected.y_gradient, expected.x_sums)
    for tensor, gradient in zip(inputs, fields, strict=True):
        torch.testing.assert_close(tensor.grad, 3 * gradient)


def test_backward_of_one_sample_doubles_the_sums_for_the_weights():
    X, w = rows(9, 3, 1), weights(9, 2).requires_grad_()
    sums = rbf_sum(X, kernel=Gaussian(0.2), x_weights=w, gradient="weights")
    sums.value.backward()
    torch.testing.assert_close(w.grad, 2 * sums.x_sums)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("n", "m", "d"), [(0, 3, 2), (3, 0, 2), (0, 0, 0)])
def test_no_rows_sum_to_zero(backend, name, n, m, d):
    X, Y = rows(n, d, 1, backend.device), rows(m, d, 2, backend.device)
    got, expected = both(backend, X, Y, kernel=KERNELS[name], gradient="rows")
    assert float(got.value) == 0
    assert largest_error(got, expected) == 0


@pytest.mark.parametrize(("name", "k"), [("gaussian", 1), ("chain", 4), ("laplacian", 1)])
def test_rows_without_features_are_equal(backend, name, k):
    X, Y = rows(5, 0, 1, backend.device), rows(3, 0, 2, backend.device)
    got = rbf_sum(X, Y, kernel=KERNELS[name], backend=backend.name)
    assert float(got.value) == 15 * k


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_bad_row_makes_its_pairs_nan_and_no_others(backend, name, bad):
    X, Y = rows(6, 3, 1, backend.device), rows(5, 3, 2, backend.device)
    X[2, 1] = bad
    got, expected = both(backend, X, Y, kernel=KERNELS[name], gradient="rows")
    assert got.value.isnan()
    assert got.x_sums.isnan().tolist() == [i == 2 for i in range(6)]
    assert got.y_sums.isnan().all()
    assert torch.equal(got.x_gradient.isnan(), expected.x_gradient.isnan())
    assert got.y_gradient.isnan().all()


@pytest.mark.parametrize("name", ["gaussian", "laplacian"])
def test_a_huge_row_is_far_from_the_others(backend, name):
    X = rows(40, 3, 1, backend.device)
    X[7] = 1e15
    got, expected = both(backend, X, kernel=KERNELS[name], gradient="weights")
    assert float(got.x_sums[7]) == 1
    assert largest_error(got, expected) <= bound(40, 40, 3)


@pytest.mark.parametrize(
    ("x", "y", "kernel"),
    [
        ([[-1e5]], [[1e5]], Polynomial(1.0, 1e10, 5)),  # (x y + c)^5 = 0, its slope times c = inf
        ([[1e10, 0.0], [0.0, 1e10]], None, Polynomial(1.0, 1.0, 3)),  # k(x, x) = inf, left out
    ],
    ids=["cancelled", "diagonal"],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # the interpreter's numpy
def test_infinities_that_no_pair_has_stay_out(backend, x, y, kernel):
    X = torch.tensor(x, device=backend.device)
    Y = None if y is None else torch.tensor(y, device=backend.device)
    how = {"diagonal": y is not None, "gradient": "rows"}
    got, expected = both(backend, X, Y, kernel=kernel, **how)
    assert largest_error(got, expected) <= bound(2, 2, 2)


@pytest.mark.parametrize("name", KERNELS)
def test_a_bad_row_left_out_with_itself_is_nan(backend, name):
    X = torch.full((1, 2), torch.nan, device=backend.device)
    how = {"kernel": KERNELS[name], "diagonal": False, "gradient": "rows"}
    got, expected = both(backend, X, **how)
    for field in ("value", "x_sums", "x_gradient"):
        assert getattr(expected, field).isnan().all()
        assert getattr(got, field).isnan().all()


@pytest.mark.parametrize("diagonal", [True, False])
def test_equal_features_pull_nothing(backend, diagonal):
    X = rows(70, 3, 1, backend.device).round()  # many equal numbers
    X[:, 2] = 1
    how = {"kernel": Laplacian(0.3), "diagonal": diagonal, "gradient": "rows"}
    got, expected = both(backend, X, **how)
    assert torch.all(got.x_gradient[:, 2] == 0)
    assert largest_error(got, expected) <= bound(70, 70, 3)


def test_a_common_offset_costs_no_digits(backend):
    X, Y = rows(50, D, 1, backend.device), rows(40, D, 2, backend.device)
    X, Y = (X * 64).round() / 64 + 8192, (Y * 64).round() / 64 + 8192  # exact in float32
    got, expected = both(backend, X, Y, kernel=Gaussian(0.1), gradient="rows")
    assert largest_error(got, expected) <= bound(50, 40, D)


@pytest.fixture
def clusters(backend):
    """Return rows in two tight clusters, where the backend keeps the digits of their distances."""
    if backend.name != "cpp":
        pytest.skip("distances are products only")
    X = rows(300, D, 1) * 0.01
    X[:150] += 100
    return X


@pytest.mark.parametrize("gammas", [50.0, [50.0, 100.0, 120.0]])
@pytest.mark.parametrize("itself", [True, False])
def test_tight_clusters_far_apart_keep_their_digits(backend, clusters, gammas, itself):
    Y = None if itself else clusters[::2] + 0.001
    got, expected = both(backend, clusters, Y, kernel=Gaussian(gammas), gradient="weights")
    assert largest_error(got, expected) <= bound(300, 300, D)


def test_a_bad_row_amid_tight_clusters_makes_its_pairs_nan_and_no_others(backend, clusters):
    clusters[2, 1] = torch.nan
    how = {"kernel": Gaussian(50.0), "gradient": "weights"}
    got = rbf_sum(clusters, rows(20, D, 2), backend=backend.name, **how)
    assert got.x_sums.isnan().tolist() == [i == 2 for i in range(300)]
    assert rbf_sum(clusters, backend=backend.name, **how).x_sums.isnan().all()


def test_any_strides_give_the_same_bits(backend):
    if backend.device != "cpu":
        pytest.skip("arrays live on the CPU")
    X, Y = rows(12, 5, 1).numpy(), rows(9, 5, 2).numpy()
    how = {"kernel": Gaussian(0.1), "gradient": "rows", "backend": backend.name}
    expected = rbf_sum(X, Y, **how)
    frozen = np.asfortranarray(X)
    frozen.setflags(write=False)
    got = rbf_sum(frozen, Y[:, ::-1].copy()[:, ::-1], **how)
    for a, b in zip(got, expected, strict=True):
        assert isinstance(a, np.ndarray)
        assert np.array_equal(a, b)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 40),
    m=st.integers(0, 40),
    d=st.integers(0, 20),
    name=st.sampled_from(sorted(KERNELS)),
    seed=st.integers(0, 99),
)
def test_random_shapes_equal_the_reference(n, m, d, name, seed):
    how = {"kernel": KERNELS[name], "gradient": "rows"}
    X, Y = rows(n, d, seed), rows(m, d, seed + 100)
    got = rbf_sum(X, Y, **how)
    expected = rbf_sum(X, Y, backend="reference", **how)
    for field in FIELDS:  # signs are random: errors are relative to all rows', each of size 1
        a, b = getattr(got, field).double(), getattr(expected, field).double()
        size = (1 + n) * (1 + m) * (1 + d) ** 2
        assert torch.all((a - b).abs() <= bound(n, m, d) * (b.abs() + size))


def test_eight_threads_give_the_same_bits(backend):
    X, Y = rows(300, 9, 1, backend.device), rows(50, 9, 2, backend.device)
    if backend.name == "triton" and backend.device == "cpu":
        pytest.skip("Triton's interpreter is not made for threads")
    how = {"kernel": Gaussian(0.1), "gradient": "rows", "backend": backend.name}
    expected = rbf_sum(X, Y, **how)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: rbf_sum(X, Y, **how), range(8)))
    for got in results:
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("one", [True, False])
def test_the_number_of_threads_changes_no_bit(monkeypatch, one):
    X, Y = rows(1500, 40, 1), None if one else rows(700, 40, 2)
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("PYFEAT_NUM_THREADS", threads)
        results.append(rbf_sum(X, Y, kernel=Gaussian(0.01), gradient="rows", backend="cpp"))
    for got in results[1:]:
        assert all(a is b or torch.equal(a, b) for a, b in zip(got, results[0], strict=True))


MEMORY = """
import sys, torch
from pyfeat.ops import Gaussian, rbf_sum
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
n, d, gradient = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None
X, Y = torch.randn(n, d), torch.randn(n, d)
rbf_sum(X[:600], Y[:600], kernel=Gaussian(1 / d), gradient="rows", backend="cpp")
before = peak()
rbf_sum(X, kernel=Gaussian(1 / d), gradient=gradient, backend="cpp")
rbf_sum(X, Y, kernel=Gaussian(1 / d), gradient=gradient, backend="cpp")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("d", "gradient"), [(256, ""), (256, "weights"), (16, "rows")])
def test_memory_does_not_grow_with_the_pairs(d, gradient):
    command = [sys.executable, "-c", MEMORY, "20000", str(d), gradient]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
    assert float(done.stdout) < 64  # MB; all pairs would take 1526


def test_relative_error_at_d_256_is_at_most_1e_5(cpp):
    X, Y = rows(700, 256, 1, cpp.device), rows(600, 256, 2, cpp.device) + 0.1
    for gammas in (0.5 / 256, [0.5**i / 64 for i in range(5)]):
        got, expected = both(cpp, X, Y, kernel=Gaussian(gammas), gradient="rows")
        assert largest_error(got, expected) <= 1e-5


@pytest.mark.parametrize("diagonal", [True, False])
def test_mmd_of_one_distribution_is_smaller_than_of_two(diagonal):
    X, Y, Z = rows(200, 3, 1), rows(150, 3, 2), rows(150, 3, 3) + 1

    def mmd(A, B):
        n, m = len(A), len(B)
        how = {"kernel": Gaussian(0.2)}
        a = rbf_sum(A, diagonal=diagonal, **how).value / (n * (n - (not diagonal)))
        b = rbf_sum(B, diagonal=diagonal, **how).value / (m * (m - (not diagonal)))
        return float(a + b - 2 * rbf_sum(A, B, **how).value / (n * m))

    assert mmd(X, Y) < 0.02 < mmd(X, Z)


@pytest.mark.parametrize("kernel", [Gaussian(1e39), Laplacian(1e39), Polynomial(1.0, 1e39, 1)])
def test_parameters_beyond_float32_run_on_the_reference(kernel):
    # Bug: infinity times a distance of 0 made the value NaN.
    X = rows(3, 2)
    assert explain("rbf_sum", X, None, kernel)["cpp"].startswith("kernel must have parameters of")
    value = rbf_sum(X, kernel=kernel).value
    assert value == rbf_sum(X.double(), kernel=kernel).value


def test_float64_runs_on_the_reference():
    X = rows(3, 2).double()
    assert explain("rbf_sum", X, None, Gaussian(1.0))["cpp"].startswith("X must have dtype float32")
    with pytest.raises(BackendError, match=r"X must have dtype float32, got torch\.float64"):
        rbf_sum(X, kernel=Gaussian(1.0), backend="cpp")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"X": np.zeros(3, np.float32)}, ValueError, r"X must have shape \(n, d\), got \(3,\)"),
        ({"X": np.zeros((3, 2), np.int64)}, TypeError, "X must have dtype float32 or float64"),
        ({"Y": np.zeros((3, 4), np.float32)}, ValueError, "Y must have 2 columns"),
        ({"Y": np.zeros((3, 2))}, TypeError, "Y must have dtype torch.float32 as X has"),
        ({"kernel": "rbf"}, TypeError, "kernel must be a kernel of pyfeat.ops, got str"),
        ({"gradient": "all"}, ValueError, "gradient must be one of"),
        ({"y_weights": np.ones(3)}, ValueError, "y_weights must be None where Y is None"),
        ({"x_weights": np.ones(4)}, ValueError, r"x_weights must have shape \(3,\), got \(4,\)"),
        (
            {"Y": np.zeros((3, 2), np.float32), "diagonal": False},
            ValueError,
            "diagonal must be True where Y is given",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    given_ = {"X": np.zeros((3, 2), np.float32), "kernel": Gaussian(1.0), **arguments}
    with pytest.raises(error, match=message):
        rbf_sum(given_.pop("X"), given_.pop("Y", None), **given_)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(()), "gammas must hold at least one"),
        (lambda: Gaussian((1.0, -1.0)), "gammas must be finite and above 0, got -1.0"),
        (lambda: Laplacian(float("nan")), "gamma must be finite and above 0"),
        (lambda: Polynomial(degree=0), r"degree must be in \[1, 64\], got 0"),
        (lambda: Polynomial(coef0=float("inf")), "coef0 must be finite"),
    ],
)
def test_bad_kernels_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bandwidths_in_ratios_of_two_and_four_are_squared():
    assert Gaussian([1, 2, 8, 9, 18, 0.1]).squarings() == [0, 0, 1, 2, 0, 1]
