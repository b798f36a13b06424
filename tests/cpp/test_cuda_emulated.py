"""The CUDA kernels and their adapters, compiled for the CPU, against the references."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch

from pyfeat.ops import Gaussian, Laplacian, Polynomial, Preprocessing, _rbf_sum_device
from pyfeat.ops._explain import BACKENDS_OF
from pyfeat.ops._quantize_rows import DEQUANTIZE_BACKENDS, Quantized
from tests.cpp.emulated.build import build

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
EPS = 2.0**-24

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on PATH"),
]


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    pybind11 = pytest.importorskip("pybind11")
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    # A name of its own: pybind11 hands out the real module, once loaded, to who asks for that one.
    spec = spec_from_file_location(
        "emulated._cuda", build(COMPILER, tmp_path_factory.mktemp("emulated"), includes)
    )
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(autouse=True)
def emulated(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyfeat._cuda", module)


def both(backends, *args):
    """Return what "cuda" gives for tensors of the CPU, and the reference."""
    cuda, reference = ({b.name: b for b in backends}[name] for name in ("cuda", "reference"))
    return cuda.run(*args), reference.run(*args)


def numbers(*shape, offset=0):
    """Return random numbers whose memory begins `offset` numbers after an aligned address."""
    generator = torch.Generator().manual_seed(sum(shape))
    flat = torch.randn(torch.Size(shape).numel() + offset, generator=generator)
    return flat[offset:].view(shape)


@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("method", ["avg", "max", "gem"])
@pytest.mark.parametrize("shape", [(2, 3, 49), (3, 8, 64), (1, 300, 5), (2, 2, 8193), (2, 5, 1)])
@pytest.mark.parametrize("adjacent", [False, True])
def test_pool(method, shape, adjacent, offset):
    n, c, positions = shape
    x = numbers(n, positions, c, offset=offset).mT if adjacent else numbers(*shape, offset=offset)
    got, expected = both(BACKENDS_OF["pool"], x, method, 3.0, False, torch.float32, None)
    # A lane adds at most positions / 32 numbers one by one; a cube is rounded twice more.
    size = x.abs().amax(dim=2) ** (3 if method == "gem" else 1)
    assert torch.all((got - expected).abs() <= EPS * (positions / 32 + 40) * (1 + size))


@pytest.mark.parametrize("offset", [0, 1, 8])
@pytest.mark.parametrize("d", [0, 1, 7, 8, 264])
@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.int8, torch.float16, torch.bfloat16])
def test_quantize_rows(source, target, d, offset):
    rows = numbers(11, d, offset=offset).to(source)
    rows[3], rows[4, :1], rows[5, -1:] = 0, torch.nan, torch.inf
    got, expected = both(BACKENDS_OF["quantize_rows"], rows, target, None)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    parts = got if isinstance(got, Quantized) else (got, None)
    back, wanted = both(DEQUANTIZE_BACKENDS, *parts, torch.float32, None)
    torch.testing.assert_close(back, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_preprocess(mode, dtype):
    spec = Preprocessing(37, 33 if mode == "crop" else 37, mode=mode, hflip=mode == "pad")
    images = [
        torch.randint(0, 256, (h, w, 3), dtype=torch.uint8) for h, w in ((50, 71), (9, 8), (1, 90))
    ]
    out = [torch.empty(3, 3, spec.crop, spec.crop, dtype=dtype) for _ in range(2)]
    for name, to in zip(("cuda", "reference"), out, strict=True):
        {b.name: b for b in BACKENDS_OF["preprocess"]}[name].run(images, spec, dtype, to)
    assert torch.equal(*out)


@pytest.mark.parametrize("kernel", [Gaussian((0.1, 0.3)), Laplacian(0.1), Polynomial()])
@pytest.mark.parametrize(("n", "m", "d"), [(5, 3, 1), (131, 257, 33), (129, None, 7)])
@pytest.mark.parametrize("diagonal", [True, False])
def test_rbf_sum(kernel, n, m, d, diagonal):
    if m is not None and not diagonal:
        pytest.skip("two samples have no diagonal")
    X, Y = numbers(n, d), None if m is None else numbers(m, d) + 0.5
    wx, wy = numbers(n).abs(), None if m is None else numbers(m).abs()
    got, expected = both(BACKENDS_OF["rbf_sum"], X, Y, kernel, wx, wy, "rows", diagonal)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:  # the bound of the op, 1e-5, of the largest entry
            assert (a.double() - b.double()).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("kernel", [Gaussian(0.1), Laplacian(0.1)])
@pytest.mark.parametrize("m", [150, None])
def test_rbf_sum_of_slabs(monkeypatch, kernel, m):
    monkeypatch.setattr(_rbf_sum_device, "_SLAB_NUMBERS", 1)  # one tile high
    X, Y = numbers(300, 3), None if m is None else numbers(m, 3) + 0.5
    wy = None if m is None else torch.ones(m)
    arguments = (X, Y, kernel, torch.ones(300), wy, "rows", Y is not None)
    for a, b in zip(*both(BACKENDS_OF["rbf_sum"], *arguments), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.double() - b.double()).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize(
    ("x", "y", "kernel"),
    [
        ([[-1e5]], [[1e5]], Polynomial(1.0, 1e10, 5)),  # (x y + c)^5 = 0, its slope times c = inf
        ([[1e10, 0.0], [0.0, 1e10]], None, Polynomial(1.0, 1.0, 3)),  # k(x, x) = inf, left out
    ],
    ids=["cancelled", "diagonal"],
)
def test_rbf_sum_keeps_out_infinities_that_no_pair_has(x, y, kernel):
    X, Y = torch.tensor(x), None if y is None else torch.tensor(y)
    wx, wy = torch.ones(len(X)), None if Y is None else torch.ones(len(Y))
    got, expected = both(BACKENDS_OF["rbf_sum"], X, Y, kernel, wx, wy, "rows", y is not None)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, check_dtype=False)


@pytest.mark.parametrize("kernel", [Gaussian(), Laplacian(), Polynomial()])
@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("n", [1, 3, 130])
def test_rbf_sum_of_a_bad_row_is_nan(kernel, diagonal, n):
    X = numbers(n, 2)
    X[n // 2, 1] = torch.inf
    arguments = (X, None, kernel, torch.ones(n), None, "rows", diagonal)
    for a, b in zip(*both(BACKENDS_OF["rbf_sum"], *arguments), strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a.isnan(), b.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize(("d", "offset"), [(1, 0), (32, 0), (32, 1), (71, 0)])
def test_topk(dtype, metric, d, offset):
    base = (numbers(130, d) * 20).to(dtype)
    base = torch.cat([base.new_zeros(offset), base.flatten()])[offset:].view(130, d)
    scales = numbers(130).abs() if dtype == torch.int8 else None
    got, expected = both(BACKENDS_OF["topk"], numbers(67, d), base, 5, metric, scales)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
