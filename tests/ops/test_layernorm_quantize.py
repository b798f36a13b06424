"""The op `layernorm_quantize` against its formula in float64, and its codes against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pyfeat.errors import BackendError
from pyfeat.ops import layernorm_quantize
from pyfeat.ops._quantize_fp8 import WIDEST

from .conftest import skip_or_fail, why_not_here

FP8 = torch.float8_e4m3fn
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [(0, 3), (1, 1), (2, 13), (5, 16), (3, 31), (4, 384), (2, 768), (1, 1031)]

# numpy, in which Triton's interpreter computes, warns of what IEEE 754 defines.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def arguments(n, d, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(n * d)
    x = 3 * torch.randn(n, d, generator=generator) + 1
    weight = 1 + 0.3 * torch.randn(d, generator=generator)
    bias = 0.2 * torch.randn(d, generator=generator)
    return x.to(device, dtype), weight.to(device), bias.to(device)


def exact(x, weight, bias, eps=1e-5):
    """Return the rows of LayerNorm in float64."""
    wide = (t.double() for t in (weight, bias))
    return nn.functional.layer_norm(x.double(), (x.shape[1],), *wide, eps=eps)


@pytest.fixture(params=["reference", "triton"])
def name(request) -> str:
    if request.param == "triton" and (why := why_not_here("triton")):
        skip_or_fail("triton", "triton", why)
    return request.param


def device_of(name: str) -> str:
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_codes_are_half_a_step_from_the_rows_at_most(name, n, d, dtype) -> None:
    given = arguments(n, d, dtype, device_of(name))
    y = exact(*given)
    rows, scales = layernorm_quantize(*given, backend=name)
    assert (rows.dtype, tuple(rows.shape)) == (FP8, (n, d))
    step = torch.maximum(y.abs() * 2.0**-4, scales.double()[:, None] * 2.0**-10)
    # y in float32: its mean and deviation are sums over d numbers of about 10.
    rounding = 64 * 2.0**-24 * (y.abs() + 1)
    assert ((rows.double() * scales.double()[:, None] - y).abs() <= step + rounding).all()


@pytest.mark.parametrize(("n", "d"), [(3, 31), (2, 768)])
def test_largest_number_of_a_row_has_the_largest_code(name, n, d) -> None:
    rows, scales = layernorm_quantize(*arguments(n, d, device=device_of(name)), backend=name)
    assert (rows.float().abs().amax(dim=1) == 448).all()
    y = exact(*arguments(n, d, device=device_of(name)))
    torch.testing.assert_close(scales.double() * 448, y.abs().amax(dim=1), rtol=1e-5, atol=0)


def test_every_code_and_its_ties_round_as_torch_rounds(name) -> None:
    # Without a weight y is the bias: every number there is between two codes, and one step of
    # float32 to both sides of it.
    codes = torch.arange(0, 0x7F, dtype=torch.uint8).view(FP8).float()
    ties = (codes[1:] + codes[:-1]) / 2
    near = [(ties.view(torch.int32) + step).view(torch.float32) for step in (-1, 1)]
    shift = torch.cat([codes, ties, *near])
    shift = torch.cat([shift, -shift]).to(device_of(name))
    x = torch.randn(1, len(shift), device=shift.device)
    rows, scales = layernorm_quantize(x, torch.zeros_like(shift), shift, backend=name)
    assert float(scales[0]) == 1
    assert torch.equal(rows[0].view(torch.uint8) & 0x7F, shift.to(FP8).view(torch.uint8) & 0x7F)
    assert torch.equal(rows[0].float(), shift.to(FP8).float())


def test_rows_of_zeros_have_scale_0(name) -> None:
    x, weight, _ = arguments(2, 24, device=device_of(name))
    x[0] = 5.0
    rows, scales = layernorm_quantize(x, weight, torch.zeros_like(weight), backend=name)
    assert float(scales[0]) == 0
    assert not rows[0].float().any()
    assert float(scales[1]) > 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_are_marked(name, value) -> None:
    x, weight, bias = arguments(3, 24, device=device_of(name))
    x[1, 7] = value
    rows, scales = layernorm_quantize(x, weight, bias, backend=name)
    assert scales.isnan().tolist() == [False, True, False]
    assert not rows[1].float().any()
    assert rows.float().isfinite().all()


def test_rows_that_lie_apart_are_read_where_they_lie(name) -> None:
    x, weight, bias = arguments(4, 60, device=device_of(name))
    apart = x[:, :40]
    got = layernorm_quantize(apart, weight[:40], bias[:40], backend=name)
    own = layernorm_quantize(apart.contiguous(), weight[:40], bias[:40], backend=name)
    assert torch.equal(got.rows.view(torch.uint8), own.rows.view(torch.uint8))
    assert torch.equal(got.scales, own.scales)


def test_columns_that_lie_apart_are_read_too(name) -> None:
    x, weight, bias = arguments(24, 5, device=device_of(name))
    got = layernorm_quantize(x.T, weight.repeat(5)[:24], bias.repeat(5)[:24], backend=name)
    own = layernorm_quantize(
        x.T.contiguous(), weight.repeat(5)[:24], bias.repeat(5)[:24], backend=name
    )
    assert torch.equal(got.rows.view(torch.uint8), own.rows.view(torch.uint8))


def test_arrays_are_taken() -> None:
    given = [t.numpy() for t in arguments(2, 8)]
    assert layernorm_quantize(*given).rows.dtype == FP8


def test_a_product_of_codes_is_near_the_product_of_rows() -> None:
    x, weight, bias = arguments(64, 384)
    matrix = torch.randn(384, 96, generator=torch.Generator().manual_seed(1)) / 384**0.5
    rows, scales = layernorm_quantize(x, weight, bias)
    got = (rows.float() @ matrix) * scales[:, None]
    wanted = exact(x, weight, bias).float() @ matrix
    assert nn.functional.cosine_similarity(got, wanted).min() > 0.999


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "x must hold one of float32"),
        ({"x": torch.zeros(3)}, ValueError, r"x must have shape \(n, d\)"),
        ({"x": torch.zeros(3, 0)}, ValueError, "d at least 1"),
        ({"weight": torch.ones(4)}, ValueError, r"weight must have shape \(3,\)"),
        ({"bias": torch.ones(3, 1)}, ValueError, r"bias must have shape \(3,\)"),
        ({"bias": [0.0] * 3}, TypeError, "bias must be an ndarray or a Tensor"),
        ({"eps": -1.0}, ValueError, r"eps must be a number in \[0, inf\)"),
        ({"eps": np.nan}, ValueError, "eps must be"),
    ],
)
def test_wrong_arguments_are_told(changed, error, message) -> None:
    given = {"x": torch.zeros(2, 3), "weight": torch.ones(3), "bias": torch.zeros(3), **changed}
    with pytest.raises(error, match=message):
        layernorm_quantize(**given)


def test_triton_leaves_wide_rows_to_the_reference() -> None:
    given = (torch.randn(1, WIDEST + 1), torch.ones(WIDEST + 1), torch.zeros(WIDEST + 1))
    with pytest.raises(BackendError, match="it takes rows of at most 8192 numbers"):
        layernorm_quantize(*given, backend="triton")
    assert layernorm_quantize(*given).rows.shape == (1, WIDEST + 1)
