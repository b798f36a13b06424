"""How a job tells, while it runs, how it goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, Protocol

from pyfeat.extract import Times, progress_of
from pyfeat.jobs._account import Account
from pyfeat.jobs._log import JsonLines
from pyfeat.jobs._options import Options
from pyfeat.jobs._summary import JobInterrupted
from pyfeat.jobs._tensorboard import Scalars

SECONDS = 5.0
# The rate is that of the last half minute: hits at the start must not spoil the remaining time.
_RECENT = 6


class Listener(Protocol):
    """Who is told how a job goes on."""

    def tell(self, event: str, facts: dict[str, Any]) -> None:
        """Take note of an event: start, progress, quarantined, worker, end, interrupted, error."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Listeners:
    """Those who are told, from before the first input is looked for.

    Attributes
    ----------
    state : callable
        Returns what an error is told with: nothing before the work begins.
    """

    def __init__(self) -> None:
        self._all: list[Listener] = []
        self.state: Callable[[], dict[str, Any]] = dict

    def __len__(self) -> int:
        return len(self._all)

    def add(self, listener: Listener) -> None:
        """Tell one more."""
        self._all.append(listener)

    def tell(self, event: str, facts: dict[str, Any]) -> None:
        """Tell everyone of an event."""
        for listener in self._all:
            listener.tell(event, facts)

    def tell_error(self, error: BaseException) -> None:
        """Tell everyone what ended the job, and where it stood if that can still be said."""
        facts = {"error": f"{type(error).__name__}: {error}"}
        with suppress(OSError, ValueError, RuntimeError):  # the store may be what is damaged
            facts |= self.state()
        self.tell("error", facts)


class Report:
    """Tells a bar and listeners what an account says, every few seconds.

    Parameters
    ----------
    account : Account
    times : Times
    listeners : Listeners
    advance : callable
        Gets the number of inputs that are done since its last call.
    """

    def __init__(
        self,
        account: Account,
        times: Times,
        listeners: Listeners,
        advance: Callable[[int], None],
    ) -> None:
        self._account = account
        self._times = times
        self._listeners = listeners
        self._advance = advance
        self._shown = 0
        self._began = time.perf_counter()
        self._next = self._began + SECONDS
        # What was done before the work began took no time of it.
        self._recent = deque([(self._began, account.done)], maxlen=_RECENT)

    def advance(self) -> None:
        """Show what is done by now; tell it when it is time."""
        done = self._account.done
        self._advance(done - self._shown)
        self._shown = done
        if self._listeners and (now := time.perf_counter()) >= self._next:
            self.tell("progress", self.state())
            self._recent.append((now, done))
            self._next = now + SECONDS

    def tell(self, event: str, facts: dict[str, Any]) -> None:
        """Tell every listener of an event."""
        self._listeners.tell(event, facts)

    def state(self) -> dict[str, Any]:
        """Return counts, rate, remaining time and shares as JSON values."""
        now, counts = time.perf_counter(), self._account.counts()
        then, done = self._recent[0]
        rate = (counts["done"] - done) / max(now - then, 1e-9)
        left = counts["total"] - counts["done"]
        return {
            **counts,
            "seconds": now - self._began,
            "items_per_second": rate,
            "eta_seconds": left / rate if rate else None,
            "times": self._times.to_dict(),
            "shares": self._times.shares(),
        }


@contextmanager
def listeners_of(options: Options) -> Iterator[Listeners]:
    """Give who is told, also of an error that ends the block; its end is told by the block.

    Opens their files, so that a bad path is told before any work.

    Raises
    ------
    OSError
        If a file cannot be written.
    ImportError
        If a package is missing.
    """
    with ExitStack() as stack:
        listeners = Listeners()
        try:
            if options.log_json is not None:
                listeners.add(stack.enter_context(closing(JsonLines(options.log_json))))
            if options.tensorboard is not None:
                listeners.add(stack.enter_context(closing(Scalars(options.tensorboard))))
            yield listeners
        except JobInterrupted:  # who raises it has told it
            raise
        except (Exception, KeyboardInterrupt) as error:
            listeners.tell_error(error)
            raise


@contextmanager
def reporting(
    account: Account,
    times: Times,
    listeners: Listeners,
    progress: bool | Callable[[int, int], None],
    facts: dict[str, Any],
) -> Iterator[Report]:
    """Tell the start; the end is told by the caller."""
    with progress_of(progress, account.total, lambda: note(account, times)) as advance:
        report = Report(account, times, listeners, advance)
        report.tell("start", {"total": account.total, **facts})
        listeners.state = report.state
        if account.done:
            report.advance()
        yield report


def note(account: Account, times: Times) -> str:
    """Return what stands behind the bar: hits, what was not read, and where the time goes."""
    shares = " ".join(f"{name} {share:.0%}" for name, share in times.shares().items())
    stored = account.done - account.computed - account.quarantined
    return f"{stored:,} stored, {account.quarantined:,} not read | {shares}"
