"""The fixture `backend`: a test that takes it runs once on each backend of its op.

The module's name says which op is meant: `test_pool.py` tests the op `pool`. The reference is no
parameter: it is what the others are compared with.

Set `PYFEAT_REQUIRE=cpp,cuda,triton` where these must run: what the op has and this machine cannot
run is then a failure, not a skip. `cpp` asks for the native module; an instruction set that the CPU
lacks is still skipped, unless it is named too: `PYFEAT_REQUIRE=cpp[avx512]`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyfeat.ops._check import why_no_core
from pyfeat.ops._explain import BACKENDS_OF

ISAS = ("generic", "avx2", "avx512", "avx512bf16")


@dataclass(frozen=True)
class RunOn:
    """Where a test runs: `name` is the `backend=` argument, `device` where its tensors belong."""

    name: str
    device: str


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `backend` once for each backend that its op has."""
    if "backend" not in metafunc.fixturenames:
        return
    op = metafunc.module.__name__.rpartition("test_")[2]
    names = [b.name for b in BACKENDS_OF[op] if b.name != "reference"]
    cpp = [f"cpp[{isa}]" for isa in ISAS]
    params = [p for name in names for p in (cpp if name == "cpp" else [name])]
    metafunc.parametrize("backend", params, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[RunOn]:
    """Return where to run; the instruction set is forced for as long as the test lasts."""
    param: str = request.param
    name, _, isa = param.rstrip("]").partition("[")
    if why := why_not_here(name):
        skip_or_fail(param, name, why)
    if not isa:
        yield RunOn(name, "cuda" if torch.cuda.is_available() else "cpu")
        return
    from pyfeat import _core

    if isa not in _core.isas():
        skip_or_fail(param, param, f"this CPU has no {isa}")
    before = _core.isa()
    _core.set_isa(isa)
    yield RunOn(name, "cpu")
    _core.set_isa(before)


@pytest.fixture
def end_of_page() -> NDArray[np.uint8]:
    """Return the bytes of a page; those behind it may not be read."""
    page = mmap.PAGESIZE
    pages = np.frombuffer(mmap.mmap(-1, 2 * page), np.uint8)
    behind = ctypes.c_void_p(pages.ctypes.data + page)
    assert ctypes.CDLL(None, use_errno=True).mprotect(behind, page, 0) == 0
    return pages[:page]


def why_not_here(name: str) -> str | None:
    """Return why a backend cannot run on this machine, or None."""
    if name == "cpp":
        return why_no_core()
    if name == "cuda":
        return None if torch.cuda.is_available() else "no CUDA device"
    if find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "no CUDA device, and TRITON_INTERPRET=1 is not set"
    return None


def skip_or_fail(param: str, demand: str, why: str) -> None:
    """Skip, or fail when `PYFEAT_REQUIRE` demands it: by the parameter's name or by `demand`."""
    required = {r.strip() for r in os.environ.get("PYFEAT_REQUIRE", "").split(",")}
    if required & {param, demand}:
        pytest.fail(f"PYFEAT_REQUIRE asks for {param}: {why}", pytrace=False)
    pytest.skip(f"{param}: {why}")
