"""The op `topk` against a brute-force search in float64, faiss and its own reference."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfeat.ops import Neighbours, topk

# Triton's interpreter multiplies with numpy, which warns of NaN and infinity.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

METRICS = ("ip", "cosine", "l2")
DTYPES = ("float32", "float16", "bfloat16", "int8")
# n, m, d, k: one of everything, primes, unaligned, more queries than are packed together, k = m
SHAPES = [(1, 1, 1, 1), (2, 19, 5, 3), (27, 67, 33, 7), (3, 41, 17, 41), (29, 130, 64, 10)]
LARGE = [(350, 700, 40, 10), (40, 1031, 300, 64), (11, 2003, 7, 5)]


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    """Keep torch from waiting for its threads at each of the reference's many small steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(rng, n, m, d, dtype="float32"):
    """Return queries, base and scales: random rows, some of them near each other."""
    queries = torch.from_numpy(rng.standard_normal((n, d), dtype=np.float32))
    base = torch.from_numpy(rng.standard_normal((m, d), dtype=np.float32))
    base[: m // 3] = base[m // 3 : m // 3 * 2] + 1e-3 * base[: m // 3]
    if dtype != "int8":
        return queries, base.to(getattr(torch, dtype)), None
    scales = torch.from_numpy(rng.uniform(0.01, 0.02, m).astype(np.float32))
    return queries, (base * 40).round().clamp(-127, 127).to(torch.int8), scales


def brute(queries, base, k, metric, scales=None):
    """Return float64 scores of all rows (n, m), and the k best as the docstring defines them."""
    x, y = queries.double().numpy(), base.float()
    y = (y if scales is None else y * scales[:, None]).double().numpy()
    if metric == "l2":
        all_scores = ((x[:, None] - y) ** 2).sum(-1)
    else:
        all_scores = x @ y.T
        if metric == "cosine":
            all_scores /= np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    keys = all_scores.astype(np.float32) * (1 if metric == "l2" else -1)
    return all_scores, np.argsort(keys, axis=1, kind="stable")[:, :k]


def slack(queries, base, metric, scales=None):
    """Return how far two float64 sums in different orders, rounded to float32, may be apart."""
    x, y = queries.double(), base.double()
    y = y if scales is None else y * scales.double()[:, None]
    d = x.shape[1]
    sizes = x.norm(dim=1)[:, None] * y.norm(dim=1).max()
    if metric == "cosine":
        sizes = torch.ones_like(sizes)
    elif metric == "l2":
        sizes = 2 * (x.square().sum(1)[:, None] + y.square().sum(1).max())
    # Half a unit of float32 relative to the score, which `sizes` exceeds, and gamma(d) of float64.
    return (sizes * (2.0**-24 + (d + 4) * 2.0**-52)).numpy()


@lru_cache
def large_case(shape, metric, dtype):
    """Return arguments and the reference's answer, which is slow."""
    n, m, d, k = shape
    queries, base, scales = make(np.random.default_rng(0), n, m, d, dtype)
    expected = topk(queries, base, k, metric=metric, scales=scales, backend="reference")
    return (queries, base, scales), expected


def on(backend, *tensors):
    return [None if t is None else t.to(backend.device) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours_are_those_of_brute_force(backend, rng, shape, metric, dtype):
    n, m, d, k = shape
    queries, base, scales = make(rng, n, m, d, dtype)
    all_scores, rows = brute(queries, base, k, metric, scales)
    x, y, s = on(backend, queries, base, scales)
    found = topk(x, y, k, metric=metric, scales=s, backend=backend.name)
    assert found.rows.tolist() == rows.tolist()
    expected = np.take_along_axis(all_scores, rows, 1)
    error = np.abs(found.scores.cpu().numpy() - expected)
    assert (error <= slack(queries, base, metric, scales)).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_brute_force(rng, shape, metric):
    n, m, d, k = shape
    queries, base, _ = make(rng, n, m, d)
    found = topk(queries, base, k, metric=metric, backend="reference")
    assert found.rows.tolist() == brute(queries, base, k, metric)[1].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", LARGE)
def test_equals_reference_over_several_blocks(backend, shape, metric, dtype):
    arguments, expected = large_case(shape, metric, dtype)
    x, y, s = on(backend, *arguments)
    found = topk(x, y, shape[-1], metric=metric, scales=s, backend=backend.name)
    assert torch.equal(found.rows.cpu(), expected.rows)
    assert torch.equal(found.scores.cpu(), expected.scores)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [1, 7, 16, 31, 384])
def test_few_queries_find_what_the_reference_does(backend, rng, d, metric, dtype):
    if backend.name != "cpp":
        pytest.skip("only cpp treats few queries apart")
    # Groups of 4, 2 and 1 queries; 67 rows leave a rest of every group of rows.
    queries, base, scales = make(rng, 7, 67, d, dtype)
    expected = topk(queries, base, 9, metric=metric, scales=scales, backend="reference")
    for n in range(1, 8):
        found = topk(queries[:n], base, 9, metric=metric, scales=scales, backend=backend.name)
        assert torch.equal(found.rows, expected.rows[:n])
        assert torch.equal(found.scores, expected.scores[:n])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("metric", METRICS)
def test_every_16_bit_pattern_counts_as_what_it_is(backend, metric, dtype):
    if backend.name != "cpp":
        pytest.skip("only cpp converts in registers")
    # Subnormal, infinite and NaN patterns too. Of 128 neighbouring ones 3 are to be found: what was
    # widened in registers decides which are looked at again. Rows of one number and of a register.
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(getattr(torch, dtype))
    for d, sign in itertools.product((1, 32), (1.5, -1.5)):
        query = torch.full((1, d), sign)
        for base in every.split(128):
            rows = base[:, None].repeat(1, d)
            found = topk(query, rows, 3, metric=metric, backend=backend.name)
            expected = topk(query, rows, 3, metric=metric, backend="reference")
            assert torch.equal(found.rows, expected.rows)
            assert torch.equal(found.scores.nan_to_num(-1), expected.scores.nan_to_num(-1))


def test_numbers_behind_the_last_row_are_not_looked_at(backend, rng):
    if backend.name != "cpp":
        pytest.skip("only cpp reads rows by address")
    for dtype in DTYPES[:3]:
        queries, base, _ = make(rng, 3, 9, 40, dtype)
        flat = torch.full((len(base) * 21 + 64,), 1e4, dtype=base.dtype)  # large, and no NaN
        rows = flat[: len(base) * 21].view(-1, 21).copy_(base[:, :21])
        expected = topk(queries[:, :21], rows, 9, metric="l2", backend="reference")
        found = topk(queries[:, :21], rows, 9, metric="l2", backend=backend.name)
        assert torch.equal(found.rows, expected.rows)


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_rows_at_the_end_of_their_page(backend, end_of_page, rng, dtype):
    # A kernel that reads past the last number meets memory that may not be read.
    if backend.name != "cpp":
        pytest.skip("only cpp reads rows by address")
    for d in (1, 7, 21, 33):
        queries, base, _ = make(rng, 3, 9, d, dtype)
        size = base.numel() * base.element_size()
        rows = torch.from_numpy(end_of_page[-size:]).view(base.dtype).view(base.shape).copy_(base)
        expected = topk(queries, base, 5, backend="reference")
        assert torch.equal(topk(queries, rows, 5, backend=backend.name).rows, expected.rows)


@pytest.mark.parametrize("metric", METRICS)
def test_equals_faiss(rng, metric):
    faiss = pytest.importorskip("faiss")
    queries, base = (rng.standard_normal((n, 64), dtype=np.float32) for n in (50, 3000))
    index = faiss.IndexFlatL2(64) if metric == "l2" else faiss.IndexFlatIP(64)
    if metric == "cosine":
        index.add(base / np.linalg.norm(base, axis=1, keepdims=True))
    else:
        index.add(base)
    # On random rows neighbours are further apart than either rounds.
    assert np.array_equal(topk(queries, base, 10, metric=metric).rows, index.search(queries, 10)[1])


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([0, 1, 2, 3, 7, 23, 24, 25, 31]),
    m=st.integers(1, 400),
    d=st.sampled_from([0, 1, 2, 3, 8, 15, 16, 17, 65, 257]),
    metric=st.sampled_from(METRICS),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_any_shape_of_small_integers_equals_reference(n, m, d, metric, seed, data):
    # Whole numbers: many scores are exactly equal.
    k = data.draw(st.integers(1, m))
    rng = np.random.default_rng(seed)
    queries = rng.integers(-2, 3, (n, d)).astype(np.float32)
    base = rng.integers(-2, 3, (m, d)).astype(np.float32)
    found = topk(queries, base, k, metric=metric)
    expected = topk(queries, base, k, metric=metric, backend="reference")
    assert np.array_equal(found.scores, expected.scores)
    assert np.array_equal(found.rows, expected.rows)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_come_in_order(backend, rng, metric):
    queries, base, _ = make(rng, 20, 5, 33)
    x, y = on(backend, queries, base.repeat(150, 1))
    found = topk(x, y, 12, metric=metric, backend=backend.name)
    nearest = topk(x, y[:5], 1, metric=metric, backend="reference").rows.cpu()
    assert torch.equal(found.rows.cpu(), nearest + 5 * torch.arange(12))


def test_rows_closer_than_a_float32_product_tells_are_ordered(backend, rng):
    # A large common part hides the differences: 1e6 squared swallows them in float32.
    queries = torch.full((14, 40), 1e3)
    base = torch.full((500, 40), 1e3)
    base[:, 0] += torch.from_numpy(rng.permutation(500).astype(np.float32)) * 2.0**-12
    x, y = on(backend, queries, base)
    found = topk(x, y, 9, metric="l2", backend=backend.name)
    order = (base[:, 0] - 1e3).argsort()[:9]
    assert torch.equal(found.rows.cpu(), order.expand(14, 9))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_no_neighbour(backend, rng, bad, metric):
    queries, base, _ = make(rng, 14, 60, 9)
    base[::4, 3] = bad
    x, y = on(backend, queries, base)
    found = topk(x, y, 50, metric=metric, backend=backend.name)
    expected = topk(queries, base, 50, metric=metric, backend="reference")
    assert torch.equal(found.rows.cpu(), expected.rows)
    assert (found.rows[:, 45:] == -1).all()
    assert found.scores[:, 45:].isnan().all()
    assert (found.rows[:, :45] % 4 != 0).all()


def test_scales_that_are_not_finite_take_their_rows_out(backend, rng):
    queries, base, scales = make(rng, 14, 30, 9, "int8")
    scales[3], scales[5] = torch.nan, torch.inf
    x, y, s = on(backend, queries, base, scales)
    found = topk(x, y, 29, scales=s, backend=backend.name)
    assert not ((found.rows == 3) | (found.rows == 5)).any()
    assert (found.rows[:, 28] == -1).all()


def test_a_query_that_is_not_finite_has_no_neighbours(backend, rng):
    queries, base, _ = make(rng, 15, 60, 9)
    expected = topk(queries, base, 4, backend="reference")
    queries[3, 2], queries[7, 0] = torch.nan, torch.inf
    x, y = on(backend, queries, base)
    found = topk(x, y, 4, backend=backend.name)
    assert (found.rows[[3, 7]] == -1).all()
    assert found.scores[[3, 7]].isnan().all()
    others = [i for i in range(15) if i not in (3, 7)]
    assert torch.equal(found.rows.cpu()[others], expected.rows[others])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-20, 1e15, 1e25, 3e37])
@pytest.mark.parametrize("n", [2, 26])
def test_huge_and_tiny_numbers_equal_the_reference(backend, rng, n, size, metric):
    queries, base, _ = make(rng, n, 60, 9)
    base[::2] *= size
    base[::3] *= -1
    x, y = on(backend, queries, base)
    found = topk(x, y, 40, metric=metric, backend=backend.name)
    expected = topk(queries, base, 40, metric=metric, backend="reference")
    assert torch.equal(found.rows.cpu(), expected.rows)
    swapped = topk(y, x, 2, metric=metric, backend=backend.name)
    expected = topk(base, queries, 2, metric=metric, backend="reference")
    assert torch.equal(swapped.rows.cpu(), expected.rows)


def test_scores_beyond_float32_are_infinite_and_equal(backend):
    x, y = on(backend, torch.full((1, 2), 1e30), torch.tensor([[1.0, 1], [2e30, 1], [3e30, 1]]))
    found = topk(x, y, 3, backend=backend.name)
    assert found.rows.tolist() == [[1, 2, 0]]
    assert found.scores[0, :2].tolist() == [np.inf, np.inf]


def test_cosine_with_a_zero_row_is_zero(backend):
    base = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    x, y = on(backend, torch.tensor([[2.0, 0.0], [0.0, 0.0]]), base)
    found = topk(x, y, 3, metric="cosine", backend=backend.name)
    assert found.rows.tolist() == [[2, 0, 1], [0, 1, 2]]
    assert found.scores[:, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2],
        lambda a: a[:, 5:40],
        lambda a: a[:, ::3],
        lambda a: a[::-1],
        lambda a: a[:, ::-1],
        lambda a: a.T,
        lambda a: np.broadcast_to(a[:1], (30, a.shape[1])),
    ],
)
@pytest.mark.parametrize("n", [3, 28])
def test_strides_do_not_matter(rng, view, n):
    base = view(rng.standard_normal((50, 70), dtype=np.float32))
    queries = rng.standard_normal((2 * n, base.shape[1]), dtype=np.float32)[::2]
    found = topk(queries, base, 7)
    expected = topk(queries.copy(), base.copy(), 7, backend="reference")
    assert np.array_equal(found.rows, expected.rows)


def test_read_only_memory_map_is_searched_and_not_changed(rng, tmp_path):
    rows = rng.standard_normal((40, 6)).astype(np.float16)
    rows.tofile(tmp_path / "rows")
    base = np.memmap(tmp_path / "rows", np.float16, "r", shape=(40, 6))
    found = topk(rows, base, 1, metric="l2")
    assert found.rows[:, 0].tolist() == list(range(40))
    assert np.array_equal(base, rows)


@pytest.mark.parametrize("threads", ["1", "3", "8"])
def test_number_of_threads_changes_no_bit(rng, monkeypatch, threads):
    queries, base, _ = make(rng, 40, 5000, 64)
    expected = topk(queries, base, 10, backend="reference")
    monkeypatch.setenv("PYFEAT_NUM_THREADS", threads)
    for n in (20, 40):  # few queries and many; one is too little work for two threads
        found = topk(queries[:n], base, 10, backend="cpp")
        assert torch.equal(found.rows, expected.rows[:n])
        assert torch.equal(found.scores, expected.scores[:n])


def test_eight_threads_give_the_same_bits(backend, rng):
    if backend.name == "triton" and backend.device == "cpu":
        pytest.skip("Triton's interpreter runs one kernel at a time")
    x, y = on(backend, *make(rng, 20, 300, 33)[:2])
    alone = topk(x, y, 5, backend=backend.name)
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda _: topk(x, y, 5, backend=backend.name), range(8))
        for found in together:
            assert torch.equal(found.rows, alone.rows)
            assert torch.equal(found.scores, alone.scores)


def test_many_queries_with_a_large_k_run_in_several_passes(rng):
    # Shortlists of 64 MiB hold some 270 queries at this k.
    queries, base, _ = make(rng, 300, 3400, 3)
    found = topk(queries, base, 3400, backend="cpp")
    keys = -(queries[-1].double() @ base.double().T).float()
    assert torch.equal(found.rows[-1], keys.argsort(stable=True))


class Blocks:
    """A base that hands itself out in blocks, in another order than that of its positions."""

    def __init__(self, rows, positions, size):
        self.rows, self.positions, self.size = rows, positions, size
        self.shape, self.dtype = rows.shape, rows.dtype

    def blocks(self, max_rows=1000):
        for start in range(0, len(self.rows), self.size):
            which = self.positions[start : start + self.size]
            yield which, self.rows[which]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_stream_gives_what_its_rows_give(rng, size):
    base = rng.integers(-1, 2, (60, 3)).astype(np.float32)
    queries = rng.integers(-1, 2, (9, 3)).astype(np.float32)
    stream = Blocks(base, rng.permutation(60), size)
    found, expected = topk(queries, stream, 20), topk(queries, base, 20)
    assert np.array_equal(found.rows, expected.rows)
    assert np.array_equal(found.scores, expected.scores)


def test_a_stream_may_have_scales(rng):
    queries, base, scales = make(rng, 9, 60, 5, "int8")
    stream = Blocks(base.numpy(), rng.permutation(60), 25)
    expected = topk(queries, base, 20, scales=scales)
    assert torch.equal(topk(queries, stream, 20, scales=scales).rows, expected.rows)


@pytest.mark.parametrize("length", [59, 61])
def test_scales_of_a_stream_must_be_as_many_as_its_rows(rng, length):
    # Bug: more were taken without a word, fewer were an IndexError.
    queries, base, _ = make(rng, 9, 60, 5, "int8")
    stream = Blocks(base.numpy(), np.arange(60), 25)
    with pytest.raises(
        ValueError, match=rf"scales must have shape \(60,\) on cpu, got \({length},"
    ):
        topk(queries, stream, 20, scales=torch.ones(length))


def test_arrays_give_arrays_and_tensors_give_tensors(rng):
    queries, base, _ = make(rng, 3, 9, 4)
    from_tensors, from_arrays = topk(queries, base, 2), topk(queries.numpy(), base.numpy(), 2)
    assert isinstance(from_tensors, Neighbours)
    assert (from_tensors.scores.dtype, from_tensors.rows.dtype) == (torch.float32, torch.int64)
    assert isinstance(from_arrays.rows, np.ndarray)
    assert np.array_equal(from_arrays.scores, from_tensors.scores.numpy())


@pytest.mark.parametrize("metric", METRICS)
def test_reference_scores_have_the_gradient_of_the_chosen_rows(rng, metric):
    queries, base, _ = make(rng, 3, 9, 4)
    queries.requires_grad_()
    topk(queries, base, 1, metric=metric).scores.sum().backward()
    chosen = base[topk(queries.detach(), base, 1, metric=metric).rows[:, 0]]
    again = queries.detach().clone().requires_grad_()
    score = {
        "ip": lambda: (again * chosen).sum(),
        "cosine": lambda: torch.cosine_similarity(again, chosen).sum(),
        "l2": lambda: (again - chosen).square().sum(),
    }[metric]()
    score.backward()
    torch.testing.assert_close(queries.grad, again.grad)


ROWS = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ValueError, r"k must be in \[1, 4\], the rows of base, got 0"),
        ({"k": 5}, ValueError, r"k must be in \[1, 4\], the rows of base, got 5"),
        ({"k": 1.5}, TypeError, "k must be an integer, got 1.5"),
        ({"metric": "dot"}, ValueError, r"metric must be one of \['ip', 'cosine', 'l2'\], got"),
        ({"queries": [1]}, TypeError, "queries must be an ndarray or a Tensor, got list"),
        ({"queries": ROWS[:, :2]}, ValueError, r"queries and base must have shapes .* got \(4, 2"),
        ({"queries": ROWS[0]}, ValueError, r"must have shapes \(n, d\) and \(m, d\), got \(3,\)"),
        ({"queries": ROWS.astype(float)}, TypeError, "queries must have dtype float32, float16"),
        ({"base": ROWS.astype(float)}, TypeError, "base must have dtype float32, .* got torch.fl"),
        ({"scales": ROWS[:, 0]}, ValueError, "scales must be given with an int8 base only"),
        (
            {"base": ROWS.astype(np.int8), "scales": ROWS},
            ValueError,
            r"scales must have shape \(4,\) on cpu, got \(4, 3\) on cpu",
        ),
        (
            {"base": ROWS.astype(np.int8), "scales": ROWS[:, 0].astype(float)},
            TypeError,
            "scales must have dtype float32, got torch.float64",
        ),
    ],
)
def test_rejects(change, error, message):
    arguments = {"queries": ROWS, "base": ROWS, "k": 1, **change}
    with pytest.raises(error, match=message):
        topk(**arguments)
