"""A Ray cluster for one job: started here or joined, quiet, and how its cores are shared out."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch

from pyfeat._config import num_threads

# The thread of Ray that prints what it has to say about dead workers, on stdout.
_TELLER = "ray_listen_error_messages"
# Cores of a cluster of our own that no worker reserves: for what Ray itself wants to run.
_SPARE, _SPARED = "pyfeat_spare", 2
# Seconds in which a machine must answer.
_PATIENCE = 10.0


@dataclass(frozen=True)
class Places:
    """What the workers of a job get.

    Parameters
    ----------
    workers : int
    cpus : int
        Cores that each of them reserves, and on which it decodes.
    gpus : int
        0 or 1: of each.
    """

    workers: int
    cpus: int
    gpus: int


def import_ray() -> Any:
    """Return the module `ray`, with `ray.data`.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    # Ray reads these when it loads: nothing is reported to its makers behind a caller's back, and
    # its C++ half does not write between the lines of a job.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.data
    except ImportError:
        raise ImportError('runner "ray" needs Ray: pip install "pyfeat[ray]"') from None
    return ray


@contextmanager
def cluster(address: str | None, workers: int | None) -> Iterator[Any]:
    """Give `ray`, connected; what was started or joined here is left at the end.

    Parameters
    ----------
    address : str, optional
        "auto", "HOST:PORT" or "ray://HOST:PORT": joined. By default the cluster that this process
        has joined already, that of `RAY_ADDRESS`, or else one is started on this machine.
    workers : int, optional
        How many a cluster that is started here must have room for.

    Raises
    ------
    ImportError
        If Ray is not installed.
    ConnectionError
        If there is no cluster at the address.
    """
    ray = import_ray()
    with _quiet(ray):
        if ray.is_initialized():
            yield ray
            return
        with _own_signals():
            _connect(ray, address or os.environ.get("RAY_ADDRESS"), workers)
        try:
            yield ray
        finally:
            with redirect_stdout(io.StringIO()):  # what Ray has kept back of the same kind
                ray.shutdown()


def _connect(ray: Any, address: str | None, workers: int | None) -> None:
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Cores of a cluster on one machine are a way of counting.
        cores = max(num_threads(), torch.get_num_threads() * (workers or 1))
        spare = {_SPARE: _SPARED}
        settings |= {"num_cpus": cores + _SPARED, "resources": spare, "include_dashboard": False}
        with _without_level():
            ray.init("local", **settings)
        return
    try:
        _check_answers(address)
        with _without_level():
            ray.init(address, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"address must be that of a running Ray cluster, got {address!r}: "
            f"{str(error).partition(chr(10))[0]}"
        ) from None


def _check_answers(address: str) -> None:
    """Raise OSError where nobody listens: Ray would try for minutes, then end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


def is_client(ray: Any) -> bool:
    """Return whether this process only talks to a cluster, by "ray://", and is no part of it."""
    return bool(ray.util.client.ray.is_connected())


def places_of(ray: Any, workers: int | None, device: str) -> Places:
    """Return how many workers there are, and what each of them gets.

    Parameters
    ----------
    ray : module
        Connected.
    workers : int, optional
        By default one for each GPU; without GPUs as many as find cores for the threads that torch
        uses here, at least one.
    device : str
        "auto", "cpu" or "cuda".

    Raises
    ------
    ValueError
        If a GPU is wanted and the cluster has none.
    """
    resources = ray.cluster_resources()
    n_gpus = 0 if device == "cpu" else int(resources.get("GPU", 0))
    if device == "cuda" and not n_gpus:
        raise ValueError("device must be 'cpu' or 'auto' on a cluster without GPUs, got 'cuda'")
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    cores = [int(n.get("CPU", 0) - n.get(_SPARE, 0)) for n in nodes]
    threads = torch.get_num_threads()
    wanted = workers or n_gpus or max(1, sum(n // threads for n in cores))
    share = share_of_cores(cores, wanted)
    if "PYFEAT_NUM_THREADS" in os.environ:
        share = min(share, num_threads())
    return Places(wanted, share if n_gpus else min(threads, share), min(n_gpus, 1))


def share_of_cores(cores: Sequence[int], workers: int) -> int:
    """Return how many cores each worker can have, all on one machine; at least 1.

    Examples
    --------
    >>> share_of_cores([8, 8], 2), share_of_cores([8, 8], 3), share_of_cores([2], 5)
    (8, 4, 1)
    """
    for share in range(max(cores, default=1), 1, -1):
        if sum(n // share for n in cores) >= workers:
            return share
    return 1


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM: that of Ray would end the process without a word of the job."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _without_level() -> Iterator[None]:
    """Leave out of stderr what Ray's C++ half says about the level of its log, as it begins."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            for line in file.read().splitlines(keepends=True):
                if b"RAY_BACKEND_LOG_LEVEL" not in line:
                    os.write(2, line)


class _Sieve:
    """stdout without what Ray says about dead workers: they are no news, and JSON stands there."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name != _TELLER:
            return int(self._stream.write(text))
        logging.getLogger("pyfeat").debug("Ray: %s", text.strip())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Keep Ray from writing bars and logs while a job runs."""
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    logger = logging.getLogger("ray.data")
    level, stdout = logger.level, sys.stdout
    logger.setLevel(logging.CRITICAL)
    sys.stdout = _Sieve(stdout)
    try:
        yield
    finally:
        sys.stdout = stdout
        logger.setLevel(level)
        context.enable_progress_bars = bars
