"""What runs on a Ray cluster: workers that hold a backbone, and the ledger of those that died."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyfeat._identity import Space, check_same_space
from pyfeat.errors import StoreError
from pyfeat.extract import FeatureExtractor, Input, Outcome, RunOptions, Times, run
from pyfeat.store import FeatureStore

# How often a worker may die of one piece of work: of several inputs, which are then done one by
# one, and of one input, which is then put into quarantine.
DEATHS = 2
# A file that another machine has just made may take this long to show up on a network.
_PATIENCE = 10.0
# What a user can mend, or what a disk does: told by the job. Anything else is a defect, and Ray
# brings its traceback.
_TOLD = (ValueError, TypeError, OSError, RuntimeError, ImportError, KeyError)


@dataclass(frozen=True)
class Work:
    """What every worker of a job must know.

    Parameters
    ----------
    settings : dict
        Arguments of the extractor, engine and precision by name.
    space : Space
        Of the rows that the job puts.
    store : str
        Folder of the store, absolute.
    token : str
        Name of a file in that folder: who sees it sees the store.
    options : RunOptions
    threads : tuple of (int, int)
        That decode, and that torch computes with: as many as in a job without Ray, because another
        number takes sums in another order.
    """

    settings: dict[str, Any]
    space: Space
    store: str
    token: str
    options: RunOptions
    threads: tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """Inputs that one worker does, and the position of the first one."""

    start: int
    inputs: list[Input]


@dataclass
class Report:
    """What became of some inputs, whose rows are on the disk.

    Parameters
    ----------
    worker : str
        Machine and process.
    outcomes : list of Outcome
        Without their rows; positions are those in the inputs of the job.
    deaths : int
        Workers that died of them before.
    times : Times
    told : list of (type, str)
        Warnings.
    error : Exception, optional
        Why the job cannot go on.
    """

    worker: str
    outcomes: list[Outcome] = field(default_factory=list)
    deaths: int = 0
    times: Times = field(default_factory=Times)
    told: list[tuple[type[Warning], str]] = field(default_factory=list)
    error: Exception | None = None


class Ledger:
    """Counts how often a piece of work was begun and not ended: an actor without a core."""

    def __init__(self) -> None:
        self._begun: Counter[tuple[int, int]] = Counter()

    def begin(self, start: int, stop: int) -> int:
        """Return how many workers died of these inputs so far."""
        self._begun[start, stop] += 1
        return self._begun[start, stop] - 1

    def end(self, start: int, stop: int) -> None:
        """Note that they are done."""
        del self._begun[start, stop]


class Worker:
    """Holds a backbone, and puts the rows of inputs into the store; made once in each actor.

    Parameters
    ----------
    work : Work
    ledger : actor handle of Ledger
    """

    def __init__(self, work: Work, ledger: Any) -> None:
        self._work = work
        self._ledger = ledger
        self._store: FeatureStore | None = None

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Do what is in column "piece"; what became of it goes into column "report"."""
        reports = np.empty(len(batch["piece"]), object)
        reports[:] = [self._report(p.start, p.inputs) for p in batch["piece"]]
        return {"report": reports}

    def __del__(self) -> None:
        # The end of an actor that nobody kills: what it wrote becomes a segment.
        if (store := getattr(self, "_store", None)) is not None:
            store.close()

    def _report(self, start: int, inputs: Sequence[Input]) -> Report:
        report = Report(f"{platform.node()}, process {os.getpid()}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self._do(start, inputs, report)
            except _TOLD as error:
                report.error = error
        told = [(w.category, str(w.message)) for w in caught]
        report.told = [(kind, text) for kind, text in told if issubclass(kind, UserWarning)]
        return report

    def _do(self, start: int, inputs: Sequence[Input], report: Report) -> None:
        """Do inputs together; after too many deaths one by one, so that only one is to blame."""
        self._opened().refresh()  # rows of the other workers, and those of one that died
        stop = start + len(inputs)
        deaths = self._begin(start, stop)
        report.deaths = max(report.deaths, deaths)
        if deaths < DEATHS:
            self._run(start, inputs, report)
        elif len(inputs) == 1:
            reason = f"{DEATHS} workers died while they had it in hand"
            report.outcomes.append(Outcome(start, "bad", reason=reason))
        else:
            for position, item in enumerate(inputs, start):
                self._do(position, [item], report)
        self._end(start, stop)

    def _run(self, start: int, inputs: Sequence[Input], report: Report) -> None:
        options = self._work.options
        for o in run(inputs, self._backbone, self._opened(), options, report.times):
            report.outcomes.append(replace(o, position=start + o.position, row=None))

    def _begin(self, start: int, stop: int) -> int:
        import ray

        return int(ray.get(self._ledger.begin.remote(start, stop)))

    def _end(self, start: int, stop: int) -> None:
        self._ledger.end.remote(start, stop)

    def _opened(self) -> FeatureStore:
        """Return the store, opened with the backbone at the first inputs: an error can be told."""
        work = self._work
        if self._store is None:
            os.environ["PYFEAT_NUM_THREADS"] = str(work.threads[0])
            torch.set_num_threads(work.threads[1])
            _check_shared(Path(work.store), work.token)
            extractor = FeatureExtractor(**work.settings)
            self._backbone = extractor.get_backbone()
            machine = f"the backbone on {platform.node()}"
            check_same_space(work.space, extractor.get_space(), machine)
            self._store = FeatureStore(work.store, work.space)
        return self._store


def _check_shared(store: Path, token: str) -> None:
    """Raise StoreError unless this machine sees the store that the job has made."""
    until = time.monotonic() + _PATIENCE
    while not (store / token).exists():
        if time.monotonic() > until:
            raise StoreError(
                f"store must be a folder that every machine of the cluster sees, got "
                f"{str(store)!r}, which {platform.node()} does not see"
            )
        time.sleep(0.1)
