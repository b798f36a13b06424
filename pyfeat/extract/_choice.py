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
from pyfeat.errors import InputError
from pyfeat.extract._inputs import Input, content_of
from pyfeat.extract._readers import reader_of
from pyfeat.store import FeatureStore

Sample = Sequence[tuple[Tensor, ...]]

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
    backbone: Backbone, wish: Wish, inputs: Sequence[Input] | None, stored: Iterable[Space]
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
    stored : iterable of Space
        Spaces of the store: rows of an earlier choice decide, so that a job goes on as it began.

    Raises
    ------
    ValueError
        If a choice is to be made without inputs, or no input of the sample can be read.
    BackendError
        If the engine cannot run, or none is true enough.
    OSError
        If the store has rows of a network calibrated to int8 that the cache has not.
    """
    if wish.is_open and (pair := _earlier(backbone, wish, stored)) is not None:
        wish = replace(wish, engine=pair[0], precision=pair[1])
    if (wish.engine, wish.precision) == ("torch", "fp32"):
        return backbone, None
    sample = sample_of(backbone, inputs, wish.decode) if wish.is_open and inputs else []
    with _lock:
        return _kept(backbone, wish, sample)


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


def stored_spaces(store: str | os.PathLike[str] | FeatureStore | None) -> list[Space]:
    """Return the spaces of a store, none where there is no store yet."""
    if isinstance(store, FeatureStore):
        return [store.space]
    return FeatureStore.spaces(store) if store is not None and Path(store).is_dir() else []


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


def _earlier(backbone: Backbone, wish: Wish, stored: Iterable[Space]) -> tuple[str, str] | None:
    """Return engine and precision of the first space that differs in nothing else."""
    chosen = {"engine", "precision", "deterministic", "decode"}
    own = {k: v for k, v in backbone.parts.items() if k not in chosen}
    # Rows decoded as asked for now come first: theirs is the job that goes on.
    nearest = sorted(stored, key=lambda s: s.parts.get("decode", "exact") != wish.decode)
    for space in nearest:
        if own != {k: v for k, v in space.parts.items() if k not in chosen}:
            continue
        pair = engine_of(space.parts)
        kind = pair[1].partition(":")[0]
        fits = wish.engine in ("auto", pair[0]) and wish.precision in ("auto", kind)
        if fits and ENGINES[pair[0]].refuses(pair[1], backbone.device) is None:
            return pair
    return None
