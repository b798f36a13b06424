"""One pass over inputs: what is stored is skipped, what is computed is stored, nothing is lost."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import Space
from pyfeat.backbones import Backbone
from pyfeat.extract._batches import Batches, automatic_size, forward_of
from pyfeat.extract._inputs import Input
from pyfeat.extract._prepare import Prepared, Preparer, prepare_all
from pyfeat.extract._readers import reader_of
from pyfeat.store import FeatureStore, as_kept

FLUSH_SECONDS = 5.0
# Numbers that may wait for others to share a batch with, about: 512 MiB.
_HELD = 2**27


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
    inputs: Sequence[Input], backbone: Backbone, store: FeatureStore | None, options: RunOptions
) -> Generator[Outcome, None, None]:
    """Yield what becomes of every input, in no particular order.

    Rows are put into the store as they are computed and flushed every five seconds; closing this
    generator early, or an exception in it, keeps everything computed so far.

    Parameters
    ----------
    inputs : sequence of Input
    backbone : Backbone
    store : FeatureStore or None
        Open for writing, of the space of the rows.
    options : RunOptions

    Yields
    ------
    outcome : Outcome
        One for each input.
    """
    # A backbone that computes in chunks of one size gives bits that do not depend on the batch.
    one_by_one = options.deterministic and backbone.chunk is None
    reader = reader_of(backbone, options.decode)
    batches = Batches(
        forward_of(backbone, reader),
        options.batch_size,
        automatic=automatic_size(backbone),
        one_by_one=one_by_one,
    )
    # A row that fails its checksum is not there: it is computed and stored again.
    is_stored = None if store is None else (lambda key: _is_intact(store, key))
    preparer = Preparer(reader, is_stored)
    repeated: list[Prepared] = []
    ready: dict[int, list[Prepared]] = defaultdict(list)  # by bucket
    held = 0
    flushed = time.monotonic()
    for p in prepare_all(preparer, inputs, 2 * batches.size):
        if p.tensor is not None:
            bucket = reader.bucket(p.tensor)
            ready[bucket].append(p)
            held += p.tensor.numel()
            if len(ready[bucket]) < batches.size:
                if held <= _HELD:
                    continue
                # Many lengths, few of each: the one that holds most goes first.
                bucket = max(ready, key=lambda b: sum(_numbers(q) for q in ready[b]))
            group = ready.pop(bucket)
            held -= sum(_numbers(q) for q in group)
            yield from _compute(group, batches, store, preparer, options.dtype)
            if store is not None and time.monotonic() - flushed > FLUSH_SECONDS:
                store.flush()
                flushed = time.monotonic()
        elif p.status == "repeated":
            repeated.append(p)
        elif p.status == "stored":
            yield Outcome(p.position, "stored", p.key)
        else:
            yield Outcome(p.position, "bad", reason=p.reason)
    for left in ready.values():
        yield from _compute(left, batches, store, preparer, options.dtype)
    if store is not None:
        store.flush()
    for p in repeated:
        yield _repeat(p, inputs[p.position], store, preparer)


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
    dtype: str,
) -> Iterator[Outcome]:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is named below
        computed = batches([p.tensor for p in ready if p.tensor is not None])
        rows = as_kept(computed, dtype)
    finite = np.isfinite(rows).all(axis=1)
    if store is not None:
        good = [p.key for p, ok in zip(ready, finite, strict=True) if ok and p.key is not None]
        # As computed: rounded a second time, a row of int8 may get a scale one bit off.
        store.put(good, computed[finite])
        for p in ready:
            if p.key is not None:
                preparer.arrived(p.key)
    for p, row, ok in zip(ready, rows, finite, strict=True):
        if ok:
            yield Outcome(p.position, "computed", p.key, row, cut=p.cut)
        else:
            yield Outcome(p.position, "bad", reason=f"its row is not finite in {dtype}")


def _repeat(p: Prepared, item: Input, store: FeatureStore | None, preparer: Preparer) -> Outcome:
    """Settle an input whose twin was on its way: it has the twin's row, or the twin's fault."""
    if store is not None and p.key is not None and store.contains([p.key])[0]:
        return Outcome(p.position, "stored", p.key)
    again = preparer.prepare(p.position, item)
    return Outcome(p.position, "bad", reason=again.reason or "its twin has no row")
