"""`topk` over a base that is read in blocks: the neighbours of each block, merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyfeat._rows import RowStream
from pyfeat.ops._check import as_tensor
from pyfeat.ops._topk_reference import ranked

STREAM_BYTES = 2**26  # of a block

Search = Callable[[Any, Tensor, int, Tensor | None], tuple[Tensor, Tensor]]


def nearest_of_stream(
    x: Tensor, base: RowStream, k: int, metric: str, scales: Tensor | None, search: Search
) -> tuple[Tensor, Tensor]:
    """Return scores and rows, (n, k) each, where `search` finds those of one block.

    Blocks may come in any order: rows are numbered by the positions that come with them.
    """
    scores = torch.full((len(x), k), torch.nan, device=x.device)
    rows = torch.full((len(x), k), -1, dtype=torch.int64, device=x.device)
    size = max(1, STREAM_BYTES // max(1, base.shape[1] * base.dtype.itemsize))
    for positions, block in base.blocks(size):
        if not len(positions):
            continue
        numbers = as_tensor(positions, "positions").to(x.device)
        values = as_tensor(block, "base").to(x.device)
        if bool((numbers.diff() < 0).any()):  # within a block, too, ties go to the lower number
            numbers, order = numbers.sort()
            values = values[order]
        factors = None if scales is None else scales[numbers]
        found, at = search(x, values, min(k, len(values)), factors)
        at = torch.where(at < 0, -1, numbers[at.clamp(min=0)])
        scores, rows = ranked(torch.cat([scores, found], 1), torch.cat([rows, at], 1), k, metric)
    return scores, rows
