"""Sources that are read forward only, shared by threads that ask nearly in order."""

from __future__ import annotations

import gzip
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyfeat.errors import InputError
from pyfeat.jobs._inputs_remote import DAMAGE, reading, tried

# Bytes of blocks that are kept for those who come late.
_KEPT = 2**27
_MOST_OPEN = 4


@dataclass(frozen=True)
class Block:
    """What one step forward gave: units (bytes, or rows) from start up to stop.

    Parameters
    ----------
    start, stop : int
    size : int
        Bytes that it holds.
    data : object
    """

    start: int
    stop: int
    size: int
    data: Any


class Damaged(Exception):
    """A source cannot be read any further, however often it is tried: the message is the reason."""


@contextmanager
def damaged(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Tell an error of the block that lies in the data as `Damaged`; one of the system passes.

    Parameters
    ----------
    what : str
        What is damaged.
    *errors : type
        What else says so.
    """
    own = (OSError, ValueError, NotImplementedError)
    said_by: tuple[type[Exception], ...] = (*DAMAGE, *own, *errors)
    try:
        yield
    except Damaged:
        raise
    except said_by as error:
        # gzip, bz2 and arrow say by a bare OSError what is wrong with their data.
        bare = type(error) in (OSError, gzip.BadGzipFile) and getattr(error, "errno", 0) is None
        if isinstance(error, OSError) and not bare:
            raise
        raise Damaged(f"{what} is cut off or damaged: {error}") from error


class Forward:
    """The blocks of one source; any number of threads may ask.

    Parameters
    ----------
    open_at : callable
        From a position to an iterator of blocks without gaps, the first of which begins at
        `entry` of this position. It raises `Damaged`.
    entry : callable
        From a position to the nearest one at or before it where reading may begin.
    name : str
        For messages.

    Notes
    -----
    Going back, further than the 128 MiB that are kept, is reading again from the entry.
    """

    def __init__(
        self,
        open_at: Callable[[int], Iterator[Block]],
        entry: Callable[[int], int],
        name: str,
    ) -> None:
        self._open_at = open_at
        self._entry = entry
        self._name = name
        self._lock = threading.Lock()
        self._blocks: Iterator[Block] = iter(())
        self._window: deque[Block] = deque()
        self._held = 0
        self._broken: dict[int, tuple[int, str]] = {}  # entry -> position behind it, reason

    def get(self, start: int, stop: int) -> list[Block]:
        """Return the blocks that hold the units from start up to stop, stop > start.

        Raises
        ------
        InputError
            If the source ends before, is damaged, or cannot be read.
        """
        with self._lock, reading(self._name):
            entry = self._entry(start)
            at, reason = self._broken.get(entry, (stop, ""))
            if stop > at:
                raise InputError(self._name, reason)
            window = self._window
            if not window or start < window[0].start or entry > window[-1].stop:
                window.clear()
                self._held = 0
                self._blocks = self._open_at(start)
            while not window or window[-1].stop < stop:
                self._step(start)
            return [b for b in window if b.stop > start and b.start < stop]

    def _step(self, wanted: int) -> None:
        """Read one block; leave out the oldest ones when too much is held."""
        window = self._window
        at = window[-1].stop if window else self._entry(wanted)
        try:
            block = tried(lambda: self._next(at))
            if block is None:
                raise Damaged("its source ends before it")
        except Damaged as error:
            self._broken[self._entry(at)] = at, str(error)
            window.clear()
            raise InputError(self._name, str(error)) from error
        except OSError:
            window.clear()
            raise
        window.append(block)
        self._held += block.size
        while self._held > _KEPT and window[0].stop <= wanted:
            self._held -= window.popleft().size

    def _next(self, at: int) -> Block | None:
        """Return the block that begins at a position, also where one try has failed before."""
        blocks, self._blocks = self._blocks, self._again(at)
        block = next(blocks, None)
        self._blocks = blocks
        return block

    def _again(self, at: int) -> Iterator[Block]:
        return (b for b in self._open_at(at) if b.stop > at)


_open: OrderedDict[Hashable, Forward] = OrderedDict()
_lock = threading.Lock()


def shared(key: Hashable, make: Callable[[], Forward]) -> Forward:
    """Return the source of a key, the one that other threads of this process use too."""
    with _lock:
        if key not in _open:
            _open[key] = make()
            while len(_open) > _MOST_OPEN:
                _open.popitem(last=False)
        _open.move_to_end(key)
        return _open[key]


def close_sources() -> None:
    """Close what is open in this process, and give back its memory; a job does so at its end."""
    with _lock:
        _open.clear()
