"""A contestant in a process of its own, for settings that must stand before a library loads.

numpy's OpenBLAS reads OPENBLAS_CORETYPE, and glibc its GLIBC_TUNABLES, once, at the start.

    Contestant("numpy, Haswell kernels",
               elsewhere("bench_moments:numpy_covariance", {"OPENBLAS_CORETYPE": "Haswell"}, n, d))

calls `bench_moments.numpy_covariance(n, d)` in the new process, which makes the input and returns
the function to time. Only the first call's result is sent back.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def elsewhere(factory: str, environment: dict[str, str], *arguments: Any) -> Callable[[], Any]:
    """Return a callable that runs `factory(*arguments)()` in a process with this environment.

    Parameters
    ----------
    factory : str
        "module:function" of a module in benchmarks/.
    environment : dict of str to str
        Added to this process's own.
    *arguments
        Handed to the function; small, for they are pickled.
    """
    child = subprocess.Popen(
        [sys.executable, str(HERE / "elsewhere.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    atexit.register(child.kill)
    pickle.dump((factory, arguments), child.stdin)
    child.stdin.flush()

    def run() -> Any:
        child.stdin.write(b"\n")
        child.stdin.flush()
        return pickle.load(child.stdout)

    return run


def _serve() -> None:
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the contestant prints must not get between the answers
    factory, arguments = pickle.load(requests)
    module, _, function = factory.partition(":")
    run = getattr(importlib.import_module(module), function)(*arguments)
    first = True
    while requests.readline():
        result = run()
        pickle.dump(result if first else None, answers)
        answers.flush()
        first = False


if __name__ == "__main__":
    _serve()
