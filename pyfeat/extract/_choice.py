"""Which engine a call runs on: the one asked for, that of the store, or the best one measured."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from torch import Tensor

from pyfeat._identity import Space, canonical_json
from pyfeat._memory import memory_errors
from pyfeat.backbones import ENGINES, Backbone, Fidelity, choose_engine
from pyfeat.errors import BackendError, InputError
from pyfeat.extract._inputs import Input, content_of
from pyfeat.extract._readers import reader_of
from pyfeat.store import FeatureStore, claim_choice, read_choice

Sample = Sequence[tuple[Tensor, ...]]
Store = str | os.PathLike[str] | FeatureStore | None

SAMPLE = 32
_WINDOWS = 8  # of one recording
_KEPT = 6
_lock = threading.Lock()
_made: OrderedDict[str, tuple[Backbone, Fidelity | None]] = OrderedDict()


@dataclass(frozen=True)
class Wish:
    """What was asked for: names or "auto", and what "auto" must keep."""

    engine: str
    precision: str
    min_cosine: float
    decode: str

    @property
    def is_open(self) -> bool:
        """Whether inputs are needed: to choose on, or to calibrate int8 on."""
        return "auto" in (self.engine, self.precision) or self.precision == "int8"


def on_engine(
    backbone: Backbone, wish: Wish, inputs: Sequence[Input] | None, store: Store = None
) -> tuple[Backbone, Fidelity | None]:
    """Return a backbone on the engine that a wish means.

    Parameters
    ----------
    backbone : Backbone
        On engine "torch" in "fp32".
    wish : Wish
    inputs : sequence of Input, optional
        Inputs to come: "auto" measures on a sample of them. What was measured on an equal sample in
        this process before is taken again.
    store : path-like or FeatureStore, optional
        An earlier choice for it decides, by its record or by rows, so that a job goes on as it
        began, and shards that begin at once agree. A new one is recorded.

    Raises
    ------
    ValueError
        If a choice is to be made without inputs, or no input of the sample can be read.
    BackendError
        If the engine cannot run, or none is true enough.
    CorruptStoreError
        If the record of a choice is damaged.
    OSError
        If the record cannot be written, or the store has rows of a network calibrated to int8 that
        the cache has not.
    """
    if wish.is_open and (pair := _earlier(backbone, wish, store)) is not None:
        return _named(backbone, wish, pair)
    if not wish.is_open:
        return _named(backbone, wish, (wish.engine, wish.precision))
    sample = sample_of(backbone, inputs, wish.decode) if inputs else []
    with _lock:
        made = _kept(backbone, wish, sample)
    pair = engine_of(made[0].parts)
    if isinstance(store, (str, os.PathLike)):
        standing = claim_choice(store, _question(backbone, wish), pair)
        if standing != pair:  # somebody else has chosen meanwhile
            return _named(backbone, wish, _runnable(standing, backbone, store))
    return made


def _named(
    backbone: Backbone, wish: Wish, pair: tuple[str, ...]
) -> tuple[Backbone, Fidelity | None]:
    if pair == ("torch", "fp32"):
        return backbone, None
    with _lock:
        return _kept(backbone, replace(wish, engine=pair[0], precision=pair[1]), [])


def _question(backbone: Backbone, wish: Wish) -> dict[str, Any]:
    """Return all that two jobs must agree in for one choice to be that of both."""
    asked = {"engine": wish.engine, "precision": wish.precision, "decode": wish.decode}
    about = {"parts": dict(backbone.parts), "device": backbone.device.type}
    return {**about, **asked, "min_cosine": wish.min_cosine}


def _kept(backbone: Backbone, wish: Wish, sample: Sample) -> tuple[Backbone, Fidelity | None]:
    key = _key(backbone, wish, sample)
    if key not in _made:
        _made[key] = made = _make(backbone, wish, sample)
        # Next time its rows in a store ask for it by name.
        engine, precision = engine_of(made[0].parts)
        _made[_key(backbone, replace(wish, engine=engine, precision=precision))] = made
        while len(_made) > _KEPT:
            _made.popitem(last=False)
    _made.move_to_end(key)
    return _made[key]


def _key(backbone: Backbone, wish: Wish, sample: Sample = ()) -> str:
    seen = [blake3(t.numpy().tobytes()).hexdigest() for batch in sample for t in batch]
    return canonical_json([backbone.parts, str(backbone.device), repr(wish), seen])


def _make(backbone: Backbone, wish: Wish, sample: Sample) -> tuple[Backbone, Fidelity | None]:
    if not wish.is_open:
        return backbone.with_engine(wish.engine, wish.precision), None
    if not sample:
        doing = "chosen" if "auto" in (wish.engine, wish.precision) else "calibrated"
        raise ValueError(
            f"engine {wish.engine!r} in {wish.precision!r} must be {doing} on inputs: "
            f"call fit(X) or transform(X)"
        )
    by_name = "auto" not in (wish.engine, wish.precision)
    chosen, report = choose_engine(
        backbone,
        sample,
        engine=wish.engine,
        precision=wish.precision,
        min_cosine=-1.0 if by_name else wish.min_cosine,  # only "auto" may refuse
    )
    chosen.keep()
    return chosen, report


def engine_of(parts: Mapping[str, Any]) -> tuple[str, str]:
    """Return engine and precision of the rows of a space, in the words of `FeatureExtractor`."""
    precision = str(parts["precision"])
    return str(parts.get("engine", "torch")), "fp32" if precision == "float32" else precision


def stored_spaces(store: Store) -> list[Space]:
    """Return the spaces of a store, none where there is no store yet."""
    if isinstance(store, FeatureStore):
        return [store.space]
    if store is None or not Path(store).is_dir():
        return []
    # An empty folder becomes a store, and one that holds what is being written does just now.
    is_empty = all(file.name.endswith(".tmp") for file in Path(store).iterdir())
    return [] if is_empty else FeatureStore.spaces(store)


def measure(backbone: Backbone, wish: Wish, inputs: Sequence[Input]) -> Fidelity:
    """Return how true one engine is, whatever a wish accepts.

    Raises
    ------
    ValueError
        If no input of the sample can be read.
    """
    sample = sample_of(backbone, inputs, wish.decode)
    return choose_engine(
        backbone, sample, engine=wish.engine, precision=wish.precision, min_cosine=-1
    )[1]


def sample_of(backbone: Backbone, inputs: Sequence[Input], decode: str) -> Sample:
    """Return batches of up to 32 inputs that can be read, spread evenly over all of them.

    Images are bytes, not yet normalised.

    Raises
    ------
    ValueError
        If none of those tried can be read.
    """
    reader = reader_of(backbone, decode, as_bytes=True)
    by_bucket: dict[int, list[Tensor]] = {}
    for tensor in _readable(reader, inputs):
        by_bucket.setdefault(reader.bucket(tensor), []).append(tensor)
    if not by_bucket:
        raise ValueError("inputs must have one that can be read, to choose an engine: got none")
    return [reader.collate(tensors)[0] for tensors in by_bucket.values()]


def _readable(reader: Any, inputs: Sequence[Input]) -> Iterator[Tensor]:
    for i in np.unique(np.linspace(0, len(inputs) - 1, min(SAMPLE, len(inputs))).astype(int)):
        item = inputs[i]
        try:
            with memory_errors():
                tensor = reader.tensor(content_of(reader, item), item.name)[0]
        except (InputError, MemoryError):
            continue
        yield tensor[:_WINDOWS] if tensor.ndim == 2 else tensor


def _earlier(backbone: Backbone, wish: Wish, store: Store) -> tuple[str, ...] | None:
    """Return engine and precision of an earlier choice.

    That of the record; but where rows are of others alone, those of the first space that differs in
    nothing else.
    """
    pairs = list(_of_rows(backbone, wish, stored_spaces(store)))
    if isinstance(store, (str, os.PathLike)):
        recorded = read_choice(store, _question(backbone, wish))
        if recorded is not None and (recorded in pairs or not pairs):
            return _runnable(recorded, backbone, store)
    return next((p for p in pairs if _refusal(p, backbone) is None), None)


def _refusal(pair: tuple[str, ...], backbone: Backbone) -> str | None:
    if pair[0] not in ENGINES:
        return f"there is no engine {pair[0]!r}"
    why: str | None = ENGINES[pair[0]].refuses(pair[1], backbone.device)
    return why


def _runnable(
    pair: tuple[str, ...], backbone: Backbone, store: str | os.PathLike[str]
) -> tuple[str, ...]:
    """Return a recorded choice; raise BackendError where it cannot be followed."""
    if (why := _refusal(pair, backbone)) is not None:
        raise BackendError(
            f"engine and precision must be {pair[0]!r} and {pair[1]!r}, which were chosen for "
            f"{os.fspath(store)!r}, and cannot be here: {why}; name others to have other rows"
        )
    return pair


def _of_rows(backbone: Backbone, wish: Wish, stored: Iterable[Space]) -> Iterator[tuple[str, ...]]:
    """Yield engines and precisions of the spaces that differ in nothing else."""
    chosen = {"engine", "precision", "deterministic", "decode"}
    own = {k: v for k, v in backbone.parts.items() if k not in chosen}
    # Rows decoded as asked for now come first: theirs is the job that goes on.
    nearest = sorted(stored, key=lambda s: s.parts.get("decode", "exact") != wish.decode)
    for space in nearest:
        if own != {k: v for k, v in space.parts.items() if k not in chosen}:
            continue
        pair = engine_of(space.parts)
        kind = pair[1].partition(":")[0]
        if wish.engine in ("auto", pair[0]) and wish.precision in ("auto", kind):
            yield pair
