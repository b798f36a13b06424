"""A contestant in a process of its own, for settings that must stand before a library loads.

numpy's OpenBLAS reads OPENBLAS_CORETYPE, and glibc its GLIBC_TUNABLES, once, at the start.

    Contestant("numpy, Haswell kernels",
               elsewhere("bench_moments:numpy_covariance", {"OPENBLAS_CORETYPE": "Haswell"}, n, d))

calls `bench_moments.numpy_covariance(n, d)` in the new process, which makes the input and returns
the function to time. Only the first call's result is sent back. What eager torch of the CPU gains
by a glibc that keeps freed memory shows in

    Contestant("torch, tuned malloc", elsewhere("bench_moments:torch_alone", tuned_malloc(2), n, d))
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# Large arrays come from the heap, and the heap is never given back: their pages are touched for
# the first time once, not with every call.
TUNED_MALLOC = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"


def tuned_malloc(threads: int) -> dict[str, str]:
    """Return an environment for torch on so many threads, without page faults in temporaries."""
    return {
        "GLIBC_TUNABLES": TUNED_MALLOC,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "MKL_DYNAMIC": "FALSE",  # else torch takes no more threads than there are cores
    }


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
    return Elsewhere(factory, environment, arguments)


class Elsewhere:
    """The process, for as long as somebody may call it."""

    def __init__(self, factory: str, environment: dict[str, str], arguments: tuple[Any, ...]):
        self.child = subprocess.Popen(
            [sys.executable, str(HERE / "elsewhere.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        pickle.dump((factory, arguments), self.child.stdin)
        self.child.stdin.flush()
        weakref.finalize(self, _end, self.child)  # at exit too
        self.factory = factory

    def __call__(self) -> Any:
        try:
            self.child.stdin.write(b"\n")
            self.child.stdin.flush()
            return pickle.load(self.child.stdout)
        except (BrokenPipeError, EOFError) as error:
            _end(self.child)
            raise RuntimeError(f"the process of {self.factory!r} ended: see above") from error


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    with suppress(BrokenPipeError), child:  # closes its pipes and waits for it
        pass


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
        del result  # else the next one would need another place in memory
        first = False


if __name__ == "__main__":
    _serve()
