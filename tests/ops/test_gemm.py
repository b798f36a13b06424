"""The packed matrix product under the ops, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfeat.ops._check import ITEMS

_core = pytest.importorskip("pyfeat._core")

EPS = 2.0**-24  # half a unit in the last place of 1, float32
BF16_EPS = 2.0**-9


@pytest.fixture(params=["generic", "avx2", "avx512", "avx512bf16"])
def isa(request):
    if request.param not in _core.isas():
        pytest.skip(f"this CPU has no {request.param}")
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


def product(a: torch.Tensor, b: torch.Tensor, *, bf16=False, threads=1) -> torch.Tensor:
    (m, k), n = a.shape, len(b)
    c = torch.full((m, n), float("nan"))
    _core.gemm(a.data_ptr(), b.data_ptr(), c.data_ptr(), m, n, k, ITEMS[a.dtype], bf16, threads)
    return c


def numbers(rng, rows, k, dtype=torch.float32):
    if dtype == torch.int8:
        return torch.from_numpy(rng.integers(-127, 128, (rows, k), dtype=np.int8))
    return torch.from_numpy(rng.standard_normal((rows, k), dtype=np.float32)).to(dtype)


def assert_close_sum(result, a, b, eps):
    # A sum of k rounded products is off by at most (k + 1) eps times the sum of sizes.
    a, b = a.double(), b.double()
    bound = (a.shape[1] + 1) * eps * (a.abs() @ b.abs().T)
    assert bool(((result.double() - a @ b.T).abs() <= bound).all())


@pytest.mark.parametrize("dtype", list(ITEMS))
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (14, 32, 256), (15, 33, 257), (37, 71, 613)])
def test_product_is_that_of_float64_up_to_rounding(isa, rng, dtype, m, n, k):
    a, b = numbers(rng, m, k, dtype), numbers(rng, n, k, dtype)
    assert_close_sum(product(a, b), a, b, EPS)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (15, 33, 257), (37, 71, 613)])
def test_bfloat16_product_sums_products_of_rounded_numbers(isa, rng, m, n, k):
    a, b = numbers(rng, m, k), numbers(rng, n, k)
    assert_close_sum(product(a, b, bf16=True), a.bfloat16(), b.bfloat16(), EPS)


def test_many_blocks_on_two_threads_fit_together(isa, rng):
    a, b = numbers(rng, 900, 40), numbers(rng, 2100, 40)
    assert_close_sum(product(a, b, threads=2), a, b, EPS)


def test_threads_do_not_change_a_bit(rng):
    a, b = numbers(rng, 700, 300), numbers(rng, 300, 300)
    assert torch.equal(product(a, b, threads=1), product(a, b, threads=3))


@settings(max_examples=60, deadline=None)
@given(m=st.integers(0, 40), n=st.integers(0, 70), k=st.integers(0, 70), bf16=st.booleans())
def test_product_of_any_shape(m, n, k, bf16):
    rng = np.random.default_rng(m + 41 * n + 2911 * k)
    a, b = numbers(rng, m, k), numbers(rng, n, k)
    result = product(a, b, bf16=bf16)
    if bf16:
        a, b = a.bfloat16(), b.bfloat16()
    assert_close_sum(result, a, b, EPS)


def test_nan_stays_in_its_row_and_column(isa, rng):
    a, b = numbers(rng, 20, 50), numbers(rng, 40, 50)
    a[3, 7] = float("nan")
    result = product(a, b)
    assert bool(result[3].isnan().all())
    assert not bool(result[[0, 1, 2, *range(4, 20)]].isnan().any())


def test_every_float16_is_read_as_itself(isa):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    one = torch.ones(1, 1, dtype=torch.float16)
    result = product(every[:, None].contiguous(), one)[:, 0]
    torch.testing.assert_close(result, every.float(), rtol=0, atol=0, equal_nan=True)


def test_floats_are_rounded_to_bfloat16_as_torch_does(isa, rng):
    bits = torch.from_numpy(rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.int32))
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38])
    x = torch.cat([bits.view(torch.float32), special])
    # Denormal numbers are 0 to the bfloat16 instructions.
    x = x[~(x.abs() < 2.0**-125)]
    result = product(x[:, None].contiguous(), torch.ones(1, 1), bf16=True)[:, 0]
    torch.testing.assert_close(result, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)


def test_peak_and_reading_are_measured(isa):
    assert _core.flop_per_second(False, 1) > 0
    assert _core.bytes_read_per_second(1) > 0


def test_no_thread_counts_as_one(rng):
    # Bug: a division by zero killed the process.
    a = numbers(rng, 20, 5)
    assert torch.equal(product(a, a, threads=0), product(a, a, threads=1))
    assert _core.flop_per_second(False, 0) > 0
    assert _core.bytes_read_per_second(0) > 0
