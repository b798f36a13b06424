"""Rows of several layers, taken apart."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat.backbones import Backbone


def split_rows(rows: NDArray[Any], backbone: Backbone) -> dict[str, NDArray[Any]]:
    """Return what each layer of a backbone gave, by its name, in its own shape.

    Raises
    ------
    ValueError
        If `rows` have another number of columns.
    """
    rows = np.asarray(rows)
    rows = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    if rows.shape[1] != backbone.dim:
        raise ValueError(f"rows must have {backbone.dim} columns, got {rows.shape[1]}")
    names = backbone.parts["layer"]
    names = [names] if isinstance(names, str) else names
    ends = np.cumsum([0, *(math.prod(shape) for shape in backbone.shapes)])
    return {
        name: rows[:, a:b].reshape(-1, *shape)
        for name, shape, (a, b) in zip(names, backbone.shapes, pairwise(ends), strict=True)
    }
