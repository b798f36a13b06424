"""The op `quantize_fp8`: its bound in float64, and its codes against torch's, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfeat.errors import BackendError
from pyfeat.ops import Quantized, explain, layernorm_quantize, quantize_fp8
from pyfeat.ops._quantize_fp8 import FP8, WIDEST

from .conftest import RunOn

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [(0, 3), (1, 1), (2, 13), (5, 16), (3, 31), (4, 384), (1, 1031)]

# numpy, in which Triton's interpreter computes, warns of what IEEE 754 defines.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def random(n: int, d: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n + d)).to(dtype)


def assert_equal_bits(got: Quantized, wanted: Quantized) -> None:
    assert torch.equal(got.rows.view(torch.uint8), wanted.rows.view(torch.uint8))
    torch.testing.assert_close(got.scales, wanted.scales, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_codes_are_half_a_step_from_the_rows_at_most(n, d, dtype) -> None:
    rows = random(n, d, dtype)
    codes, scales = quantize_fp8(rows, backend="reference")
    exact, wide = rows.double(), scales.double()[:, None]
    step = torch.maximum(exact.abs() * 2.0**-4, wide * 2.0**-10)
    # Quotient, product and scale are rounded to float32.
    assert ((codes.double() * wide - exact).abs() <= step + 2.0**-22 * exact.abs()).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_bits_are_those_of_the_reference(backend: RunOn, n, d, dtype) -> None:
    rows = random(n, d, dtype).to(backend.device)
    got = quantize_fp8(rows, backend=backend.name)
    assert (got.rows.dtype, tuple(got.rows.shape), got.scales.shape) == (FP8, (n, d), (n,))
    assert_equal_bits(got, quantize_fp8(rows, backend="reference"))


def test_every_code_and_its_ties_round_as_torch_rounds(backend: RunOn) -> None:
    codes = torch.arange(0, 0x7F, dtype=torch.uint8).view(FP8).float()
    ties = (codes[1:] + codes[:-1]) / 2
    near = [(ties.view(torch.int32) + step).view(torch.float32) for step in (-1, 1)]
    row = torch.cat([codes, ties, *near])
    row = torch.cat([row, -row]).to(backend.device)  # its largest is 448: the scale is 1
    got = quantize_fp8(row[None], backend=backend.name)
    assert torch.equal(got.rows[0].float(), row.to(FP8).float())


@settings(max_examples=25, deadline=None)
@given(exponent=st.integers(-149, 127), fraction=st.floats(1, 1.99), d=st.integers(1, 40))
def test_any_size_of_row_becomes_what_the_reference_says(exponent, fraction, d) -> None:
    if explain("quantize_fp8", torch.ones(1, 1))["triton"] != "ok":
        pytest.skip("triton does not run on the CPU")
    rows = random(2, d) * (fraction * torch.tensor(2.0, dtype=torch.float64) ** exponent)
    rows = rows.float()  # also infinite, denormal and zero ones
    assert_equal_bits(quantize_fp8(rows, backend="triton"), quantize_fp8(rows, backend="reference"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_are_marked(backend: RunOn, value) -> None:
    rows = random(3, 24).to(backend.device)
    rows[1, 7], rows[2] = value, 0.0
    codes, scales = quantize_fp8(rows, backend=backend.name)
    assert scales.isnan().tolist() == [False, True, False]
    assert float(scales[2]) == 0
    assert not codes[1:].float().any()


def test_rows_and_columns_that_lie_apart_are_read(backend: RunOn) -> None:
    rows = random(40, 60).to(backend.device)
    for apart in (rows[::3, :24], rows.T):
        own = quantize_fp8(apart.contiguous(), backend=backend.name)
        assert_equal_bits(quantize_fp8(apart, backend=backend.name), own)


def test_codes_are_those_of_a_layernorm_that_gives_the_same_rows(backend: RunOn) -> None:
    shift = random(1, 48).to(backend.device)
    got = quantize_fp8(shift, backend=backend.name)
    none = torch.zeros(48, device=backend.device)
    assert_equal_bits(
        layernorm_quantize(shift, none, shift[0], backend=backend.name),
        got,
    )


def test_threads_get_the_same_bits() -> None:
    rows = random(64, 100)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(quantize_fp8, [rows] * 8):
            assert_equal_bits(got, quantize_fp8(rows))


def test_triton_leaves_wide_rows_to_the_reference() -> None:
    rows = random(1, WIDEST + 1)
    with pytest.raises(BackendError, match="it takes rows of at most 8192 numbers"):
        quantize_fp8(rows, backend="triton")
    assert quantize_fp8(rows).rows.shape == (1, WIDEST + 1)


@pytest.mark.parametrize("rows", [torch.zeros(3), torch.zeros(3, 0)])
def test_other_shapes_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"rows must have shape \(n, d\), d at least 1"):
        quantize_fp8(rows)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="rows must hold one of float32, float16, bfloat16"):
        quantize_fp8(torch.zeros(2, 3, dtype=torch.int32))
