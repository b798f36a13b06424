"""How true and how fast each engine is, measured on a sample; and the choice that follows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pyfeat.backbones._backbone import Backbone
from pyfeat.backbones._engine import ENGINES, PRECISIONS, Inputs
from pyfeat.backbones._modality import normalised, pixels_of
from pyfeat.errors import BackendError

_ROUNDS = 3
# What an engine raises for a network that it cannot convert or run: another one may.
_FAILURES = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # BackendError is one
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Measured:
    """One engine in one precision, on the sample.

    Parameters
    ----------
    engine, precision : str
    mean_cosine, min_cosine : float
        Cosine between its rows and those of torch in float32: mean and smallest over the sample.
    same_neighbour : float
        Share of the sample whose nearest other row is the same input.
    per_second : float
        Inputs a second, median of three passes over the sample.
    """

    engine: str
    precision: str
    mean_cosine: float
    min_cosine: float
    same_neighbour: float
    per_second: float


@dataclass(frozen=True)
class Fidelity:
    """What `choose_engine` measured, and took.

    Parameters
    ----------
    sample : int
        Number of inputs it was measured on.
    min_cosine : float
        What the smallest cosine had to reach.
    measured : list of Measured
    refused : dict of str to str
        What could not run, and why.
    engine, precision : str
        What was taken: the fastest that is true enough.
    """

    sample: int
    min_cosine: float
    measured: list[Measured]
    refused: dict[str, str]
    engine: str
    precision: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    def reason(self) -> str:
        """Return one sentence: what was taken, and why."""
        taken = next(
            m for m in self.measured if (m.engine, m.precision) == (self.engine, self.precision)
        )
        if len(self.measured) == 1:
            return (
                f"{self.engine} {self.precision}: smallest cosine to float32 "
                f"{taken.min_cosine:.5f}, {taken.per_second:.0f}/s, {self.sample} inputs"
            )
        untrue = [m for m in self.measured if m.min_cosine < self.min_cosine]
        faster = [f"{m.engine} {m.precision}" for m in untrue if m.per_second > taken.per_second]
        but = f"; {', '.join(faster)} would be faster but less true" if faster else ""
        return (
            f"{self.engine} {self.precision}: the fastest of {len(self.measured)} whose smallest "
            f"cosine to float32 is at least {self.min_cosine:g} ({taken.min_cosine:.5f}, "
            f"{taken.per_second:.0f}/s, {self.sample} inputs){but}"
        )


def choose_engine(
    backbone: Backbone,
    sample: Sequence[Inputs],
    *,
    engine: str = "auto",
    precision: str = "auto",
    min_cosine: float = 0.995,
) -> tuple[Backbone, Fidelity]:
    """Return the fastest backbone of equal weights whose rows are true enough.

    Parameters
    ----------
    backbone : Backbone
        On engine "torch" in "fp32": what the others are measured against.
    sample : sequence of batches
        Inputs of the kind to come, as the backbone takes them; images as bytes, so that engines
        that take these are measured on them. What does not fit in memory is left out.
    engine, precision : str, default="auto"
        A name leaves only the other to be chosen; two names are measured, and taken.
    min_cosine : float, default=0.995
        Smallest cosine to float32 over the sample. Range [-1, 1].

    Returns
    -------
    chosen : Backbone
    report : Fidelity

    Raises
    ------
    ValueError
        If the sample is empty, or none of it fits in memory.
    BackendError
        If no engine can run, or a pair that was asked for is less true than `min_cosine`.
    """
    sample, exact = _fitting(backbone, sample)
    n = len(exact)
    if n == 0:
        raise ValueError("sample must have at least one input that fits in memory, got none")
    pixels = pixels_of(backbone.preprocessing)
    floats = [normalised(batch, pixels) for batch in sample]
    measured: dict[tuple[str, str], tuple[Measured, Backbone]] = {}
    refused: dict[str, str] = {}
    for pair in _pairs(engine, precision):
        try:
            candidate = backbone
            if pair != ("torch", "fp32"):
                candidate = backbone.with_engine(*pair, sample)
            given = sample if candidate.takes_bytes else floats  # as a reader hands it in
            measured[pair] = (_measure(pair, candidate, given, exact), candidate)
        except _FAILURES as error:
            kind = "" if isinstance(error, BackendError) else f"{type(error).__name__}: "
            refused[" ".join(pair)] = f"{kind}{error}".partition("\n")[0]
    true = [p for p, (m, _) in measured.items() if m.min_cosine >= min_cosine]
    every = [m for m, _ in measured.values()]
    if not every:
        raise BackendError(f"an engine must be able to run, got {'; '.join(refused.values())}")
    if not true:
        got = "; ".join(
            [f"{m.engine} {m.precision}: {m.min_cosine:.5f}" for m in every] + [*refused.values()]
        )
        raise BackendError(f"an engine must reach min_cosine {min_cosine:g}, got {got}")
    best = max(true, key=lambda p: measured[p][0].per_second)
    return measured[best][1], Fidelity(n, min_cosine, every, refused, *best)


def _pairs(engine: str, precision: str) -> list[tuple[str, str]]:
    engines = list(ENGINES) if engine == "auto" else [engine]
    precisions = list(PRECISIONS[1:]) if precision == "auto" else [precision]
    return [(e, p) for e in engines for p in precisions]


def _fitting(backbone: Backbone, sample: Sequence[Inputs]) -> tuple[list[Inputs], Tensor]:
    """Return the batches that fit in memory, and their rows; others are taken apart first."""
    fitting: list[Inputs] = []
    rows = [torch.empty(0, backbone.dim, dtype=torch.float64)]
    waiting = deque(sample)
    while waiting:
        batch = waiting.popleft()
        try:
            rows.append(backbone(*batch).double().cpu())
        except (MemoryError, torch.OutOfMemoryError):
            if len(batch[0]) > 1:
                singles = [tuple(t[i : i + 1] for t in batch) for i in range(len(batch[0]))]
                waiting.extendleft(reversed(singles))
        else:
            fitting.append(batch)
    return fitting, torch.cat(rows)


def _rows(backbone: Backbone, sample: Sequence[Inputs]) -> Tensor:
    return torch.cat([backbone(*batch) for batch in sample]).double().cpu()


def _measure(
    pair: tuple[str, str], candidate: Backbone, sample: Sequence[Inputs], exact: Tensor
) -> Measured:
    rows = _rows(candidate, sample)  # warms up too
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        _rows(candidate, sample)
        seconds.append(time.perf_counter() - began)
    cosine = torch.nn.functional.cosine_similarity(rows, exact, dim=1, eps=1e-12)
    # Two rows of zeros are equal; a row that is not finite is as far as can be.
    cosine = torch.where((rows == exact).all(dim=1), 1.0, cosine).nan_to_num(nan=-1.0)
    same = _nearest(rows) == _nearest(exact)
    return Measured(
        *pair,
        float(cosine.mean()),
        float(cosine.min()),
        float(same.double().mean()),
        len(rows) / median(seconds),
    )


def _nearest(rows: Tensor) -> Tensor:
    similarity = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
    return similarity.fill_diagonal_(-torch.inf).argmax(dim=1)
