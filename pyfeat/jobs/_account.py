"""The account of a job: what became of every input, in memory that does not grow with them."""

from __future__ import annotations

from typing import Any

from pyfeat.extract import Outcome
from pyfeat.jobs._summary import Quarantined
from pyfeat.store import FeatureStore, Item, ItemLog

MAX_QUARANTINED = 10_000
_BLOCK = 1024


class Account:
    """Counts inputs, tells hits from duplicates, and writes the store's list of inputs.

    Parameters
    ----------
    total : int
        Inputs to come.
    log : ItemLog
        The store's list.
    earlier : FeatureStore
        The store as it was when the job began: opened with mode "r", and never refreshed.

    Attributes
    ----------
    done, computed, quarantined, truncated : int
    named : list of Quarantined
        The first 10,000 in quarantine.
    """

    def __init__(self, total: int, log: ItemLog, earlier: FeatureStore) -> None:
        self.total = total
        self.done = self.computed = self.quarantined = self.truncated = 0
        self.named: list[Quarantined] = []
        self._log = log
        self._earlier = earlier
        self._hits = self._duplicates = 0
        # Keys that were in the store: asked for in blocks whether they were there at the start.
        self._stored: list[bytes] = []

    @property
    def hits(self) -> int:
        """Inputs whose row was there before the job."""
        self._settle()
        return self._hits

    @property
    def duplicates(self) -> int:
        """Inputs that share the row of another one of this job."""
        self._settle()
        return self._duplicates

    def add(self, name: str, outcome: Outcome) -> None:
        """Count one input."""
        self.done += 1
        self.truncated += outcome.cut
        if outcome.status == "bad" or outcome.key is None:
            self.quarantined += 1
            if len(self.named) < MAX_QUARANTINED:
                self.named.append(Quarantined(name, outcome.reason))
            self._log.add(Item(name, None, outcome.reason))
            return
        if outcome.status == "computed":
            self.computed += 1
        else:
            self._stored.append(outcome.key)
            if len(self._stored) >= _BLOCK:
                self._settle()
        self._log.add(Item(name, outcome.key))

    def add_hits(self, n: int) -> None:
        """Count inputs that have their row since before the job, and that the list names."""
        self.done += n
        self._hits += n

    @property
    def is_written(self) -> bool:
        """Whether the store's list says all that was added."""
        return self._log.is_written

    def close(self) -> None:
        """Write what is not in the store's list yet."""
        self._log.flush()

    def counts(self) -> dict[str, Any]:
        """Return the counts by name."""
        return {
            "done": self.done,
            "total": self.total,
            "computed": self.computed,
            "hits": self.hits,
            "duplicates": self.duplicates,
            "quarantined": self.quarantined,
        }

    def _settle(self) -> None:
        keys, self._stored = self._stored, []
        if keys:
            hits = int(self._earlier.contains(keys).sum())
            self._hits += hits
            self._duplicates += len(keys) - hits
