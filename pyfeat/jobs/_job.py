"""A job as those see it who do its work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyfeat.backbones import Backbone
from pyfeat.extract import FeatureExtractor, Input, RunOptions, Times, engine_of
from pyfeat.jobs._options import Options
from pyfeat.jobs._stop import Stop
from pyfeat.store import FeatureStore


@dataclass
class Job:
    """What a runner needs to know.

    Parameters
    ----------
    inputs : sequence of Input
        All that are to be done.
    store : FeatureStore
        Open for writing, of the space of the rows.
    extractor : FeatureExtractor
        With its store.
    backbone : Backbone
        Of the extractor, loaded.
    options : Options
    times : Times
        Gets the seconds of the work.
    tell : callable
        Takes an event and its facts, for the log.
    stop : Stop
        Says when the rest is to be left.
    """

    inputs: Sequence[Input]
    store: FeatureStore
    extractor: FeatureExtractor
    backbone: Backbone
    options: Options
    times: Times = field(default_factory=Times)
    tell: Callable[[str, dict[str, Any]], None] = lambda _event, _facts: None
    stop: Stop = field(default_factory=Stop)

    @property
    def run_options(self) -> RunOptions:
        """How `pyfeat.extract.run` is to run."""
        e = self.extractor
        return RunOptions(e.batch_size, e.deterministic, e.dtype, e.decode)

    def settings(self) -> dict[str, Any]:
        """Return the arguments of an extractor that computes the rows of this job anywhere."""
        engine, precision = engine_of(self.store.space.parts)
        return {
            **self.extractor.get_params(deep=False),
            "engine": engine,
            "precision": precision,
            "store": None,
            "progress": False,
        }

    def origin(self) -> dict[str, Any]:
        """Return where the rows come from, as JSON values."""
        engine, precision = engine_of(self.store.space.parts)
        shard = self.options.shard
        return {
            "backbone": self.store.space.parts.get("name"),
            "engine": engine,
            "precision": precision,
            "shard": None if shard is None else f"{shard[0]}/{shard[1]}",
        }
