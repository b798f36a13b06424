"""The op `fp8_linear` against its formula in float64, with every epilogue."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pyfeat.ops import Quantized, fp8_linear, layernorm_quantize, quantize_fp8

from .conftest import skip_or_fail, why_not_here

EPS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SHAPES = [(0, 3, 8), (2, 0, 8), (1, 1, 1), (3, 5, 7), (17, 130, 100), (130, 33, 64), (2, 3, 200)]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def exact(x: Quantized, weight: Quantized) -> torch.Tensor:
    """Return the product in float64."""
    left, right = (q.rows.double() * q.scales.double()[:, None] for q in (x, weight))
    return left @ right.T


@pytest.fixture(params=["reference", "triton"])
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "triton" and (why := why_not_here("triton")):
        skip_or_fail("triton", "triton", why)
    return str(request.param)


@pytest.fixture
def device(name: str) -> str:
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


def given(n: int, m: int, k: int, device: str) -> tuple[Quantized, Quantized]:
    return quantize_fp8(random(n, k).to(device)), quantize_fp8(random(m, k).to(device))


def assert_close(got: torch.Tensor, wanted: torch.Tensor, k: int) -> None:
    # One rounding to the type, and k products of numbers of about 1 summed in float32 (on a GPU
    # with 14 bits within 128 columns).
    bound = EPS[got.dtype] * wanted.abs() + (k * 2.0**-24 + got.is_cuda * 2.0**-10) * 16
    assert ((got.double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize(("n", "m", "k"), SHAPES)
def test_product_is_that_of_the_rows(name, device, n, m, k, dtype) -> None:
    x, weight = given(n, m, k, device)
    got = fp8_linear(x, weight, dtype=dtype, backend=name)
    assert (got.dtype, tuple(got.shape)) == (dtype, (n, m))
    assert_close(got, exact(x, weight), k)


@pytest.mark.parametrize(("n", "m", "k"), [(130, 140, 200), (3, 260, 64), (5, 7, 208)])
def test_tiles_change_sums_by_rounding_only(n, m, k) -> None:
    if why := why_not_here("triton"):
        skip_or_fail("triton", "triton", why)
    from pyfeat.ops._triton.fp8_linear import LARGE, SMALL, run

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, weight = given(n, m, k, device)
    for tile in (SMALL, LARGE):
        out = torch.empty(n, m, device=device)
        run(x, weight, None, False, None, out, tile)
        assert_close(out, exact(x, weight), k)


def test_tiles_are_large_where_there_are_enough() -> None:
    pytest.importorskip("triton")
    from pyfeat.ops._triton.fp8_linear import LARGE, SMALL, tile_of

    assert tile_of(256 * 197, 768, aligned=True) == LARGE
    assert tile_of(256 * 197, 768, aligned=False) == SMALL
    assert tile_of(197, 768, aligned=True) == SMALL


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_bias_gelu_and_residual_follow_in_this_order(name, device, gelu, with_residual) -> None:
    x, weight = given(33, 40, 96, device)
    bias, residual = random(40).to(device), random(33, 40).to(device)
    wanted = exact(x, weight) + bias.double()
    wanted = nn.functional.gelu(wanted) if gelu else wanted
    wanted = wanted + residual.double() if with_residual else wanted
    rest = residual if with_residual else None
    got = fp8_linear(x, weight, bias, gelu=gelu, residual=rest, dtype=torch.float32, backend=name)
    assert_close(got, wanted, 96)


def test_rows_marked_as_not_finite_stay_so(name, device) -> None:
    rows = random(3, 16).to(device)
    rows[1, 2] = torch.inf
    got = fp8_linear(quantize_fp8(rows), quantize_fp8(random(4, 16).to(device)), backend=name)
    assert got.isnan().all(dim=1).tolist() == [False, True, False]


def test_what_lies_apart_is_read_too(name, device) -> None:
    x, weight = given(6, 5, 32, device)
    apart = Quantized(x.rows.T.contiguous().T, torch.stack([x.scales, x.scales], dim=1)[:, 0])
    got = fp8_linear(apart, weight, backend=name)
    assert torch.equal(got, fp8_linear(x, weight, backend=name))


def test_layernorm_and_product_keep_the_direction_of_rows(name, device) -> None:
    x, matrix = random(20, 96).to(device), random(48, 96).to(device)
    gain, shift = torch.ones(96, device=device), torch.zeros(96, device=device)
    rows = layernorm_quantize(x, gain, shift, backend=name)
    got = fp8_linear(rows, quantize_fp8(matrix), dtype=torch.float32, backend=name)
    wanted = nn.functional.layer_norm(x, (96,)) @ matrix.T
    assert nn.functional.cosine_similarity(got, wanted).min() > 0.998


X, W = given(2, 3, 4, "cpu")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": torch.zeros(2, 4)}, TypeError, "x must be Quantized of tensors, got Tensor"),
        ({"x": Quantized(X.rows.float(), X.scales)}, TypeError, "x must hold float8_e4m3fn"),
        ({"x": Quantized(X.rows, X.scales[:1])}, ValueError, r"x must have shape \(n, k\)"),
        ({"weight": quantize_fp8(random(3, 5))}, ValueError, r"weight must have shape \(3, 4\)"),
        ({"bias": torch.zeros(2)}, ValueError, r"bias must have shape \(3,\)"),
        ({"bias": torch.zeros(3, dtype=torch.int32)}, TypeError, "bias must hold"),
        ({"residual": torch.zeros(2, 3)}, TypeError, "residual must hold torch.bfloat16"),
        ({"dtype": torch.int8}, TypeError, "dtype must be one of"),
    ],
)
def test_wrong_arguments_are_told(changed: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fp8_linear(**{"x": X, "weight": W, **changed})
