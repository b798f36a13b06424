"""SIGTERM as an exception, so that a command ends with its last words, as on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM came.

    Attributes
    ----------
    signal : int
        Its number.
    """

    signal = int(signal.SIGTERM)


def terminate(_number: int, _frame: Any = None) -> None:
    """Raise `Terminated`: a handler of SIGTERM that gives way to that of a job."""
    raise Terminated


@contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM raise `Terminated` in the block, where nobody else handles it.

    Handlers can only be set by the main thread.
    """
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code that says which signal ended a command: 130 Ctrl-C, 143 SIGTERM."""
    return 128 + int(getattr(interrupt, "signal", signal.SIGINT))
