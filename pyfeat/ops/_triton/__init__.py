"""Triton kernels, one module per op: imported only when they run or are compiled.

Each module has a tuple `KERNELS` of `Kernel`, what `python -m pyfeat.ops._triton.compile` compiles
without a GPU: every branch that constants choose; types and block sizes may stand for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Kernel(NamedTuple):
    """A kernel with the types and constants of one launch.

    Parameters
    ----------
    function : triton.JITFunction
    signature : mapping of str to str
        Type of each argument that is no constant, e.g. {"x": "*fp32", "n": "i32"}.
    constants : mapping of str to object
        Value of each `tl.constexpr` argument.
    warps, stages : int
        `num_warps` and `num_stages` of the launch.
    least : int
        Compute capability that it needs, times 10.
    aligned : tuple of str
        Arguments, addresses too, that are multiples of 16 wherever it is launched: Triton sees it.
    """

    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    least: int = 80
    aligned: tuple[str, ...] = ()
