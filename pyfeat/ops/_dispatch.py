"""The one place where a backend is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyfeat._config import wanted_backend
from pyfeat.errors import BackendError
from pyfeat.ops._check import interpreting


@dataclass(frozen=True)
class Backend:
    """One way to compute an op.

    Parameters
    ----------
    name : {"cuda", "triton", "cpp", "reference"}
        The name a caller asks for.
    run : callable
        Computes the op.
    refuses : callable
        Takes the arguments of `run`; returns None for "I can", else the reason as a sentence.
    """

    name: str
    run: Callable[..., Any]
    refuses: Callable[..., str | None]


def never_refuses(*_: Any) -> None:
    """Accept every argument: what a reference does."""


def choose(op: str, backends: Sequence[Backend], want: str | None, *args: Any) -> Backend:
    """Return the backend for these arguments: the one asked for, else the first that can.

    Parameters
    ----------
    op : str
        Name of the op, for messages.
    backends : sequence of Backend
        Fastest first; the last one never refuses.
    want : str or None
        The `backend=` argument of the public function.
    *args
        What `run` will be called with.

    Raises
    ------
    BackendError
        If the backend asked for refuses, or the op has no such backend.
    ValueError
        If `want` names no backend at all.
    """
    name = wanted_backend(want)
    if name is None:
        # Triton's interpreter is for debugging: it runs only for who asks for it by name.
        able = (b for b in backends if not (b.name == "triton" and interpreting()))
        return next(b for b in able if b.refuses(*args) is None)
    for b in backends:
        if b.name == name:
            if (why := b.refuses(*args)) is not None:
                raise BackendError(f"{op}: backend {name!r} cannot run here: {why}")
            return b
    have = [b.name for b in backends]
    raise BackendError(f"{op}: backend {name!r} does not exist for this op, only {have}")


def explain_backends(backends: Sequence[Backend], *args: Any) -> dict[str, str]:
    """Return, for each backend, "ok" or the reason why it cannot take these arguments."""
    return {b.name: b.refuses(*args) or "ok" for b in backends}
