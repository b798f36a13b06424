"""The op `pool` against its reference, torch and its formulas."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyfeat.errors import BackendError
from pyfeat.ops import Quantized, pool, quantize_rows
from pyfeat.ops._check import interpreting

EPS = float(torch.finfo(torch.float32).eps) / 2  # of one rounding to nearest
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
METHODS = ("avg", "max", "gem", "cls", "cls+avg")
# (n, c, h, w): ones, primes, one vector and one more or less, no items, no channels.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 1, 1),
    (2, 1, 3, 5),
    (3, 5, 7, 7),
    (2, 16, 4, 4),
    (1, 17, 1, 2),
    (2, 31, 3, 11),
    (1, 33, 13, 13),
    (0, 3, 2, 2),
    (2, 0, 2, 2),
]

# numpy, in which Triton's interpreter computes, warns of what IEEE 754 defines.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(params=["generic", "avx2", "avx512", "avx512bf16"])
def cpp(request):
    """Run the native kernel on each instruction set that the CPU has."""
    _core = pytest.importorskip("pyfeat._core")
    if request.param not in _core.isas():
        pytest.skip(f"this CPU has no {request.param}")
    before = _core.isa()
    _core.set_isa(request.param)
    yield
    _core.set_isa(before)


few = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def maps(n, c, h, w, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(n + c * h * w)
    return (torch.randn(n, c, h, w, generator=generator) * 2).to(device, dtype)


def tokens(n, length, c, dtype=torch.float32, device="cpu"):
    return maps(n, length, c, 1, dtype, device)[..., 0]


def layouts(x, backend):
    """Yield (x, layout) for every way to hand over feature maps (n, c, h, w)."""
    yield x, "nchw"
    yield x.contiguous(memory_format=torch.channels_last), "nchw"
    if backend.name == "triton" and interpreting():
        return  # it is slow, and the others come to one of these two
    yield x.permute(0, 2, 3, 1).contiguous(), "nhwc"
    yield x.permute(0, 2, 3, 1), "nhwc"
    yield x.flatten(2).transpose(1, 2).contiguous(), "nlc"
    yield x.flatten(2).transpose(1, 2), "nlc"


def tolerance(x, method, p=3.0):
    """Return the error of float32 per channel, (n, c), for x of (n, c, h, w).

    Sums of m numbers in any order: at most m roundings, each EPS of the sum of |x|. A power p by
    products or by exp and log (3 EPS) is off by at most (p + 3) EPS, its mean by m EPS more, the
    root divides that by p and adds 4 EPS.
    """
    positions = x.shape[2] * x.shape[3]
    flat = x.double().flatten(2)
    if method == "max":
        return torch.zeros(x.shape[:2], dtype=torch.float64)
    if method == "gem":
        expected = pool(x, "gem", p=p, backend="reference").double()
        return ((p + 3 + positions + 1) / p + 4) * EPS * expected.abs()
    return (positions + 1) * EPS * flat.abs().mean(dim=2)


def test_sums_of_large_maps_are_made_of_partial_sums(backend):
    # Bug: one sum per lane lost 4 % of a map of 4096 x 4096 tenths.
    if backend.name == "triton" and backend.device == "cpu":
        pytest.skip("a million positions are too many for Triton's interpreter")
    side = 1024
    x = torch.full((1, 1, side, side), 0.1, device=backend.device)
    # At least 4 lanes, each 256 numbers at a time, then these sums one after another.
    roundings = 256 + side * side / (4 * 256)
    got = float(pool(x, backend=backend.name))
    assert abs(got / float(x[0, 0, 0, 0]) - 1) <= roundings * EPS


def assert_close(got, expected, bound):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert bool(((got.double() - expected.double()).abs() <= bound.to(got.device)).all())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["avg", "max", "gem"])
def test_equals_reference_in_every_layout(backend, method, shape, dtype):
    x = maps(*shape, dtype, backend.device)
    bound = tolerance(x, method)
    expected = pool(x, method, backend="reference")
    for same, layout in layouts(x, backend):
        got = pool(same, method, layout=layout, backend=backend.name)
        assert_close(got, expected, bound)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 2.5, 4.0, 7.0, 63.5, 70.25, 100.0])
def test_gem_with_other_exponents(backend, p):
    x = maps(2, 19, 5, 5, device=backend.device)
    expected = pool(x, "gem", p=p, backend="reference")
    for same, layout in layouts(x, backend):
        got = pool(same, "gem", p=p, layout=layout, backend=backend.name)
        assert_close(got, expected, tolerance(x, "gem", p))


def test_reference_gem_is_the_formula():
    x = maps(2, 5, 3, 3)
    # As in the authors' code, in float64: avg_pool(clamp(x, 1e-6)^p)^(1/p).
    powers = torch.nn.functional.adaptive_avg_pool2d(x.double().clamp(min=1e-6).pow(3.0), 1)
    expected = powers.pow(1 / 3).flatten(1)
    got = pool(x, "gem", backend="reference").double()
    assert bool(((got - expected).abs() <= 2 * EPS * expected).all())


def test_reference_avg_and_max_are_those_of_torch():
    x = maps(2, 5, 3, 3)
    mean = torch.nn.functional.adaptive_avg_pool2d(x.double(), 1).flatten(1).float()
    largest = torch.nn.functional.adaptive_max_pool2d(x, 1).flatten(1)
    assert torch.equal(pool(x, backend="reference"), mean)
    assert torch.equal(pool(x, "max", backend="reference"), largest)


@pytest.mark.parametrize("dtype", FLOATS)
def test_cls_is_token_zero(backend, dtype):
    x = tokens(3, 5, 19, dtype, backend.device)
    assert torch.equal(pool(x, "cls", layout="nlc", backend=backend.name), x[:, 0].float())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("length", "c"), [(2, 1), (2, 19), (5, 16), (8, 33)])
def test_cls_avg_is_token_zero_and_the_mean_of_the_others(backend, length, c, dtype):
    x = tokens(3, length, c, dtype, backend.device)
    got = pool(x, "cls+avg", layout="nlc", backend=backend.name)
    assert torch.equal(got[:, :c], x[:, 0].float())
    others = x[:, 1:].double()
    bound = length * EPS * others.abs().mean(dim=1)
    assert bool(((got[:, c:] - others.mean(dim=1)).abs() <= bound).all())


def test_tokens_whose_positions_are_adjacent(backend):
    x = tokens(2, 19, 7, device=backend.device).transpose(1, 2)  # (2, 7, 19) in nlc
    expected = pool(x.contiguous(), "cls+avg", layout="nlc", backend="reference")
    got = pool(x, "cls+avg", layout="nlc", backend=backend.name)
    bound = 8 * EPS * x.abs().double().amax()
    assert_close(got, expected, bound)


@pytest.mark.parametrize("method", METHODS)
def test_l2_rows_have_norm_one(backend, method):
    x = tokens(4, 6, 21, device=backend.device)
    rows = pool(x, method, layout="nlc", l2=True, backend=backend.name).double()
    # Each of d numbers is off by at most EPS of itself.
    assert bool(((rows.norm(dim=1) - 1).abs() <= 2 * EPS).all())


@pytest.mark.parametrize("method", METHODS)
def test_l2_divides_by_the_norm(backend, method):
    x = tokens(4, 6, 21, device=backend.device)
    plain = pool(x, method, layout="nlc", backend=backend.name).double()
    rows = pool(x, method, layout="nlc", l2=True, backend=backend.name).double()
    expected = plain / plain.norm(dim=1, keepdim=True)
    assert bool(((rows - expected).abs() <= 2 * EPS * expected.abs()).all())


def test_l2_of_zeros_is_zero(backend):
    x = torch.zeros(2, 5, 3, 3, device=backend.device)
    assert not bool(pool(x, l2=True, backend=backend.name).any())


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30, 3e38])
def test_l2_of_huge_and_tiny_rows(backend, size):
    x = torch.full((1, 16, 2, 2), size, device=backend.device)
    rows = pool(x, l2=True, backend=backend.name)
    assert bool(((rows - 0.25).abs() <= 0.25 * 2 * EPS).all())


@pytest.mark.parametrize("method", ["avg", "max", "gem"])
def test_huge_numbers_do_not_overflow(backend, method):
    x = torch.full((1, 18, 5, 5), 3e38, device=backend.device)
    for same, layout in layouts(x, backend):
        rows = pool(same, method, layout=layout, backend=backend.name)
        assert bool(((rows.double() / x.flatten()[0].double() - 1).abs() <= 4 * EPS).all())


@pytest.mark.parametrize("p", [3.0, 6.0, 9.5, 100.0])
def test_gem_of_mixed_sizes(backend, p):
    x = torch.tensor([0.0, -3.0, 1e-9, 1e-5, 1.0, 1e6, 1e20, 3e38], device=backend.device)
    x = x[:, None, None].expand(8, 3, 3).contiguous()[None]
    x[0, :, 1, 1] = 1e-4
    expected = pool(x, "gem", p=p, backend="reference")
    for same, layout in layouts(x, backend):
        got = pool(same, "gem", p=p, layout=layout, backend=backend.name)
        assert_close(got, expected, tolerance(x, "gem", p))


@pytest.mark.parametrize("method", ["avg", "max", "gem"])
@pytest.mark.parametrize("position", [0, 4, 24])
def test_nan_stays_in_its_channel(backend, method, position):
    clean = maps(1, 18, 5, 5, device=backend.device)
    x = clean.clone()
    x.flatten(2)[0, 7, position] = torch.nan
    for same, layout in layouts(x, backend):
        rows = pool(same, method, layout=layout, backend=backend.name)
        assert rows.isnan().nonzero().tolist() == [[0, 7]]


@pytest.mark.parametrize(
    ("method", "values", "expected"),
    [
        ("avg", [torch.inf, 1], torch.inf),
        ("avg", [-torch.inf, 1], -torch.inf),
        ("avg", [torch.inf, -torch.inf], torch.nan),
        ("max", [torch.inf, 1], torch.inf),
        ("max", [-torch.inf, 1], 1.0),
        ("max", [-torch.inf, -torch.inf], -torch.inf),
        ("gem", [torch.inf, 1], torch.inf),
        ("gem", [torch.inf, torch.nan], torch.nan),
    ],
)
@pytest.mark.parametrize("name", ["it", "reference"])
def test_infinities(backend, name, method, values, expected):
    x = torch.tensor(values, device=backend.device)[None, None, None].repeat(1, 3, 1, 1)
    which = backend.name if name == "it" else name
    for same, layout in layouts(x, backend):
        rows = pool(same, method, layout=layout, backend=which)
        assert rows[0].tolist() == pytest.approx([expected] * 3, abs=0, rel=0, nan_ok=True)


@pytest.mark.parametrize("name", ["it", "reference"])
def test_gem_counts_minus_infinity_as_the_floor(backend, name):
    x = torch.full((1, 2, 2, 2), -torch.inf, device=backend.device)
    rows = pool(x, "gem", backend=backend.name if name == "it" else name)
    assert bool(((rows - 1e-6).abs() <= 1e-6 * 8 * EPS).all())


@pytest.mark.parametrize("name", ["it", "reference"])
def test_l2_of_an_infinite_row(backend, name):
    x = torch.tensor([torch.inf, 1.0, -torch.inf], device=backend.device).reshape(1, 3, 1, 1)
    rows = pool(x, l2=True, backend=backend.name if name == "it" else name)
    assert rows[0].isnan().tolist() == [True, False, True]
    assert rows[0, 1] == 0


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_rows_are_the_float32_rows_rounded(backend, dtype, l2):
    x = maps(3, 21, 3, 3, device=backend.device)
    rows = pool(x, l2=l2, backend=backend.name)
    assert torch.equal(pool(x, l2=l2, dtype=dtype, backend=backend.name), rows.to(dtype))


@pytest.mark.parametrize("method", METHODS)
def test_int8_rows_are_the_float32_rows_quantised(backend, method):
    x = tokens(3, 4, 21, device=backend.device)
    rows = pool(x, method, layout="nlc", l2=True, backend=backend.name)
    expected = quantize_rows(rows, backend="reference")
    got = pool(x, method, layout="nlc", l2=True, dtype="int8", backend=backend.name)
    assert torch.equal(got.rows, expected.rows)
    assert torch.equal(got.scales, expected.scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_out_is_filled_and_its_neighbours_are_not(backend, dtype):
    x = maps(2, 19, 3, 3, device=backend.device)
    rows = torch.full((4, 19), 7, dtype=dtype, device=backend.device)
    scales = torch.full((4,), 7.0, device=backend.device)
    out = Quantized(rows[1:3], scales[1:3]) if dtype == torch.int8 else rows[1:3]
    assert pool(x, dtype=dtype, out=out, backend=backend.name) is out
    expected = pool(x, dtype=dtype, backend=backend.name)
    assert torch.equal(rows[1:3], expected.rows if dtype == torch.int8 else expected)
    assert bool((rows[[0, 3]] == 7).all())
    assert scales[[0, 3]].tolist() == [7, 7]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2],
        lambda x: x[:, 3:20],
        lambda x: x[:, ::2],
        lambda x: x[:, :, 1:5],
        lambda x: x[..., 1:5],
        lambda x: x[..., ::2],
        lambda x: x.transpose(2, 3),
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x[:, :1].expand(-1, 4, -1, -1),
        lambda x: x[:, :, :1, :1].expand(-1, -1, 2, 2),
        lambda x: x.transpose(0, 1),
    ],
)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_strides_do_not_matter(backend, view, memory):
    x = view(maps(4, 21, 6, 6, device=backend.device).contiguous(memory_format=memory))
    expected = pool(x.contiguous(), backend="reference")
    got = pool(x, backend=backend.name)
    assert_close(got, expected, tolerance(x, "avg"))


def test_channels_last_and_slices_are_not_copied():
    from pyfeat.ops._pool import strided

    x = maps(4, 21, 6, 6).contiguous(memory_format=torch.channels_last)[::2, 2:]
    view = x.flatten(2)
    assert strided(view).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("dtype", FLOATS)
def test_map_at_the_end_of_its_page(end_of_page, dtype):
    # A kernel that reads past the last number meets memory that may not be read.
    shapes = [(1, 1, 1, 1), (1, 3, 3, 1), (2, 17, 1, 1), (1, 5, 7, 7), (2, 3, 2, 9)]
    shapes += [(1, 16, 1, 1), (1, 16, 4, 4), (1, 8, 7, 7), (2, 16, 3, 5), (1, 4, 9, 15)]
    for shape in shapes:
        size = dtype.itemsize * int(np.prod(shape))
        flat = torch.from_numpy(end_of_page[-size:]).view(dtype)
        x = flat.view(shape).copy_(maps(*shape, dtype))
        for layout in ("nchw", "nhwc"):
            expected = pool(x, "max", layout=layout, backend="reference")
            assert torch.equal(pool(x, "max", layout=layout, backend="cpp"), expected)


@few
@given(
    shape=st.tuples(*(st.integers(1, m) for m in (3, 20, 5, 5))),
    scale=st.floats(-30, 30),
    method=st.sampled_from(["avg", "max", "gem"]),
    last=st.booleans(),
)
def test_any_shape_equals_reference(backend, shape, scale, method, last):
    x = maps(*shape, device=backend.device) * 2.0**scale
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    expected = pool(x, method, backend="reference")
    assert_close(pool(x, method, backend=backend.name), expected, tolerance(x, method))


@few
@given(power=st.integers(-40, 40), method=st.sampled_from(["avg", "max"]))
def test_a_power_of_two_scales_rows(backend, power, method):
    x = maps(2, 7, 3, 5, device=backend.device)
    rows = pool(x, method, backend=backend.name)
    scaled = pool(x * 2.0**power, method, backend=backend.name)
    assert torch.equal(scaled, rows * 2.0**power)


def test_an_item_does_not_depend_on_its_batch(backend):
    x = maps(5, 21, 3, 5, device=backend.device)
    rows = pool(x, "gem", l2=True, backend=backend.name)
    alone = torch.cat([pool(i[None], "gem", l2=True, backend=backend.name) for i in x])
    assert torch.equal(rows, alone)


def test_bits_do_not_depend_on_the_number_of_threads(backend, monkeypatch):
    shape = (130, 64, 14, 14) if backend.name == "cpp" else (2, 3, 3, 3)
    x = maps(*shape, device=backend.device)
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("PYFEAT_NUM_THREADS", threads)
        results.append(pool(x, l2=True, backend=backend.name))
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("method", ["avg", "max", "gem"])
def test_few_large_maps_give_the_same_bits_on_any_number_of_threads(method, dtype, monkeypatch):
    # Large enough for three threads, few enough to be cut by channels; the last range is no vector.
    x = maps(2, 205, 64, 65)
    x[0, 7, 3, 3], x[1, 200, 5, 5] = torch.inf, 1e38
    x[:, 9] = -0.0
    for layout in (x, x.contiguous(memory_format=torch.channels_last)):
        rows = []
        for threads in ("1", "3"):
            monkeypatch.setenv("PYFEAT_NUM_THREADS", threads)
            rows.append(pool(layout, method, l2=True, dtype=dtype, backend="cpp"))
        for one, three in zip(*(r if dtype == "int8" else (r,) for r in rows), strict=True):
            assert one.numpy().tobytes() == three.numpy().tobytes()


# From no whole vector to more than sixteen, with and without a part of one, on every ISA.
LENGTHS = [
    *range(1, 20),
    31,
    32,
    33,
    47,
    48,
    49,
    63,
    64,
    65,
    79,
    100,
    127,
    128,
    129,
    196,
    255,
    257,
    321,
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", ["avg", "max", "gem"])
def test_channels_of_every_length(cpp, method, dtype):
    for length in LENGTHS:
        x = maps(2, 35, 1, length, dtype)
        expected = pool(x, method, backend="reference")
        assert_close(pool(x, method, backend="cpp"), expected, tolerance(x, method))


@pytest.mark.parametrize("method", ["avg", "max", "gem"])
@pytest.mark.parametrize("alien", [torch.nan, torch.inf, -torch.inf])
def test_what_lies_next_to_a_channel_does_not_count(cpp, method, alien):
    for length in LENGTHS:
        clean = maps(2, 32, 1, length)
        x = clean.clone()
        x[:, 1::2] = alien
        rows = pool(x, method, backend="cpp")
        assert torch.equal(rows[:, ::2], pool(clean, method, backend="cpp")[:, ::2])


@pytest.mark.parametrize("method", ["avg", "max", "gem"])
def test_nan_or_infinity_counts_wherever_it_lies_in_a_channel(cpp, method):
    for length in (7, 16, 49, 100):
        x = maps(1, 16, 1, length).expand(2 * length, -1, -1, -1).clone()
        at = torch.arange(length)
        x[at, 5, 0, at], x[length + at, 5, 0, at] = torch.nan, torch.inf
        rows = pool(x, method, backend="cpp")
        assert bool(rows[:length, 5].isnan().all())
        assert bool((rows[length:, 5] == torch.inf).all())
        assert torch.equal(rows[:, 6:], rows[:1, 6:].expand(2 * length, -1))


@pytest.mark.parametrize("method", ["avg", "max", "gem"])
def test_the_end_of_memory_does_not_change_bits(cpp, method):
    # The last channels of all are read without what lies behind them.
    for length in LENGTHS:
        x = maps(2, 32, 1, length)
        both = pool(x, method, backend="cpp")
        alone = torch.cat([pool(i[None].clone(), method, backend="cpp") for i in x])
        assert torch.equal(both, alone)


def test_eight_threads_give_the_same_bits(backend):
    if backend.name == "triton" and interpreting():
        pytest.skip("Triton's interpreter runs in one thread")
    inputs = [maps(2, 33, 3, 3 + i, device=backend.device) for i in range(8)]
    alone = [pool(x, "gem", l2=True, backend=backend.name) for x in inputs]
    with ThreadPoolExecutor(8) as workers:
        together = workers.map(lambda x: pool(x, "gem", l2=True, backend=backend.name), inputs * 2)
        assert all(torch.equal(a, b) for a, b in zip(alone * 2, together, strict=True))


def test_input_is_not_changed(backend):
    x = maps(2, 5, 3, 3, device=backend.device)
    before = x.clone()
    pool(x, "gem", l2=True, dtype="int8", backend=backend.name)
    assert torch.equal(x, before)


def test_arrays_in_arrays_out_from_read_only_memory():
    x = maps(2, 5, 3, 3).numpy()[::-1]
    x.flags.writeable = False
    rows = pool(x)
    assert isinstance(rows, np.ndarray)
    bound = tolerance(torch.from_numpy(x.copy()), "avg").numpy()
    assert bool((abs(rows - x.astype(np.float64).mean(axis=(2, 3))) <= bound).all())
    assert isinstance(pool(x, dtype="int8").scales, np.ndarray)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_flow_through_the_reference(method):
    x = (tokens(2, 3, 4).double().abs() + 0.1).float().requires_grad_()
    pool(x, method, layout="nlc", l2=True).square()[:, 0].sum().backward()
    assert bool(x.grad.isfinite().all())
    assert bool(x.grad.any())
    with pytest.raises(BackendError, match="x must not require a gradient"):
        pool(x, method, layout="nlc", backend="cpp")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be an ndarray or a Tensor, got list"),
        ({"x": torch.ones(1, 2, 3, 3).double()}, TypeError, "x must hold one of float32"),
        ({"x": torch.ones(1, 2, 3)}, ValueError, r"x must have shape \(n, c, h, w\), got"),
        ({"x": torch.ones(1, 2, 0, 3)}, ValueError, "x must have at least 1 positions for 'avg'"),
        ({"layout": "nlc"}, ValueError, r"x must have shape \(n, l, c\), got \(1, 2, 3, 3\)"),
        ({"layout": "nch"}, ValueError, "layout must be one of"),
        ({"method": "sum"}, ValueError, "method must be one of .*got 'sum'"),
        ({"method": "cls"}, ValueError, "layout must be 'nlc' for method 'cls', got 'nchw'"),
        (
            {"x": torch.ones(1, 1, 3), "method": "cls+avg", "layout": "nlc"},
            ValueError,
            "x must have at least 2 positions",
        ),
        ({"p": 0.5}, ValueError, "p must be finite and at least 1, got 0.5"),
        ({"p": float("nan")}, ValueError, "p must be finite and at least 1, got nan"),
        ({"dtype": torch.float64}, TypeError, "dtype must be one of .*got torch.float64"),
        ({"out": torch.zeros(1, 3)}, ValueError, r"out must have shape \(1, 2\), got \(1, 3\)"),
        ({"out": torch.zeros(1, 2).half()}, ValueError, "out must have dtype torch.float32"),
    ],
)
def test_rejects(change, error, message):
    arguments = {"x": torch.ones(1, 2, 3, 3), **change}
    with pytest.raises(error, match=message):
        pool(**arguments)
