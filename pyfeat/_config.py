"""Settings that a caller, a `with` block or the environment may give.

Order of wishes everywhere: argument, then `with` block, then environment, then automatic.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

BACKEND_NAMES = ("cuda", "triton", "cpp", "reference")

_backend: ContextVar[str | None] = ContextVar("pyfeat_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every op inside the block on one backend.

    Parameters
    ----------
    name : {"cuda", "triton", "cpp", "reference"}
        Backend to use. An op that cannot run on it raises; nothing steps down silently.

    Raises
    ------
    ValueError
        If `name` is no backend.

    Examples
    --------
    >>> import pyfeat
    >>> with pyfeat.backend("reference"):
    ...     pass
    """
    token = _backend.set(_checked(name, "name"))
    try:
        yield
    finally:
        _backend.reset(token)


def wanted_backend(argument: str | None = None) -> str | None:
    """Return the backend asked for by argument, `with` block or `PYFEAT_BACKEND`, or None."""
    if argument is not None:
        return _checked(argument, "backend")
    if (from_block := _backend.get()) is not None:
        return from_block
    if from_environment := os.environ.get("PYFEAT_BACKEND"):
        return _checked(from_environment, "PYFEAT_BACKEND")
    return None


def num_threads() -> int:
    """Return how many threads to use: `PYFEAT_NUM_THREADS`, else the cores this process may use.

    Raises
    ------
    ValueError
        If `PYFEAT_NUM_THREADS` is not a positive integer.
    """
    text = os.environ.get("PYFEAT_NUM_THREADS")
    if text is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"PYFEAT_NUM_THREADS must be a positive integer, got {text!r}")
    return int(text)


def _checked(name: str, what: str) -> str:
    if name not in BACKEND_NAMES:
        raise ValueError(f"{what} must be one of {list(BACKEND_NAMES)}, got {name!r}")
    return name
