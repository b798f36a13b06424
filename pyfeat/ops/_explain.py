"""Why an op runs where it runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyfeat.ops import (
    _decode,
    _fp8_linear,
    _gather_rows,
    _layernorm_quantize,
    _moments,
    _pool,
    _preprocess,
    _quantize_fp8,
    _quantize_rows,
    _rbf_sum,
    _softmax_xent,
    _topk,
)
from pyfeat.ops._check import as_tensor
from pyfeat.ops._dispatch import explain_backends

BACKENDS_OF = {
    "decode": _decode.BACKENDS,
    "dequantize_rows": _quantize_rows.DEQUANTIZE_BACKENDS,
    "fp8_linear": _fp8_linear.BACKENDS,
    "gather_rows": _gather_rows.BACKENDS,
    "layernorm_quantize": _layernorm_quantize.BACKENDS,
    "moments": _moments.BACKENDS,
    "pool": _pool.BACKENDS,
    "preprocess": _preprocess.BACKENDS,
    "quantize_fp8": _quantize_fp8.BACKENDS,
    "quantize_rows": _quantize_rows.BACKENDS,
    "rbf_sum": _rbf_sum.BACKENDS,
    "softmax_xent": _softmax_xent.BACKENDS,
    "topk": _topk.BACKENDS,
}


def explain(op: str, *args: Any) -> dict[str, str]:
    """Return, for each backend of an op, "ok" or the reason why it cannot take these arguments.

    Parameters
    ----------
    op : str
        Name of the op, as in `pyfeat.ops`.
    *args
        What the op would be called with, all positional.

    Returns
    -------
    reasons : dict of str to str
        Fastest backend first: without a wish, the first "ok" is the one that runs.

    Raises
    ------
    ValueError
        If there is no such op.

    Examples
    --------
    >>> import numpy as np
    >>> from pyfeat.ops import Preprocessing
    >>> explain("preprocess", np.zeros((2, 2, 3), np.uint8), Preprocessing())["reference"]
    'ok'
    """
    if op not in BACKENDS_OF:
        raise ValueError(f"op must be one of {sorted(BACKENDS_OF)}, got {op!r}")
    tensors = (as_tensor(a, "argument") if isinstance(a, np.ndarray) else a for a in args)
    return explain_backends(BACKENDS_OF[op], *tensors)
