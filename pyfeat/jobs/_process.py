"""Processes of a job's own: a function of this package at the other end of a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe

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
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, module, str(descriptor), json.dumps(sys.path)],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what it prints is no part of a command's answer
        env={**os.environ, **environment},
    )
    theirs.close()
    return process, ours


def how_it_ended(code: int) -> str:
    """Return what an exit code means, as the end of a sentence.

    Examples
    --------
    >>> how_it_ended(-9)
    'was killed by signal 9'
    """
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
