"""What `topk` means, in plain torch and float64, and how candidates of a GPU become neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ROWS = 4096  # of the base
BLOCK_NUMBERS = 2**18  # float64 numbers of a block of differences
BEYOND = 1e39  # stands for infinite scores, which rank before and after no neighbour at all


def nearest(
    x: Tensor, y: Tensor, k: int, metric: str, scales: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return scores and rows, (n, k) each: float64 scores of all rows, block by block.

    The gradient of the scores with respect to queries, base and scales is that of the rows chosen.
    """
    n = len(x)
    best = torch.full((n, k), -torch.inf, dtype=torch.float64, device=x.device)
    rows = torch.full((n, k), -1, dtype=torch.int64, device=x.device)
    with torch.no_grad():
        queries = x.double()
        for start in range(0, len(y), BLOCK_ROWS):
            block = row_values(y, scales, slice(start, start + BLOCK_ROWS))  # (b, d)
            ranks = rank(scores_of_all(queries, block, metric), metric)
            numbers = torch.arange(start, start + len(block), device=x.device).expand(n, -1)
            # Rows so far come first and have lower numbers: a stable sort keeps that order in ties.
            best, order = torch.cat([best, ranks], 1).sort(dim=1, descending=True, stable=True)
            rows = torch.cat([rows, numbers], 1).gather(1, order)[:, :k]
            best = best[:, :k]
        rows = torch.where(best == -torch.inf, -1, rows)
    scores = scores_of_rows(x, y, rows, metric, scales)
    return ranked(scores, rows, k, metric)


def row_values(y: Tensor, scales: Tensor | None, which: slice | Tensor) -> Tensor:
    """Return the float32 values of some rows, as float64."""
    values = y[which].float()
    return (values if scales is None else values * scales[which].unsqueeze(-1)).double()


def scores_of_all(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Return the scores (n, b) of float64 rows; NaN where a row is not finite."""
    if metric == "l2":
        step = max(1, BLOCK_NUMBERS // max(1, y.numel()))
        starts = range(0, max(1, len(x)), step)
        scores = torch.cat([(x[i : i + step, None] - y).square().sum(-1) for i in starts])
    else:
        scores = x @ y.T
        if metric == "cosine":
            scores = _over(scores, x.norm(dim=1)[:, None] * y.norm(dim=1))
    finite = x.isfinite().all(1)[:, None] & y.isfinite().all(1)
    return torch.where(finite, scores, torch.nan)


def scores_of_rows(
    x: Tensor, y: Tensor, rows: Tensor, metric: str, scales: Tensor | None
) -> Tensor:
    """Return the float32 scores (n, c) of chosen rows (n, c); NaN where it is -1 or not finite."""
    parts = []
    step = max(1, BLOCK_NUMBERS // max(1, rows.shape[1] * x.shape[1]))
    for start in range(0, max(1, len(x)), step):
        q, chosen = x[start : start + step, None].double(), rows[start : start + step]  # (s, 1, d)
        b = row_values(y, scales, chosen.clamp(min=0))  # (s, c, d)
        if metric == "l2":
            scores = (q - b).square().sum(-1)
        else:
            scores = (q * b).sum(-1)
            if metric == "cosine":
                scores = _over(scores, q.norm(dim=-1) * b.norm(dim=-1))
        there = (chosen >= 0) & q.isfinite().all(-1) & b.isfinite().all(-1)
        parts.append(torch.where(there, scores, torch.nan).float())
    return torch.cat(parts)


def _over(products: Tensor, norms: Tensor) -> Tensor:
    zero = norms == 0
    return torch.where(zero, 0.0, products / torch.where(zero, 1.0, norms))


def rank(scores: Tensor, metric: str) -> Tensor:
    """Return what neighbours are sorted by: the float32 score, larger is better, -inf for none."""
    rounded = scores.float().double().clamp(-BEYOND, BEYOND)
    return torch.where(rounded.isnan(), -torch.inf, -rounded if metric == "l2" else rounded)


def ranked(scores: Tensor, rows: Tensor, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """Return the k best of some rows (n, c), best first, equal scores in the order of the rows."""
    rows, order = torch.where(scores.isnan(), -1, rows).sort(dim=1, stable=True)
    scores = scores.gather(1, order)
    order = rank(scores.detach(), metric).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), rows.gather(1, order)
