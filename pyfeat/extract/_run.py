"""One pass over inputs: what is stored is skipped, what is computed is stored, nothing is lost."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import Space
from pyfeat.backbones import Backbone
from pyfeat.extract._batches import Batches, automatic_size, forward_of
from pyfeat.extract._inputs import Input
from pyfeat.extract._prepare import NO_ROOM, Prepared, Preparer, prepare_all
from pyfeat.extract._readers import reader_of
from pyfeat.extract._times import Times
from pyfeat.store import FeatureStore, as_kept

FLUSH_SECONDS = 5.0
# Numbers that may wait for others to share a batch with, about: 512 MiB.
_HELD = 2**27
# Inputs that may wait for their twins' rows.
_REPEATED = 1024


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Parameters
    ----------
    position : int
        Position in the input.
    status : {"computed", "stored", "bad"}
        Row computed now; in the store when its turn came, from an earlier call or from an equal
        input of this one; or no row, for a reason.
    key : bytes, optional
        Key of the row in the store.
    row : ndarray of shape (dim,), optional
        The row, when it was computed now.
    reason : str
        Why there is no row.
    cut : bool
        Whether the row is of a part of the input: a text longer than the model takes.
    """

    position: int
    status: Literal["computed", "stored", "bad"]
    key: bytes | None = None
    row: NDArray[Any] | None = None
    reason: str = ""
    cut: bool = False


@dataclass(frozen=True)
class RunOptions:
    """How to run: batch size ("auto" or a number), whether bits must not depend on it, dtype, mode.

    The mode is that of `pyfeat.ops.decode`.
    """

    batch_size: int | str = "auto"
    deterministic: bool = False
    dtype: str = "float32"
    decode: str = "exact"


def row_space(backbone: Backbone, dtype: str, deterministic: bool, decode: str = "exact") -> Space:
    """Return the identity of the rows a backbone gives.

    Rows of deterministic runs are a space of their own: they promise equal bits, which rows from
    batches of any size cannot keep. So are rows of files that were not decoded exactly.
    """
    parts = dict(backbone.parts)
    if deterministic:
        parts["deterministic"] = True
    if decode != "exact":
        parts["decode"] = decode
    return Space(backbone.dim, dtype, parts)


def run(
    inputs: Iterable[Input],
    backbone: Backbone,
    store: FeatureStore | None,
    options: RunOptions,
    times: Times | None = None,
) -> Generator[Outcome, None, None]:
    """Yield what becomes of every input, in no particular order.

    Rows are put into the store as they are computed and flushed every five seconds; closing this
    generator early, or an exception in it, keeps everything computed so far.

    Parameters
    ----------
    inputs : iterable of Input
        Taken a little ahead of the network, never held all at once.
    backbone : Backbone
    store : FeatureStore or None
        Open for writing, of the space of the rows.
    options : RunOptions
    times : Times, optional
        Gets the seconds that the work took, while it goes on.

    Yields
    ------
    outcome : Outcome
        One for each input.
    """
    return _Run(backbone, store, options, times or Times()).outcomes(inputs)


class _Run:
    """What is under way: tensors that wait for a batch, and twins that wait for a row."""

    def __init__(
        self, backbone: Backbone, store: FeatureStore | None, options: RunOptions, times: Times
    ) -> None:
        # A backbone that computes in chunks of one size gives bits that do not depend on the batch.
        one_by_one = options.deterministic and backbone.chunk is None
        self._reader = reader_of(backbone, options.decode)
        self._batches = Batches(
            forward_of(backbone, self._reader),
            options.batch_size,
            automatic=automatic_size(backbone),
            one_by_one=one_by_one,
        )
        self._store = store
        # A row that fails its checksum is not there: it is computed and stored again.
        is_stored = None if store is None else (lambda key: _is_intact(store, key))
        self._preparer = Preparer(self._reader, is_stored)
        self._dtype = options.dtype
        self._times = times
        self._ready: dict[int, list[Prepared]] = defaultdict(list)  # by bucket
        self._held = 0
        self._repeated: list[Prepared] = []
        self._flushed = time.monotonic()

    def outcomes(self, inputs: Iterable[Input]) -> Generator[Outcome, None, None]:
        """Yield what becomes of every input."""
        with closing(prepare_all(self._preparer, inputs, 2 * self._batches.size)) as prepared:
            for p in self._timed(prepared):
                if p.tensor is not None:
                    yield from self._add(p)
                elif p.status == "repeated":
                    self._repeated.append(p)
                    if len(self._repeated) >= max(_REPEATED, 4 * self._batches.size):
                        yield from self._settle()
                elif p.status == "stored":
                    yield Outcome(p.position, "stored", p.key)
                else:
                    yield Outcome(p.position, "bad", reason=p.reason)
        yield from self._settle()
        self._flush()

    def _timed(self, prepared: Iterator[Prepared]) -> Iterator[Prepared]:
        while True:
            began = time.perf_counter()
            p = next(prepared, None)
            self._times.wait += time.perf_counter() - began
            if p is None:
                return
            self._times.read += p.read
            self._times.decode += p.decode
            yield p

    def _add(self, p: Prepared) -> Iterator[Outcome]:
        """Put a tensor to others of its bucket, and compute a batch when one is full."""
        bucket = self._reader.bucket(p.tensor) if p.tensor is not None else 0
        self._ready[bucket].append(p)
        self._held += _numbers(p)
        if len(self._ready[bucket]) < self._batches.size:
            if self._held <= _HELD:
                return
            # Many lengths, few of each: the one that holds most goes first.
            bucket = max(self._ready, key=lambda b: sum(_numbers(q) for q in self._ready[b]))
        group = self._ready.pop(bucket)
        self._held -= sum(_numbers(q) for q in group)
        yield from self._compute(group)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def _compute(self, group: Sequence[Prepared]) -> Iterator[Outcome]:
        return _compute(
            group, self._batches, self._store, self._preparer, (self._dtype, self._times)
        )

    def _settle(self) -> Iterator[Outcome]:
        """Compute what waits for a batch, then give twins the row of their twin, or its fault."""
        while self._ready:
            yield from self._compute(self._ready.popitem()[1])
        self._held = 0
        waiting, self._repeated = self._repeated, []
        for p in waiting:
            if self._store is not None and p.key is not None and self._store.contains([p.key])[0]:
                yield Outcome(p.position, "stored", p.key)
                continue
            again = self._preparer.prepare(p.position, cast(Input, p.item))
            if again.status == "repeated":  # its twin is still being decoded
                self._repeated.append(again)
            elif again.tensor is not None:
                yield from self._compute([again])
            elif again.status == "stored":
                yield Outcome(p.position, "stored", again.key)
            else:
                yield Outcome(p.position, "bad", reason=again.reason)

    def _flush(self) -> None:
        if self._store is not None:
            began = time.perf_counter()
            self._store.flush()
            self._times.write += time.perf_counter() - began
        self._flushed = time.monotonic()


def _numbers(p: Prepared) -> int:
    return 0 if p.tensor is None else p.tensor.numel()


def _is_intact(store: FeatureStore, key: bytes) -> bool:
    # Most keys of a new job are not there: no row is read to know that.
    return bool(store.contains([key])[0]) and bool(store.get_intact([key])[1][0])


def _compute(
    ready: Sequence[Prepared],
    batches: Batches,
    store: FeatureStore | None,
    preparer: Preparer,
    options: tuple[str, Times],
) -> Iterator[Outcome]:
    dtype, times = options
    began = time.perf_counter()
    found, fits = batches([p.tensor for p in ready if p.tensor is not None])
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is named below
        rows = as_kept(found, dtype)
    times.forward += time.perf_counter() - began
    fitting = [p for p, ok in zip(ready, fits, strict=True) if ok]
    finite = np.isfinite(rows).all(axis=1)
    if store is not None:
        began = time.perf_counter()
        good = [p.key for p, ok in zip(fitting, finite, strict=True) if ok and p.key is not None]
        # As computed: rounded a second time, a row of int8 may get a scale one bit off.
        if good:
            store.put(good, found[finite])
        for p in ready:
            if p.key is not None:
                preparer.arrived(p.key)
        times.write += time.perf_counter() - began
    for p in (p for p, ok in zip(ready, fits, strict=True) if not ok):
        yield Outcome(p.position, "bad", reason=NO_ROOM)
    for p, row, ok in zip(fitting, rows, finite, strict=True):
        if ok:
            yield Outcome(p.position, "computed", p.key, row, cut=p.cut)
        else:
            yield Outcome(p.position, "bad", reason=f"its row is not finite in {dtype}")
