"""The op `softmax_xent` against autograd and scipy in float64, and against its own reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfeat.errors import BackendError
from pyfeat.ops import StoredRows, explain, softmax_xent

EPS = float(np.finfo(np.float32).eps)
BF16 = float(torch.finfo(torch.bfloat16).eps)
LONGEST_SUM = 2048  # rows that are summed in float32
# n, d, P, outputs: one of everything, primes, more than a block and than a chunk of rows.
SHAPES = [
    (1, 1, 1, 2),
    (1, 1, 1, 1),
    (7, 3, 1, 3),
    (13, 5, 3, 1),
    (31, 17, 2, 5),
    (257, 33, 3, 7),
    (521, 19, 2, 2),
    (4201, 11, 2, 3),
]
SMALL = SHAPES[:5]


class Problem:
    """Numbers for one call, held as float64 tensors on the CPU."""

    def __init__(self, rng, n, d, problems, outputs):
        self.X = torch.from_numpy(rng.standard_normal((n, d)).astype(np.float32))
        self.labels = torch.from_numpy(rng.integers(max(outputs, 2), size=n))
        self.theta = torch.from_numpy(rng.standard_normal((problems, outputs, d + 1)))
        self.direction = torch.from_numpy(rng.standard_normal((problems, outputs, d + 1)))
        weights = rng.random((problems, n)) * (rng.random((problems, n)) < 0.8)
        self.weights = torch.from_numpy(weights / max(n, 1))
        self.l2 = torch.from_numpy(rng.random(problems))

    def run(self, backend=None, device="cpu", X=None, **change):
        arguments = {"weights": self.weights, "l2": self.l2, "direction": self.direction} | change
        on = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        X = self.X if X is None else X
        X = X.to(device) if isinstance(X, torch.Tensor) else X
        return softmax_xent(X, self.labels.to(device), self.theta.to(device), backend=backend, **on)

    def exact(self):
        return self.run("reference", X=self.X.double())


def textbook(p: Problem, theta: torch.Tensor) -> torch.Tensor:
    """Return the losses (P,), written as in a book, in float64."""
    z = torch.einsum("nd,pcd->pnc", p.X.double(), theta[..., :-1]) + theta[:, None, :, -1]
    if z.shape[2] == 1:
        z = torch.cat([torch.zeros_like(z), z], dim=2)
    own = z.gather(2, p.labels.expand(len(z), -1)[..., None])[..., 0]
    losses = z.logsumexp(dim=2) - own
    penalty = 0.5 * p.l2 * theta[..., :-1].square().sum(dim=(1, 2))
    return (p.weights * losses).sum(dim=1) + penalty


def score_error(p: Problem, unit: float, terms: int) -> float:
    """Return how far a float32 score, a sum of `terms` products, can be off."""
    sizes = torch.einsum("nd,pcd->pnc", p.X.abs().double(), p.theta[..., :-1].abs())
    turns = torch.einsum("nd,pcd->pnc", p.X.abs().double(), p.direction[..., :-1].abs())
    largest = float(torch.maximum(sizes, turns).max()) + float(p.theta[..., -1].abs().max()) + 1.0
    return unit * terms * largest * (1.0 + float(turns.max()))


def bounds(p: Problem, unit: float = EPS, terms: int | None = None) -> dict[str, float]:
    """Return the largest error of each result: scores rounded in a product, then sums over rows.

    A probability moves by at most twice as much as the scores do, relatively; exponentials, their
    sum over classes and the sum over rows add their own roundings.
    """
    n, d = p.X.shape
    off = 2 * score_error(p, unit, d + 2 if terms is None else terms)
    off += (
        EPS * (p.theta.shape[1] + min(n, LONGEST_SUM) + 16) * (1 + float(p.direction.abs().max()))
    )
    mass = float(p.weights.sum(dim=1).max())
    reach = max(1.0, float(p.X.abs().max()))
    return {"loss": mass * off, "gradient": mass * reach * (off + unit), "spread": mass * off} | {
        "curved": mass * reach * (3 * off + unit) * (1 + float(p.direction.abs().sum(dim=2).max()))
    }


def assert_close(result, expected, p, **how):
    for name, bound in bounds(p, **how).items():
        got, wanted = getattr(result, name).cpu(), getattr(expected, name)
        torch.testing.assert_close(got, wanted, rtol=EPS, atol=bound, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_autograd_of_the_textbook_loss(rng, shape):
    p = Problem(rng, *shape)
    theta = p.theta.clone().requires_grad_()
    loss = textbook(p, theta)
    (gradient,) = torch.autograd.grad(loss.sum(), theta)
    result = p.exact()
    scale = 10 * shape[0] * np.finfo(float).eps * (1 + float(p.theta.abs().max())) ** 2
    torch.testing.assert_close(result.loss, loss.detach(), rtol=1e3 * 2.0**-52, atol=scale)
    torch.testing.assert_close(result.gradient, gradient, rtol=1e3 * 2.0**-52, atol=scale)


@pytest.mark.parametrize("shape", SMALL)
def test_reference_is_the_hessian_times_the_direction(rng, shape):
    p = Problem(rng, *shape)
    loss = lambda theta: textbook(p, theta).sum()  # noqa: E731
    _, curved = torch.autograd.functional.hvp(loss, p.theta, p.direction)
    scale = 100 * shape[0] * np.finfo(float).eps * (1 + float(p.theta.abs().max())) ** 3
    torch.testing.assert_close(p.exact().curved, curved, rtol=1e3 * 2.0**-52, atol=scale)


def test_reference_spread_is_the_hessian_in_the_intercepts(rng):
    p = Problem(rng, 31, 5, 1, 4)
    hessian = torch.autograd.functional.hessian(lambda t: textbook(p, t).sum(), p.theta)
    diagonal = torch.stack([hessian[0, c, -1, 0, c, -1] for c in range(4)])
    torch.testing.assert_close(p.exact().spread[0], diagonal)


def test_reference_gradient_is_scipys(rng):
    from scipy.optimize import check_grad

    p = Problem(rng, 20, 3, 1, 3)

    def value(x, part):
        theta = x.reshape(p.theta.shape)
        found = softmax_xent(p.X.double().numpy(), p.labels.numpy(), theta, l2=0.1)
        return float(found.loss[0]) if part == "loss" else found.gradient.ravel()

    start = p.theta.numpy().ravel()
    step = np.sqrt(np.finfo(float).eps)  # of scipy's difference quotient
    off = check_grad(lambda x: value(x, "loss"), lambda x: value(x, "gradient"), start)
    assert off < 10 * step * len(start) * float(p.X.square().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_float64_up_to_rounding(backend, rng, shape):
    if backend.name == "triton" and shape not in SMALL:
        shape = (37, 5, 2, 3)
    p = Problem(rng, *shape)
    assert_close(p.run(backend.name, backend.device), p.exact(), p)


@pytest.mark.parametrize("shape", SMALL)
def test_bfloat16_products_round_what_is_multiplied(backend, rng, shape):
    p = Problem(rng, *shape)
    result = p.run(backend.name, backend.device, products="bfloat16")
    # Both sides of a product are off by half of BF16: so are all its terms, whatever their number.
    assert_close(result, p.exact(), p, unit=BF16, terms=1)


def test_many_outputs_and_columns(backend, rng):
    if backend.name == "triton":
        pytest.skip("the interpreter takes too long; smaller shapes run above")
    p = Problem(rng, 300, 300, 4, 101)
    p.theta *= 0.1
    assert_close(p.run(backend.name, backend.device), p.exact(), p)


def test_problems_are_those_that_run_alone(backend, rng):
    p = Problem(rng, 40 if backend.name == "triton" else 300, 9, 3, 4)
    together = p.run(backend.name, backend.device)
    for i in range(3):
        alone = softmax_xent(
            p.X.to(backend.device),
            p.labels.to(backend.device),
            p.theta[i : i + 1].to(backend.device),
            weights=p.weights[i].to(backend.device),
            l2=float(p.l2[i]),
            backend=backend.name,
        )
        bound = bounds(p)["gradient"]
        torch.testing.assert_close(together.gradient[i], alone.gradient[0], rtol=EPS, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_are_their_float32_values(backend, rng, dtype):
    p = Problem(rng, 37, 11, 2, 3)
    half = p.X.to(dtype)
    p.X = half.float()
    assert_close(p.run(backend.name, backend.device, X=half), p.exact(), p)


def test_int8_rows_with_scales_and_shift(backend, rng):
    p = Problem(rng, 41, 13, 2, 3)
    items = torch.from_numpy(rng.integers(-127, 128, (41, 13), dtype=np.int8))
    scales = torch.from_numpy(rng.random(41).astype(np.float32) / 64)
    shift = torch.from_numpy(rng.standard_normal(13).astype(np.float32))
    p.X = items.float() * scales[:, None] - shift
    stored = StoredRows(*(part.to(backend.device) for part in (items, scales, shift)))
    assert_close(p.run(backend.name, backend.device, X=stored), p.exact(), p)


def test_weights_default_to_the_mean(backend, rng):
    p = Problem(rng, 33, 4, 2, 3)
    mean = p.run(backend.name, backend.device, weights=None)
    p.weights = torch.full((33,), 1 / 33, dtype=torch.float64).expand(2, 33)
    assert_close(mean, p.exact(), p)


def test_no_rows_leave_the_penalty(backend, rng):
    p = Problem(rng, 0, 4, 2, 3)
    result = p.run(backend.name, backend.device)
    free = p.theta.clone()
    free[..., -1] = 0
    torch.testing.assert_close(result.gradient.cpu(), free * p.l2[:, None, None])
    assert not result.spread.any()


def test_reference_without_rows_is_the_penalty(rng):
    p = Problem(rng, 0, 4, 2, 3)
    penalty = 0.5 * p.l2 * p.theta[..., :-1].square().sum(dim=(1, 2))
    torch.testing.assert_close(p.run("reference").loss, penalty)


def test_no_problems(backend, rng):
    p = Problem(rng, 5, 4, 0, 3)
    assert p.run(backend.name, backend.device).gradient.shape == (0, 3, 5)


def test_no_columns_leave_the_intercepts(backend, rng):
    p = Problem(rng, 9, 1, 2, 3)
    p.X, p.theta, p.direction = p.X[:, :0], p.theta[..., -1:], p.direction[..., -1:]
    result, exact = p.run(backend.name, backend.device), p.exact()
    # Nothing is multiplied: what is off is the exponentials and the sums.
    bound = 64 * EPS * float(1 + p.theta.abs().max()) * float(1 + p.direction.abs().max())
    torch.testing.assert_close(result.gradient.cpu(), exact.gradient, rtol=EPS, atol=bound)


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_zero_weights_give_zero(backend, rng, outputs):
    p = Problem(rng, 19, 4, 1, outputs)
    result = p.run(backend.name, backend.device, weights=torch.zeros(19), l2=0.0)
    assert not any(part.any() for part in result)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_huge_scores_give_the_difference_of_scores(backend, outputs):
    theta = torch.zeros(1, outputs, 2, dtype=torch.float64)
    theta[0, -1, 0] = 1e30
    labels = torch.tensor([0, 1 if outputs == 1 else outputs - 1])
    X = torch.ones(2, 1, device=backend.device)
    result = softmax_xent(
        X, labels.to(backend.device), theta.to(backend.device), backend=backend.name
    )
    # The wrong row loses 1e30, the right one nothing, and no probability is left in between.
    assert float(result.loss[0]) == pytest.approx(0.5e30, rel=EPS)
    assert float(result.gradient[0, -1, 0]) == pytest.approx(0.5, rel=EPS)
    assert not result.spread.any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in Triton's interpreter
@pytest.mark.parametrize("outputs", [1, 2, 4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_makes_the_gradient_nan(backend, rng, bad, outputs):
    p = Problem(rng, 23, 3, 2, outputs)
    p.X[7, 1] = bad
    p.weights[:, 7] = 0.0
    result = p.run(backend.name, backend.device)
    assert bool(result.gradient[..., 1].isnan().all())
    assert bool(result.loss.isnan().all()) or (outputs == 1 and bad == float("inf"))


def test_strides_do_not_matter(backend, rng):
    p = Problem(rng, 40, 24, 2, 3)
    expected = p.run(backend.name, backend.device)
    wide = torch.zeros(80, 48)
    wide[::2, ::2] = p.X
    got = p.run(backend.name, backend.device, X=wide.to(backend.device)[::2, ::2])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_negative_strides_and_read_only_arrays(rng, tmp_path):
    p = Problem(rng, 12, 5, 1, 3)
    X = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(12, 5))
    X[:] = p.X.numpy()[::-1]
    X.flags.writeable = False
    arguments = p.labels.numpy(), p.theta.numpy()
    got = softmax_xent(X[::-1], *arguments)
    expected = softmax_xent(p.X.numpy(), *arguments)
    assert np.array_equal(got.gradient, expected.gradient)


def test_inputs_are_not_changed(backend, rng):
    p = Problem(rng, 20, 4, 2, 3)
    before = [t.clone() for t in (p.X, p.labels, p.theta, p.weights, p.direction)]
    p.run(backend.name, backend.device)
    after = (p.X, p.labels, p.theta, p.weights, p.direction)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_threads_do_not_change_a_bit(rng, monkeypatch, products):
    p = Problem(rng, 6000, 24, 3, 7)
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("PYFEAT_NUM_THREADS", threads)
        results.append(p.run("cpp", products=products))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_eight_threads_give_the_same_bits(backend, rng):
    if backend.name == "triton" and backend.device == "cpu":
        pytest.skip("Triton's interpreter runs in one thread only")
    p = Problem(rng, 700, 12, 2, 3)
    alone = p.run(backend.name, backend.device)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: p.run(backend.name, backend.device), range(16)):
            assert all(torch.equal(a, b) for a, b in zip(alone, result, strict=True))


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_shape_equals_float64(backend, data):
    most = 12 if backend.name == "triton" else 300
    n, d = data.draw(st.integers(0, most)), data.draw(st.integers(1, 40))
    problems, outputs = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20))
    p = Problem(np.random.default_rng(data.draw(st.integers(0, 99))), n, d, problems, outputs)
    if n == 0:
        p.X = p.X.new_zeros(0, d)
        assert not p.run(backend.name, backend.device).spread.any()
        return
    assert_close(p.run(backend.name, backend.device), p.exact(), p)


def test_arrays_give_arrays(rng):
    p = Problem(rng, 6, 2, 1, 2)
    result = softmax_xent(p.X.numpy(), p.labels.numpy(), p.theta.numpy())
    assert isinstance(result.gradient, np.ndarray)
    assert result.curved is None


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.uint16, np.uint32, np.uint64])
def test_labels_may_be_any_integers(rng, kind):
    # Bug: NotImplementedError from torch for unsigned ones of more than one byte.
    X, theta = rng.standard_normal((6, 2), dtype=np.float32), rng.standard_normal((1, 3, 3))
    labels = rng.integers(0, 3, 6)
    expected = softmax_xent(X, labels, theta)
    assert np.array_equal(softmax_xent(X, labels.astype(kind), theta).gradient, expected.gradient)


def test_reference_can_be_differentiated(rng):
    p = Problem(rng, 8, 3, 1, 3)
    p.X = p.X.double()
    theta = p.theta.clone().requires_grad_()
    result = softmax_xent(p.X, p.labels, theta, weights=p.weights, l2=p.l2)
    (gradient,) = torch.autograd.grad(result.loss.sum(), theta)
    torch.testing.assert_close(gradient, result.gradient.detach())


def test_float64_rows_run_on_the_reference(rng):
    p = Problem(rng, 4, 2, 1, 2)
    assert "float64" in explain("softmax_xent", p.X.double(), p.labels, p.theta)["cpp"]
    with pytest.raises(BackendError, match="got float64"):
        p.run("cpp", X=p.X.double())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": [[1.0]]}, TypeError, "X must be an ndarray or a Tensor, got list"),
        ({"X": torch.zeros(4)}, ValueError, r"X must have shape \(n, d\), got \(4,\)"),
        ({"X": torch.zeros(4, 2).long()}, TypeError, "X must hold float64, .* got torch.int64"),
        ({"X": torch.zeros(4, 3)}, ValueError, r"theta must have shape \(P, outputs, 4\), got"),
        ({"X": StoredRows(torch.zeros(4, 2), torch.ones(3))}, ValueError, r"scales must have"),
        ({"X": StoredRows(torch.zeros(4, 2), None, torch.ones(2).int())}, TypeError, "shift must"),
        ({"labels": torch.zeros(4)}, TypeError, "labels must be integers, got torch.float32"),
        (
            {"labels": torch.zeros(4).long().to("meta")},
            ValueError,
            "labels must be on cpu as theta",
        ),
        ({"X": torch.zeros(4, 2).to("meta")}, ValueError, "X must be on cpu as theta is, got"),
        ({"labels": torch.zeros(3).long()}, ValueError, r"labels must have shape \(4,\), got"),
        ({"labels": torch.full((4,), 3)}, ValueError, r"labels must be in \[0, 3\), got 3"),
        ({"labels": torch.full((4,), -1)}, ValueError, r"labels must be in \[0, 3\), got -1"),
        ({"theta": torch.zeros(1, 3, 3).half()}, TypeError, "theta must be float32 or float64"),
        ({"weights": torch.ones(3)}, ValueError, r"weights must have shape \(4,\) or \(1, 4\)"),
        ({"weights": torch.ones(4).int()}, TypeError, "weights must hold floating point numbers"),
        ({"l2": -1.0}, ValueError, "l2 must not be negative, got -1.0"),
        ({"l2": [0.0, 1.0]}, ValueError, r"l2 must be a number or have shape \(1,\)"),
        ({"direction": torch.ones(3, 3)}, ValueError, "direction must be floating point of shape"),
        ({"products": "int8"}, ValueError, "products must be one of"),
        ({"X": torch.zeros(4, 2).double(), "products": "bfloat16"}, ValueError, "products must be"),
    ],
)
def test_rejects(change, error, message):
    arguments = {
        "X": torch.zeros(4, 2),
        "labels": torch.zeros(4, dtype=torch.int64),
        "theta": torch.zeros(1, 3, 3),
    }
    with pytest.raises(error, match=message):
        softmax_xent(**(arguments | change))
