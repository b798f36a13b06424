"""What every format of an export is written from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import Space


class Block(NamedTuple):
    """Rows that follow each other."""

    keys: NDArray[np.uint8]  # (b, 16)
    rows: NDArray[Any]  # (b, dim)
    names: list[list[str]]


@dataclass(frozen=True)
class Exported:
    """Rows to be written, and how many there are.

    Parameters
    ----------
    n : int
    space : Space
    dtype : numpy dtype
        Of the rows.
    blocks : callable
        Goes through them from the beginning.
    """

    n: int
    space: Space
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterator[Block]]
