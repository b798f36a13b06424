"""Ctrl-C and SIGTERM: a job ends after the batch it is at, with everything written."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Pipe
from typing import Any

from pyfeat._signals import Terminated, terminate

_ends_process = False


class Stop:
    """Whether a job was asked to stop, and by which signal.

    Attributes
    ----------
    signal : int or None
    wakes : Connection
        Can be read once it was asked: for those who wait for something else, too.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.wakes, self._end = Pipe(duplex=False)

    def __call__(self, number: int, _frame: Any = None) -> None:
        """Take note of the first signal; the second one ends it at once."""
        if self.signal is None:
            self.signal = number
            self._end.send_bytes(b"stop")
        elif _ends_process:
            os._exit(128 + number)
        else:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def second_signal_ends_process() -> None:
    """Say that this process is a command: what comes after a second Ctrl-C is not waited for."""
    global _ends_process  # noqa: PLW0603  a process is a command or not
    _ends_process = True


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Note signals while a job runs, where nobody else does.

    Handlers can only be set by the main thread, and a caller's own ones stay.
    """
    stop = Stop()
    kept: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        usual: dict[int, Any] = {
            signal.SIGINT: (signal.default_int_handler,),
            signal.SIGTERM: (signal.SIG_DFL, terminate),
        }
        for number, handlers in usual.items():
            if signal.getsignal(number) in handlers:
                kept[number] = signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
