"""Processes of a job's own: a function of this package at the other end of a pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from io import BytesIO
from multiprocessing.connection import Connection, Pipe
from typing import Any

import torch

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_COMMAND = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "importlib.import_module(sys.argv[1]).main(int(sys.argv[2]))"
)


def start_process(
    module: str, environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], Connection]:
    """Run `main(descriptor)` of a module in a fresh interpreter.

    Unlike those of `multiprocessing` it imports nothing of the caller's script, and does not end
    with the caller: it is told, or finds the pipe closed.

    Parameters
    ----------
    module : str
        Name of the module.
    environment : mapping of str to str
        Variables beside those of this process.

    Returns
    -------
    process : Popen
    connection : Connection
        Our end of the pipe; the other one is the descriptor.
    """
    ours, theirs = Pipe()
    descriptor = theirs.fileno()
    # A process inherits what is blocked: no signal ends it before `main` has said what it is for.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, module, str(descriptor), json.dumps(sys.path)],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what it prints is no part of a command's answer
            env={**os.environ, **environment},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()
    return process, ours


def packed(value: Any) -> bytes:
    """Return settings of an extractor, and what goes with them, as bytes for a process.

    A connection by itself would send weights as descriptors, which only a fork can open.

    Raises
    ------
    TypeError
        If the backbone cannot be pickled.
    """
    content = BytesIO()
    try:
        torch.save(value, content)
    except (AttributeError, TypeError) as error:
        raise TypeError(
            f"backbone must be fit for pickle to run in a process of its own, got {error}"
        ) from None
    return content.getvalue()


def unpacked(content: bytes) -> Any:
    """Return what was `packed`.

    Raises
    ------
    TypeError
        If the class of the backbone cannot be imported here.
    """
    try:
        return torch.load(BytesIO(content), "cpu", weights_only=False)
    except (AttributeError, ImportError) as error:
        raise TypeError(
            "backbone must be a name, or of a class that can be imported, to run in a process of "
            f"its own: {error}"
        ) from None


def leave_signals() -> None:
    """Take no Ctrl-C and no SIGTERM; to be called first in `main`.

    Terminals and schedulers send them to all processes of a job: the parent tells when to stop.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def how_it_ended(code: int) -> str:
    """Return what an exit code means, as the end of a sentence.

    Examples
    --------
    >>> how_it_ended(-9)
    'was killed by signal 9'
    """
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
