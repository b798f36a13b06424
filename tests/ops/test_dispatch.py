"""Who chooses the backend, in which order, and what a refusal says."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import pyfeat
from pyfeat.errors import BackendError
from pyfeat.ops import Preprocessing, explain
from pyfeat.ops._check import why_capability, why_no_core
from pyfeat.ops._dispatch import Backend, choose, explain_backends, never_refuses
from pyfeat.ops._preprocess import BACKENDS


def only_even(x):
    return None if x % 2 == 0 else f"x must be even, got {x}"


GPU_BACKENDS = ("cuda", "triton")
OP = (
    Backend("triton", lambda x: x, only_even),
    Backend("cpp", lambda x: x, never_refuses),
    Backend("reference", lambda x: x, never_refuses),
)


@pytest.fixture(autouse=True)
def _no_wish(monkeypatch):
    monkeypatch.delenv("PYFEAT_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_first_that_can_is_taken():
    assert choose("op", OP, None, 2).name == "triton"


def test_automatic_choice_steps_over_a_refusal():
    assert choose("op", OP, None, 3).name == "cpp"


def test_automatic_choice_leaves_the_interpreter_alone(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("op", OP, None, 2).name == "cpp"


def test_interpreter_is_taken_by_name(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("op", OP, "triton", 2).name == "triton"


def test_environment_beats_automatic(monkeypatch):
    monkeypatch.setenv("PYFEAT_BACKEND", "reference")
    assert choose("op", OP, None, 2).name == "reference"


def test_with_block_beats_environment(monkeypatch):
    monkeypatch.setenv("PYFEAT_BACKEND", "reference")
    with pyfeat.backend("cpp"):
        assert choose("op", OP, None, 2).name == "cpp"


def test_argument_beats_with_block():
    with pyfeat.backend("cpp"):
        assert choose("op", OP, "reference", 2).name == "reference"


def test_with_block_ends():
    with pyfeat.backend("reference"):
        pass
    assert choose("op", OP, None, 2).name == "triton"


def test_refusal_by_name_is_an_error_with_the_reason():
    with pytest.raises(BackendError, match=r"op: backend 'triton' .*: x must be even, got 3"):
        choose("op", OP, "triton", 3)


def test_backend_that_the_op_has_not_is_an_error():
    with pytest.raises(BackendError, match="op: backend 'cuda' does not exist for this op"):
        choose("op", OP, "cuda", 2)


UNKNOWN = r"must be one of \['cuda', 'triton', .* got 'gpu'"


def test_unknown_name_as_argument_is_a_value_error():
    with pytest.raises(ValueError, match="backend " + UNKNOWN):
        choose("op", OP, "gpu", 2)


def test_unknown_name_of_a_block_is_a_value_error():
    with pytest.raises(ValueError, match="name " + UNKNOWN), pyfeat.backend("gpu"):
        pass


def test_unknown_name_in_the_environment_is_a_value_error(monkeypatch):
    monkeypatch.setenv("PYFEAT_BACKEND", "gpu")
    with pytest.raises(ValueError, match="PYFEAT_BACKEND " + UNKNOWN):
        choose("op", OP, None, 2)


def test_bug_in_refuses_is_raised():
    def broken(x):
        return x.nonsense

    with pytest.raises(AttributeError, match="nonsense"):
        choose("op", (Backend("cpp", print, broken), *OP), None, 2)


def test_explain_gives_every_reason():
    reasons = explain_backends(OP, 3)
    assert reasons == {"triton": "x must be even, got 3", "cpp": "ok", "reference": "ok"}


def test_explain_finds_the_op():
    image = np.zeros((2, 2, 3), np.uint8)
    answers = explain("preprocess", image, Preprocessing())
    assert list(answers) == ["cuda", "triton", "cpp", "reference"]
    assert answers["cpp"] == answers["reference"] == "ok"
    assert answers["cuda"] == "image must be on cuda, got cpu"


ARRAY = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("dequantize_rows", (ARRAY.astype(np.int8), ARRAY[:, 0])),
        ("gather_rows", ([ARRAY], np.zeros(1, int), np.zeros(1, int))),
        ("moments", (ARRAY, np.ones(3))),
        ("pool", (ARRAY[:, :, None, None],)),
        ("quantize_rows", (ARRAY,)),
        ("rbf_sum", (ARRAY, None, pyfeat.ops.Gaussian(1.0))),
        ("softmax_xent", (ARRAY, np.zeros(3, int), np.zeros((1, 2, 3)))),
        ("topk", (ARRAY, ARRAY.astype(np.int8), 1, "ip", None)),
    ],
)
def test_explain_takes_arrays_as_the_op_does(op, arguments):
    # Bug: it asked them for the device of a tensor, or let a backend for a GPU say "ok".
    reasons = explain(op, *arguments)
    assert (reasons["cpp"], reasons["reference"]) == ("ok", "ok")
    assert all("must be on cuda" in reasons.get(gpu, "must be on cuda") for gpu in GPU_BACKENDS)


def test_explain_rejects_an_unknown_op():
    with pytest.raises(ValueError, match=r"op must be one of \[.*'preprocess'.*\], got 'pol'"):
        explain("pol")


def test_cpp_refuses_a_tensor_elsewhere():
    image = torch.zeros(2, 2, 3, dtype=torch.uint8, device="meta")
    assert explain("preprocess", image, Preprocessing())["cpp"] == "image must be on cpu, got meta"


def test_cpp_refuses_an_out_elsewhere():
    image = np.zeros((2, 2, 3), np.uint8)
    out = torch.empty(3, 224, 224, device="meta")
    reasons = explain("preprocess", image, Preprocessing(), torch.float32, out)
    assert reasons["cpp"] == "out must be on cpu, got meta"


def test_cpp_refuses_without_the_native_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyfeat._core", None)
    why_no_core.cache_clear()
    try:
        reasons = explain("preprocess", np.zeros((2, 2, 3), np.uint8), Preprocessing())
    finally:
        why_no_core.cache_clear()
    assert "without its native module" in reasons["cpp"]


def test_reference_is_last_and_never_refuses():
    assert BACKENDS[-1].name == "reference"
    assert BACKENDS[-1].refuses is never_refuses


def test_unknown_instruction_set_is_a_value_error():
    from pyfeat import _core

    with pytest.raises(ValueError, match=r"isa must be one of .*generic, got sse9"):
        _core.set_isa("sse9")


def test_instruction_set_in_use_is_the_best():
    from pyfeat import _core

    assert _core.isa() == _core.isas()[0]


def test_gpu_older_than_the_kernels_is_refused():
    assert why_capability((7, 5)) == "the GPU must have compute capability 8.0 or more, got 7.5"
    assert why_capability((8, 0)) is None
    assert why_capability((10, 0)) is None
