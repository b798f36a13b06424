"""Why an op runs where it runs."""

from __future__ import annotations

from typing import Any

from pyfeat.ops import _preprocess, _rbf_sum
from pyfeat.ops._dispatch import explain_backends

BACKENDS_OF = {
    "preprocess": _preprocess.BACKENDS,
    "rbf_sum": _rbf_sum.BACKENDS,
}


def explain(op: str, *args: Any) -> dict[str, str]:
    """Return, for each backend of an op, "ok" or the reason why it cannot take these arguments.

    Parameters
    ----------
    op : {"preprocess", "rbf_sum"}
        Name of the op.
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
    return explain_backends(BACKENDS_OF[op], *args)
