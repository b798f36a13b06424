"""The ops `quantize_rows` and `dequantize_rows` against their reference and their formulas."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyfeat.errors import BackendError
from pyfeat.ops import Quantized, dequantize_rows, quantize_rows
from pyfeat.ops._check import interpreting

EPS = float(torch.finfo(torch.float32).eps) / 2  # of one rounding to nearest
SMALLEST = 127 * 2.0**-126
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [(0, 3), (3, 0), (1, 1), (2, 13), (5, 16), (3, 31), (7, 64), (2, 257), (1, 1031)]

# numpy, in which Triton's interpreter computes, warns of what IEEE 754 defines.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

few = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def rows_of(n, d, dtype=torch.float32, device="cpu"):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n * d)).to(device, dtype)


def hard_rows(dtype):
    """Return rows of 37 that are zero, tiny, huge, NaN, infinite, and one of ties."""
    rows = rows_of(9, 37)
    rows[0] = 0
    rows[1] = (rows[1].abs() + 0.2) * 1e-37
    rows[2] *= 1e38 / 4
    rows[3, 5] = torch.nan
    rows[4, 36] = torch.inf
    rows[5, 0] = -torch.inf
    rows[6] = torch.arange(37) - 18.5
    rows[6, 0] = 127  # factor 1: the others are ties
    rows[7] *= 2.0**-20  # subnormal in float16
    return rows.to(dtype)


def same(a, b):
    return (
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and bool((a == b)[~a.isnan()].all())
    )


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_codes_and_scales_equal_the_reference(backend, n, d, source):
    rows = rows_of(n, d, source, backend.device)
    got = quantize_rows(rows, backend=backend.name)
    expected = quantize_rows(rows, backend="reference")
    assert torch.equal(got.rows, expected.rows)
    assert torch.equal(got.scales, expected.scales)


@pytest.mark.parametrize("source", FLOATS)
def test_codes_of_hard_rows_equal_the_reference(backend, source):
    rows = hard_rows(source).to(backend.device)
    got = quantize_rows(rows, backend=backend.name)
    expected = quantize_rows(rows, backend="reference")
    assert torch.equal(got.rows, expected.rows)
    assert same(got.scales, expected.scales)


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("source", FLOATS)
def test_shorter_floats_equal_those_of_torch(backend, source, target):
    rows = hard_rows(source).to(backend.device)
    assert same(quantize_rows(rows, target, backend=backend.name), rows.to(target))


def test_subnormal_bfloat16(backend):
    if backend.name == "triton" and interpreting():
        pytest.skip("Triton's interpreter gets subnormal bfloat16 wrong")
    rows = hard_rows(torch.float32)[6:8].to(backend.device) * 1e-39
    short = rows.to(torch.bfloat16)
    assert torch.equal(quantize_rows(rows, torch.bfloat16, backend=backend.name), short)
    assert torch.equal(dequantize_rows(short, backend=backend.name), short.float())


def test_every_float16_and_its_ties_round_as_torch_rounds(backend):
    bits = torch.arange(0, 2**16, dtype=torch.int32).to(torch.int16)
    halves = bits.view(torch.float16).float()
    # Halfway to the next float16, and one unit of float32 to both sides of it.
    ints = halves.view(torch.int32)
    rows = torch.stack([(ints + step).view(torch.float32) for step in (0, 4095, 4096, 4097)])
    rows = rows.to(backend.device)
    got = quantize_rows(rows, torch.float16, backend=backend.name)
    assert same(got, rows.to(torch.float16))


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_dequantised_rows_equal_the_reference(backend, n, d, target):
    quantized = quantize_rows(rows_of(n, d, device=backend.device), backend="reference")
    got = dequantize_rows(*quantized, target, backend=backend.name)
    expected = quantized.rows.float() * quantized.scales[:, None]
    assert torch.equal(got, expected.to(target))


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_floats_come_back_as_torch_converts_them(backend, source, target):
    rows = hard_rows(source).to(backend.device)
    assert same(dequantize_rows(rows, dtype=target, backend=backend.name), rows.to(target))


def test_reference_rounds_ties_to_even():
    codes = quantize_rows(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]), backend="reference")
    assert codes.rows.tolist() == [[127, 0, 2, 2, 0, -2]]


def test_rows_with_nan_or_infinity_come_back_as_nan(backend):
    rows = hard_rows(torch.float32)[3:6].to(backend.device)
    quantized = quantize_rows(rows, backend=backend.name)
    assert not bool(quantized.rows.any())
    assert bool(dequantize_rows(*quantized, backend=backend.name).isnan().all())


def test_rows_below_the_smallest_scale_count_as_zero(backend):
    rows = torch.tensor([[SMALLEST], [np.nextafter(np.float32(SMALLEST), np.float32(0))]])
    quantized = quantize_rows(rows.to(backend.device), backend=backend.name)
    assert quantized.rows.flatten().tolist() == [127, 0]
    assert quantized.scales.tolist() == [2.0**-126, 0]


numbers = st.floats(-(2.0**100), 2.0**100, width=32)
matrices = arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=numbers
).map(torch.from_numpy)


@few
@given(rows=matrices)
def test_error_is_at_most_half_a_scale(backend, rows):
    rows = rows.to(backend.device)
    codes, scales = quantize_rows(rows, backend=backend.name)
    error = (codes.double() * scales.double()[:, None] - rows.double()).abs()
    # A code is within 1/2 of x * factor; factor, product and scale are each rounded once, and a
    # code is at most 127.
    bound = scales.double() * (0.5 + 127 * 3.1 * EPS) + (scales == 0) * SMALLEST
    assert bool((error <= bound[:, None]).all())


@few
@given(rows=matrices)
def test_codes_are_idempotent(backend, rows):
    quantized = quantize_rows(rows.to(backend.device), backend=backend.name)
    back = dequantize_rows(*quantized, backend=backend.name)
    again = quantize_rows(back, backend=backend.name)
    # 127 * scale is rounded, and may fall just below the smallest row.
    large = quantized.scales > 2.0**-125
    assert torch.equal(again.rows[large], quantized.rows[large])
    change = (again.scales - quantized.scales).abs()[large]
    assert bool((change <= 2 * EPS * quantized.scales[large]).all())


@few
@given(rows=matrices, power=st.integers(-20, 20))
def test_a_power_of_two_changes_scales_only(backend, rows, power):
    rows = torch.where(rows.abs() < 2.0**-60, 0, rows)
    first = quantize_rows(rows.to(backend.device), backend=backend.name)
    second = quantize_rows((rows * 2.0**power).to(backend.device), backend=backend.name)
    assert torch.equal(first.rows, second.rows)
    assert torch.equal(first.scales * 2.0**power, second.scales)


@few
@given(rows=matrices)
def test_codes_of_the_negative_are_the_negative_codes(backend, rows):
    rows = rows.to(backend.device)
    codes = quantize_rows(rows, backend=backend.name).rows
    assert torch.equal(quantize_rows(-rows, backend=backend.name).rows, -codes)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2],
        lambda a: a[:, 3:29],
        lambda a: a[:, ::3],
        lambda a: a.T,
        lambda a: a[:1].expand(6, -1),
        lambda a: a[:, :1].expand(-1, 9),
    ],
)
def test_strides_do_not_matter(backend, view):
    rows = view(rows_of(10, 33, device=backend.device))
    got = quantize_rows(rows, backend=backend.name)
    expected = quantize_rows(rows.contiguous(), backend="reference")
    assert torch.equal(got.rows, expected.rows)
    back = dequantize_rows(
        view(expected.rows.new_ones(10, 33)), rows[:, 0].abs(), backend=backend.name
    )
    assert torch.equal(back, rows[:, :1].abs().expand(rows.shape))


def test_negative_strides_and_read_only_memory():
    rows = rows_of(6, 20).numpy()[::-1, ::-1]
    expected = quantize_rows(rows.copy(), backend="reference")
    rows.flags.writeable = False
    assert np.array_equal(quantize_rows(rows, backend="cpp").rows, expected.rows)


def test_rows_between_the_addresses_of_floats_are_read():
    records = np.zeros(4, [("name", "u1"), ("row", "f4", (3,))])
    records["row"] = rows_of(4, 3).numpy()
    expected = quantize_rows(records["row"].copy(), backend="reference")
    assert np.array_equal(quantize_rows(records["row"], backend="cpp").rows, expected.rows)


def test_tensor_that_is_negated_as_it_is_read():
    # The kernel went by the address, where the numbers are that are still to be negated.
    rows = torch.complex(rows_of(5, 1), rows_of(5, 1)).conj().imag
    assert rows.is_neg()
    expected = quantize_rows(rows.clone(), torch.float16, backend="reference")
    assert torch.equal(quantize_rows(rows, torch.float16, backend="cpp"), expected)


@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_default_device_of_torch_does_not_matter(name):
    # The result was made on the default device, and its address handed to a CPU kernel.
    quantized = quantize_rows(rows_of(3, 5))
    with torch.device("meta"):
        assert dequantize_rows(*quantized, backend=name).device.type == "cpu"
        assert quantize_rows(quantized.rows.float(), backend=name).rows.device.type == "cpu"


def test_arrays_give_arrays():
    quantized = quantize_rows(rows_of(2, 5).numpy())
    assert isinstance(quantized.rows, np.ndarray)
    assert isinstance(quantized.scales, np.ndarray)
    assert isinstance(dequantize_rows(*quantized), np.ndarray)


def test_dtype_may_be_a_name():
    rows = rows_of(2, 5)
    assert quantize_rows(rows, "float16").dtype == torch.float16
    assert quantize_rows(rows, "int8").rows.dtype == torch.int8


@pytest.mark.parametrize("target", [torch.int8, torch.float16, torch.bfloat16])
def test_out_is_filled_and_returned(backend, target):
    rows = rows_of(3, 21, device=backend.device)
    codes = torch.zeros(5, 21, dtype=target, device=backend.device)
    scales = torch.full((5,), 7.0, device=backend.device)
    out = Quantized(codes[1:4], scales[1:4]) if target == torch.int8 else codes[1:4]
    got = quantize_rows(rows, target, out=out, backend=backend.name)
    expected = quantize_rows(rows, target, backend="reference")
    assert got is out
    assert torch.equal(codes[1:4], expected.rows if target == torch.int8 else expected)
    assert not bool(codes[[0, 4]].any())
    assert scales[[0, 4]].tolist() == [7, 7]


def test_dequantised_rows_go_to_out(backend):
    quantized = quantize_rows(rows_of(3, 21, device=backend.device), backend="reference")
    out = torch.zeros(3, 21, device=backend.device)
    assert dequantize_rows(*quantized, out=out, backend=backend.name) is out
    assert torch.equal(out, dequantize_rows(*quantized, backend="reference"))


def test_rows_are_not_changed(backend):
    rows = hard_rows(torch.float32).to(backend.device)
    before = rows.clone()
    quantize_rows(rows, backend=backend.name)
    assert same(rows, before)


def test_bits_do_not_depend_on_the_number_of_threads(backend, monkeypatch):
    rows = rows_of(*((600, 1001) if backend.name == "cpp" else (6, 3)), device=backend.device)
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("PYFEAT_NUM_THREADS", threads)
        results.append(quantize_rows(rows, backend=backend.name))
    assert torch.equal(results[0].rows, results[1].rows)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_large_new_rows_begin_a_cache_line(dtype):
    rows = torch.ones(3 << 20, 2)
    result = quantize_rows(rows, dtype, backend="cpp")
    stored = result.rows if dtype == "int8" else result
    assert (tuple(stored.shape), stored.data_ptr() % 64) == ((3 << 20, 2), 0)


def test_eight_threads_give_the_same_bits(backend):
    if backend.name == "triton" and interpreting():
        pytest.skip("Triton's interpreter runs in one thread")
    rows = [rows_of(40 + i, 65, device=backend.device) for i in range(8)]
    alone = [quantize_rows(r, backend=backend.name).rows for r in rows]
    with ThreadPoolExecutor(8) as workers:
        together = workers.map(lambda r: quantize_rows(r, backend=backend.name).rows, rows * 2)
        assert all(torch.equal(a, b) for a, b in zip(alone * 2, together, strict=True))


def test_rows_that_need_a_gradient_go_to_the_reference():
    rows = rows_of(2, 3).requires_grad_()
    quantize_rows(rows, torch.float16).float().sum().backward()
    assert torch.equal(rows.grad, torch.ones(2, 3))
    with pytest.raises(BackendError, match="rows must not require a gradient"):
        quantize_rows(rows, torch.float16, backend="cpp")


@pytest.mark.parametrize(
    ("rows", "dtype", "error", "message"),
    [
        ([[1.0]], "int8", TypeError, "rows must be an ndarray or a Tensor, got list"),
        (np.ones((2, 2)), "int8", TypeError, "rows must hold one of float32, float16, bfloat16"),
        (torch.ones(3), "int8", ValueError, r"rows must have shape \(n, d\), got \(3,\)"),
        (torch.ones(1, 3), "int4", TypeError, "dtype must be one of torch.int8, .*got 'int4'"),
        (torch.ones(1, 3), torch.int16, TypeError, "dtype must be one of .*got torch.int16"),
    ],
)
def test_rejects_rows(rows, dtype, error, message):
    with pytest.raises(error, match=message):
        quantize_rows(rows, dtype)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (torch.zeros(1, 3), TypeError, "out must be Quantized for int8, got Tensor"),
        (Quantized(torch.zeros(1, 3), torch.zeros(1)), ValueError, "out.rows must have dtype"),
        (
            Quantized(torch.zeros(1, 3, dtype=torch.int8), torch.zeros(2)),
            ValueError,
            r"out.scales must have shape \(1,\), got \(2,\)",
        ),
        (Quantized(None, torch.zeros(1)), TypeError, "out.rows must be a Tensor, got NoneType"),
        (
            Quantized(torch.zeros(1, 6, dtype=torch.int8)[:, ::2], torch.zeros(1)),
            ValueError,
            "out.rows must be contiguous",
        ),
    ],
)
def test_rejects_out(out, error, message):
    with pytest.raises(error, match=message):
        quantize_rows(torch.ones(1, 3), out=out)


@pytest.mark.parametrize(
    ("rows", "scales", "error", "message"),
    [
        (torch.ones(1, 3).char(), None, ValueError, "scales must be given for rows of int8"),
        (torch.ones(1, 3), torch.ones(1), ValueError, "scales must be None for rows of torch.fl"),
        (torch.ones(1, 3).char(), torch.ones(2), ValueError, r"scales must have shape \(1,\)"),
        (torch.ones(1, 3).char(), torch.ones(1).half(), TypeError, "scales must hold float32"),
        (torch.ones(1, 3).long(), None, TypeError, "rows must hold one of int8, float32"),
        (torch.ones(1, 3).char(), torch.ones(1, device="meta"), ValueError, "scales must be on"),
        (torch.eye(3).to_sparse(), None, TypeError, "rows must be a dense tensor, got torch.sp"),
        (np.ones((1, 3), ">f4"), None, TypeError, "rows must hold numbers that torch knows, got"),
    ],
)
def test_rejects_what_cannot_be_dequantised(rows, scales, error, message):
    with pytest.raises(error, match=message):
        dequantize_rows(rows, scales)
