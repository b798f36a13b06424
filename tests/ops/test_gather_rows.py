"""Rows arrive where they were asked for, widened exactly, on every instruction set."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfeat.errors import BackendError
from pyfeat.ops import explain, gather_rows

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
# Around the widths of the vectors, 4 to 64 numbers, and primes.
WIDTHS = (0, 1, 3, 7, 8, 15, 16, 17, 31, 33, 64, 101, 384)


def some_rows(n: int, d: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Return rows of random bits: every value of a 16-bit type occurs, NaN and infinity too."""
    size = torch.empty(0, dtype=dtype).element_size()
    bits = np.random.default_rng(seed).integers(0, 256, n * d * size, dtype=np.uint8)
    return (
        torch.frombuffer(bits, dtype=dtype).reshape(n, d) if n * d else torch.empty(n, d).to(dtype)
    )


def picks(lengths: list[int], m: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(lengths), m)
    rows = rng.integers(0, np.array(lengths)[which])
    return torch.from_numpy(which), torch.from_numpy(rows)


def one_by_one(sources, which, rows, scales=None, dtype=None):
    """Return the rows as float64 where they are widened, as they are where not."""
    out = torch.stack([sources[s][r] for s, r in zip(which, rows, strict=True)])
    if scales is not None:
        factor = torch.stack([scales[s][r] for s, r in zip(which, rows, strict=True)])
        # Two float32 numbers have an exact product in float64: one rounding gives float32.
        return (out.double() * factor.double()[:, None]).float()
    return out if dtype is None else out.double().to(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors agree to the bit, all NaN being one."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.nan_to_num(nan=0.0, posinf=1e38, neginf=-1e38),
        b.nan_to_num(nan=0.0, posinf=1e38, neginf=-1e38),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_any_width_are_widened_exactly(backend, dtype):
    which, rows = picks([5, 11], 37)
    for d in WIDTHS:
        sources = [some_rows(5, d, dtype), some_rows(11, d, dtype, seed=2)]
        got = gather_rows(sources, which, rows, dtype=torch.float32, backend=backend.name)
        assert same_bits(got, one_by_one(sources, which, rows, dtype=torch.float32)), d


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64, torch.uint8, torch.bool], ids=str)
def test_without_a_dtype_rows_keep_their_bytes(backend, dtype):
    source = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (9, 48), dtype=np.uint8))
    source = source.view(dtype)
    which, rows = picks([9], 20)
    got = gather_rows([source], which, rows, backend=backend.name)
    assert torch.equal(got.view(torch.uint8), source[rows].view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scales_multiply_rows_with_one_rounding(backend, dtype):
    sources = [some_rows(5, 33, dtype), some_rows(3, 33, dtype, seed=2)]
    rng = np.random.default_rng(3)
    scales = [torch.from_numpy(rng.standard_normal(n).astype(np.float32)) for n in (5, 3)]
    which, rows = picks([5, 3], 40)
    got = gather_rows(sources, which, rows, scales=scales, backend=backend.name)
    assert same_bits(got, one_by_one(sources, which, rows, scales))


def test_every_float16_is_widened_exactly(backend):
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).reshape(64, 1024)
    zero, rows = torch.zeros(64, dtype=torch.int64), torch.arange(64)
    got = gather_rows([numbers], zero, rows, dtype=torch.float32, backend=backend.name)
    assert same_bits(got, numbers.double().float())


def test_order_and_repeats_are_kept(backend):
    source = torch.arange(4.0)[:, None]
    rows = torch.tensor([3, 0, 3, 1])
    got = gather_rows([source], torch.zeros(4, dtype=torch.int64), rows, backend=backend.name)
    assert got.ravel().tolist() == [3, 0, 3, 1]


def test_no_rows_give_an_empty_result(backend):
    none = torch.zeros(0, dtype=torch.int64)
    got = gather_rows([torch.zeros(0, 5)], none, none, backend=backend.name)
    assert got.shape == (0, 5)


def test_empty_sources_beside_others_do_no_harm(backend):
    sources = [torch.zeros(0, 2), torch.ones(1, 2), torch.zeros(0, 2)]
    got = gather_rows(sources, torch.tensor([1]), torch.tensor([0]), backend=backend.name)
    assert got.tolist() == [[1, 1]]


def test_more_rows_than_one_thread_takes(backend, monkeypatch):
    monkeypatch.setenv("PYFEAT_NUM_THREADS", "3")
    source = some_rows(701, 257, torch.float16)
    which, rows = picks([701], 5003)
    got = gather_rows([source], which, rows, dtype=torch.float32, backend=backend.name)
    assert same_bits(got, source[rows].float())


LAYOUTS = {
    "rows apart": lambda x: x[::2],
    "backwards": lambda x: x[::-1],
    "columns cut": lambda x: x[:, 3:-2],
    "columns apart": lambda x: x[:, ::3],
    "by columns": np.asfortranarray,
    "unaligned": lambda x: np.frombuffer(b"0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_sources_may_lie_in_memory_as_they_like(backend, make):
    source = make(np.random.default_rng(0).standard_normal((21, 40)).astype(np.float32))
    rows = np.array([0, len(source) - 1, 4])
    got = gather_rows([source], np.zeros(3, np.int64), rows, backend=backend.name)
    np.testing.assert_array_equal(got, source[rows])


def test_memory_map_that_is_read_only_is_read(backend, tmp_path):
    rows = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    at = np.array([29, 7])
    got = gather_rows([mapped], np.zeros(2, int), at, dtype=torch.float32, backend=backend.name)
    np.testing.assert_array_equal(got, rows[at].astype(np.float32))


def test_index_of_any_integer_type_is_taken(backend):
    source = np.arange(300.0, dtype=np.float32)[:, None]
    for dtype in (np.uint8, np.int16, np.int32, np.int64):
        at = np.array([0, 127], dtype)
        got = gather_rows([source], np.zeros(2, dtype), at, backend=backend.name)
        assert got.ravel().tolist() == [0, 127]


def test_out_is_filled_and_returned(backend):
    source, out = np.eye(3, dtype=np.float16), np.full((2, 3), np.nan, np.float32)
    at = np.array([2, 0])
    got = gather_rows(
        [source], np.zeros(2, int), at, dtype=torch.float32, out=out, backend=backend.name
    )
    assert got is out
    assert out.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_inputs_are_not_changed(backend):
    source = some_rows(5, 16, torch.int8)
    which, rows = picks([5], 9)
    before = [x.clone() for x in (source, which, rows)]
    gather_rows([source], which, rows, dtype=torch.float32, backend=backend.name)
    assert all(map(torch.equal, before, (source, which, rows)))


def test_eight_threads_get_the_same_bits(backend):
    source = some_rows(501, 99, torch.float16)
    which, rows = picks([501], 3001)

    def run(_: int) -> torch.Tensor:
        return gather_rows([source], which, rows, dtype=torch.float32, backend=backend.name)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(run, range(16)))
    assert all(same_bits(results[0], r) for r in results[1:])


def test_number_of_threads_changes_no_bit(backend, monkeypatch):
    source = some_rows(501, 99, torch.bfloat16)
    which, rows = picks([501], 6007)
    found = []
    for threads in ("1", "2", "7"):
        monkeypatch.setenv("PYFEAT_NUM_THREADS", threads)
        found.append(gather_rows([source], which, rows, dtype=torch.float32, backend=backend.name))
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    m=st.sampled_from([0, 1, 2, 13, 511, 512, 513]),
    d=st.integers(0, 70),
    dtype=st.sampled_from(DTYPES),
    scaled=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_cpp_gives_the_bits_of_the_reference(lengths, m, d, dtype, scaled, seed):
    sources = [some_rows(n, d, dtype, seed + i) for i, n in enumerate(lengths)]
    scales = [some_rows(n, 1, torch.float32, seed + 100 + i)[:, 0] for i, n in enumerate(lengths)]
    which, rows = picks(lengths, m, seed)
    got, expected = (
        gather_rows(
            sources,
            which,
            rows,
            scales=scales if scaled else None,
            dtype=torch.float32,
            backend=name,
        )
        for name in ("cpp", "reference")
    )
    assert same_bits(got, expected)


def test_reference_passes_gradients_to_the_rows():
    source = torch.zeros(3, 2, requires_grad=True)
    at = torch.tensor([2, 2, 0])
    gather_rows([source], torch.zeros(3, dtype=torch.int64), at).sum().backward()
    assert source.grad.tolist() == [[1, 1], [0, 0], [2, 2]]


def test_cpp_refuses_what_needs_a_gradient():
    source, at = torch.zeros(3, 2, requires_grad=True), torch.tensor([0])
    with pytest.raises(BackendError, match=r"sources\[0\] must not require a gradient"):
        gather_rows([source], at, at, backend="cpp")


def test_explain_takes_the_same_arguments():
    at = np.zeros(1, np.int64)
    reasons = explain("gather_rows", [np.zeros((1, 1), np.float16)], at, at)
    assert reasons == {"cpp": "ok", "reference": "ok"}


X = np.zeros((3, 2), np.float16)
AT = np.zeros(1, np.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, AT, AT), {}, TypeError, "sources must be a sequence of arrays, got one ndarray"),
        (([], AT, AT), {}, ValueError, "sources must hold at least one array, got none"),
        (([X[0]], AT, AT), {}, ValueError, r"sources\[0\] must have shape \(n, d\), got \(2,\)"),
        (([X, X[:, :1]], AT, AT), {}, ValueError, r"sources\[1\] must have d, dtype .* got 1 "),
        (([X], AT + 1, AT), {}, ValueError, r"which must be in \[0, 1\), got 1"),
        (([X], AT - 1, AT), {}, ValueError, r"which must be in \[0, 1\), got -1"),
        (([X], AT, AT + 3), {}, ValueError, r"rows must be in \[0, 3\) for .*\[0\], got 3 at 0"),
        (([X], AT, AT - 1), {}, ValueError, r"rows must be in \[0, 3\) for .*\[0\], got -1 at 0"),
        (([X], AT, AT * 1.0), {}, TypeError, "rows must hold integers, got torch.float64"),
        (([X], AT, AT[:0]), {}, ValueError, r"rows must have shape \(1,\), got \(0,\)"),
        (([X], AT[None], AT), {}, ValueError, r"which must have shape \(m,\), got \(1, 1\)"),
        (([X], torch.tensor(0), AT), {}, ValueError, r"which must have shape \(m,\), got \(\)"),
        (([X], AT, AT), {"dtype": torch.float64}, ValueError, "dtype must be torch.float16, that"),
        (([X.astype(int)], AT, AT), {"dtype": torch.float32}, TypeError, "sources must be one of"),
        (([X], AT, AT), {"scales": []}, ValueError, "scales must hold one array a source, 1, got"),
        (([X], AT, AT), {"scales": [X[:, 0]]}, TypeError, r"scales\[0\] must have dtype torch.fl"),
        (
            ([X], AT, AT),
            {"scales": [np.zeros(2, np.float32)]},
            ValueError,
            r"scales\[0\] must have shape \(3,\), got \(2,\)",
        ),
        (([X], AT, AT), {"out": X}, ValueError, r"out must have shape \(1, 2\), got \(3, 2\)"),
        (([X], AT, AT), {"out": X[::3]}, None, None),
        (([X], AT, AT), {"out": X[:1] * 1.0}, None, None),
        (([X], AT, AT), {"out": X[:1].astype(int)}, ValueError, "out must have dtype torch.float1"),
    ],
)
def test_bad_input_is_refused_with_one_sentence(arguments, options, error, message):
    if error is None:  # neighbours of the refused ones that are right
        assert gather_rows(*arguments, **options) is options["out"]
        return
    with pytest.raises(error, match=message):
        gather_rows(*arguments, **options)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros(5, np.uint8)[1:].view(np.float16).reshape(1, 2), "out must be aligned"),
        (torch.zeros(1, 2, dtype=torch.float16, device="meta"), "out must be on cpu, got meta"),
    ],
)
def test_out_elsewhere_is_refused(out, message):
    with pytest.raises(ValueError, match=message):
        gather_rows([X], AT, AT, out=out)


def test_conjugated_source_is_read_as_its_numbers(backend):
    # The kernel copied the bytes, and with them the sign that is still to be changed.
    source = torch.complex(torch.ones(3, 2), torch.ones(3, 2)).conj()
    got = gather_rows([source], AT, AT, backend=backend.name)
    assert torch.equal(got, source[:1].clone())


def test_conjugated_out_is_refused():
    out = torch.zeros(1, 2, dtype=torch.complex64).conj()
    with pytest.raises(ValueError, match="out must be plain memory"):
        gather_rows([torch.zeros(3, 2, dtype=torch.complex64)], AT, AT, out=out)


def test_default_device_of_torch_does_not_matter(backend):
    with torch.device("meta"):
        gathered = gather_rows([torch.zeros(3, 2, device="cpu")], AT[:0], AT[:0], dtype=None)
    assert gathered.device.type == "cpu"


def test_read_only_out_is_refused():
    out = np.zeros((1, 2), np.float16)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writable, got a read-only array"):
        gather_rows([X], AT, AT, out=out)
