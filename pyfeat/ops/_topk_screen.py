"""`topk` on a GPU: screening keys in float32, a few candidates scored in float64, a proof for each.

A key orders the rows of one query as their scores do, larger is better: q.b, q.b / |b|, or
q.b - |b|^2 / 2. It is mul * (q . stored row) + add, off by at most what `_errors` says.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyfeat.ops._topk_reference import nearest, ranked, row_values, scores_of_rows

SPARE = 16  # rows scored beyond k, so that bounds can prove that none was missed
MOST_KEYS = 2**26  # float32 numbers alive at once
MOST_QUERIES = 2**14
BLOCK_NUMBERS = 2**24  # of the base, while its norms are taken

Keys = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def screened(
    x: Tensor, y: Tensor, k: int, metric: str, scales: Tensor | None, keys: Keys
) -> tuple[Tensor, Tensor]:
    """Return scores and rows, (n, k) each, screening with `keys` (x, y, mul, add) -> (n, m)."""
    x = x.float().contiguous()
    if y.stride(1) != 1:
        y = y.contiguous()
    norms = _norms(y, scales)  # (m,), of the rows with their scales
    mul, add = _key_factors(norms, metric, scales)
    error = _errors(x, norms, metric)  # (n,)
    scores = torch.empty((len(x), k), dtype=torch.float32, device=x.device)
    rows = torch.empty((len(x), k), dtype=torch.int64, device=x.device)
    for start in range(0, len(x), MOST_QUERIES):
        part = slice(start, start + MOST_QUERIES)
        best, last = _candidates(x[part], y, min(k + SPARE, len(y)), mul, add, keys)
        exact = scores_of_rows(x[part], y, best, metric, scales)
        scores[part], rows[part] = ranked(exact, best, k, metric)
        worst = _exact_keys(scores[part, -1], x[part], metric)
        # A row that is no candidate has a key of at most last + error. NaN proves nothing.
        proven = (last == -torch.inf) | (last + error[part] < worst - error[part])
        proven = (proven | (best.shape[1] == len(y))) & error[part].isfinite()
        if not bool(proven.all()):
            rest = start + (~proven).nonzero()[:, 0]
            scores[rest], rows[rest] = nearest(x[rest], y, k, metric, scales)
    return scores, rows


def _candidates(
    x: Tensor, y: Tensor, c: int, mul: Tensor, add: Tensor, keys: Keys
) -> tuple[Tensor, Tensor]:
    """Return the rows with the c best keys (n, c), -1 for none, and the last of these keys (n,)."""
    best = torch.full((len(x), c), -torch.inf, device=x.device)
    rows = torch.full((len(x), c), -1, dtype=torch.int64, device=x.device)
    step = max(1, min(len(y), MOST_KEYS // max(1, len(x))))
    for start in range(0, len(y), step):
        part = slice(start, start + step)
        found, at = keys(x, y[part], mul[part], add[part]).topk(min(c, len(y[part])))
        best, order = torch.cat([best, found], 1).topk(c)
        rows = torch.cat([rows, at + start], 1).gather(1, order)
    rows = torch.where(best == -torch.inf, -1, rows)
    return rows, best[:, -1]


def _norms(y: Tensor, scales: Tensor | None) -> Tensor:
    step = max(1, BLOCK_NUMBERS // max(1, y.shape[1]))
    starts = range(0, len(y), step)
    return torch.cat([row_values(y, scales, slice(i, i + step)).norm(dim=1) for i in starts])


def _key_factors(norms: Tensor, metric: str, scales: Tensor | None) -> tuple[Tensor, Tensor]:
    factor = torch.ones_like(norms) if scales is None else scales.double()
    if metric == "cosine":
        factor = torch.where(norms == 0, 0.0, factor / norms)
    factor = torch.where(norms.isfinite(), factor, torch.nan)  # no neighbour: its keys are NaN
    shift = -0.5 * norms.square() if metric == "l2" else torch.zeros_like(norms)
    return factor.float(), shift.float()


def _errors(x: Tensor, norms: Tensor, metric: str) -> Tensor:
    """Return a bound (n,) on how far the float32 key of any row may be off.

    gamma(d) |q| |b| for the product; a few units of float32 for mul, add and what rounding makes
    equal scores; infinite where float32 may overflow, or lose what is small.
    """
    d = x.shape[1]
    sizes = x.double().norm(dim=1)
    lengths = norms[norms.isfinite()]
    most = lengths.max() if len(lengths) else norms.new_zeros(())
    gamma = 1.02 * (d + 16) * 2.0**-24 + 2.0**-20
    error = gamma * sizes * (1.0 if metric == "cosine" else most) + d * 1e-36 * (1 + sizes)
    if metric == "l2":
        error = error + 2.0**-20 * (sizes.square() + most.square())
    beyond = (most > 1e18) | (sizes > 1e18) | torch.tensor(d > 2**20, device=x.device)
    if metric == "cosine" and len(lengths):
        beyond = beyond | (torch.where(lengths == 0, 1.0, lengths).min() < 1e-18)
    return torch.where(beyond, torch.inf, error)


def _exact_keys(scores: Tensor, x: Tensor, metric: str) -> Tensor:
    if metric == "ip":
        return scores.double()
    squares = x.double().square().sum(1)
    if metric == "cosine":
        return scores.double() * squares.sqrt()
    return 0.5 * (squares - scores.double())
