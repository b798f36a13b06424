"""A process that computes rows for a job: inputs come through a pipe, outcomes go back.

What it gets: first, as bytes, the settings of its extractor and how many threads torch has, then
("items", [(position, Input), ...]), ("end",) after the last of a session,
("stop",) to leave what is not computed yet. What it sends: ("ready", fingerprint), ("want",) for
more, ("outcomes", [Outcome, ...], Times), ("idle",) after a session, and ("error", exception). A
closed pipe means that its parent is gone, or needs it no more.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from pyfeat.errors import BackendError, StoreError
from pyfeat.extract import FeatureExtractor, Input, Outcome, RunOptions, Times, run
from pyfeat.jobs._process import leave_signals, unpacked
from pyfeat.store import FeatureStore

# What a user can mend. Anything else is a defect, and keeps its traceback.
ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError, KeyError, MemoryError)
_KINDS = (StoreError, BackendError, OSError, ValueError, TypeError, ImportError)
_SECONDS = 0.2
_BLOCK = 256


class Link:
    """The end of the pipe in the worker.

    A thread takes in what comes, so that neither side ever waits for the other to read.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._outbox: list[Outcome] = []
        self._sent = time.monotonic()
        self._positions: dict[int, int] = {}
        self._count = 0
        self._stop = threading.Event()
        self.times = Times()
        threading.Thread(target=self._receive, daemon=True).start()

    def is_stopped(self) -> bool:
        """Whether what is not computed yet is to be left."""
        return self._stop.is_set()

    def _receive(self) -> None:
        while not self.is_stopped():
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                message = ("stop",)
            if message[0] == "stop":
                self._stop.set()
            self._inbox.put(message)

    def take(self) -> tuple[Any, ...]:
        """Return the next message, when there is one."""
        return self._inbox.get()

    def send(self, *message: Any) -> None:
        """Send a message; a parent that is gone misses nothing."""
        try:
            self._connection.send(message)
        except OSError:
            self._stop.set()

    def inputs(self, first: list[tuple[int, Input]]) -> Iterator[Input]:
        """Yield the inputs of a session."""
        self._positions, self._count = {}, 0
        waiting = deque(first)
        while not self.is_stopped():
            while waiting and not self.is_stopped():
                position, item = waiting.popleft()
                self._positions[self._count] = position
                self._count += 1
                yield item
            self.flush()
            message = self.take()
            if message[0] != "items":
                return
            waiting.extend(message[1])
            self.send("want")

    def tell(self, outcome: Outcome) -> None:
        """Send an outcome, soon."""
        position = self._positions.pop(outcome.position)
        self._outbox.append(replace(outcome, position=position, row=None))
        if len(self._outbox) >= _BLOCK or time.monotonic() - self._sent > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the outcomes that wait for others, and the seconds since the last time."""
        if self._outbox:
            self.send("outcomes", self._outbox, self.times.take())
            self._outbox = []
        self._sent = time.monotonic()


def main(descriptor: int) -> None:
    """Serve one job; its parent started this process with one end of a pipe."""
    leave_signals()
    connection = Connection(descriptor)
    try:
        settings, threads = unpacked(connection.recv_bytes())
        torch.set_num_threads(threads)
        _serve(Link(connection), settings)
    except ERRORS as error:  # the parent raises it; of a defect it sees the exit code
        send_error(connection, error)


def _serve(link: Link, settings: dict[str, Any]) -> None:
    extractor = FeatureExtractor(**settings)
    backbone = extractor.get_backbone()
    space = extractor.space_
    options = RunOptions(
        extractor.batch_size, extractor.deterministic, extractor.dtype, extractor.decode
    )
    with FeatureStore(settings["store"], space) as store:
        link.send("ready", space.fingerprint)
        while not link.is_stopped():
            message = link.take()
            if message[0] != "items":
                return
            link.send("want")
            inputs = link.inputs(message[1])
            with closing(run(inputs, backbone, store, options, link.times)) as outcomes:
                for outcome in outcomes:
                    link.tell(outcome)
                    if link.is_stopped():
                        break
            link.flush()
            link.send("idle")


def send_error(connection: Connection, error: BaseException) -> None:
    """Send an exception as one that fits through a pipe, whatever its class remembers."""
    kind = next((k for k in _KINDS if isinstance(error, k)), RuntimeError)
    with suppress(OSError):  # the parent may be gone
        connection.send(("error", kind(str(error) or type(error).__name__)))
