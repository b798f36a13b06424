"""Several processes for one job, each with a backbone on a device of its own.

Each worker puts rows into the store itself; what became of every input comes back to this process,
which keeps the account. Inputs are handed out in small portions, so that a slow device gets fewer.
When a worker dies, what it had not told of is done again, one input at a time: an input that kills
its worker by itself goes into quarantine.
"""

from __future__ import annotations

import subprocess
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch

from pyfeat._config import num_threads
from pyfeat.extract import Outcome
from pyfeat.jobs._job import Job
from pyfeat.jobs._process import how_it_ended, packed, start_process
from pyfeat.store import FeatureStore

PORTION = 64
# Deaths that are borne beside those an input is to blame for.
_DEATHS = 10
# Seconds that all workers together have to write what they hold when a job ends, and one that has
# nothing to do any more to end.
_SECONDS = 60.0


def devices_of(device: Any, devices: Sequence[str] | None, workers: int | None) -> list[str]:
    """Return the device of each worker; [] where this process does the work itself.

    Parameters
    ----------
    device : str or torch.device
        Of the extractor: "auto" and "cuda" are all GPUs there are.
    devices : sequence of str, optional
        Those asked for by name.
    workers : int, optional
        How many; by default one for each device asked for.
    """
    named = list(devices or [])
    if workers is None and len(named) < 2:
        return []
    n_gpus = torch.cuda.device_count()
    if not named and str(device) in ("auto", "cuda") and n_gpus > 1:
        named = [f"cuda:{i}" for i in range(n_gpus)]
    named = named or [str(device)]
    return [named[i % len(named)] for i in range(workers or len(named))]


class _Worker:
    """One process, and what it was given and has not told of."""

    def __init__(self, number: int, device: str, threads: int) -> None:
        self.number = number
        self.device = device
        self.given: set[int] = set()
        self.is_ready = False
        # Whether it may get more in the session it is in, and whether that is of one suspect.
        self.is_open = False
        self.on_trial = False
        environment = {"PYFEAT_NUM_THREADS": str(threads)}
        self.process, self.connection = start_process("pyfeat.jobs._worker", environment)

    def send(self, message: Any) -> None:
        """Send a message; that it died is noticed when its end of the pipe is read."""
        try:
            self.connection.send(message)
        except OSError:
            return

    def send_bytes(self, content: bytes) -> None:
        """Send bytes in the same way."""
        try:
            self.connection.send_bytes(content)
        except OSError:
            return

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.process.pid}, {self.device})"


class Workers:
    """The workers of one job.

    Parameters
    ----------
    job : Job
    devices : list of str
        Of each worker.
    """

    def __init__(self, job: Job, devices: list[str]) -> None:
        self._job = job
        n = len(job.inputs)
        portion = max(1, min(PORTION, n // (8 * len(devices))))
        self._at = 0
        self._portion = portion
        self._suspects: deque[int] = deque()
        self._deaths = 0
        self._threads = max(1, num_threads() // len(devices))
        self._torch_threads = torch.get_num_threads()
        if not job.run_options.deterministic:  # another number takes sums in another order
            self._torch_threads = min(self._torch_threads, self._threads)
        self._devices = devices
        self._alive: list[_Worker] = []

    def _start(self, number: int, device: str) -> None:
        worker = _Worker(number, device, self._threads)
        self._alive.append(worker)
        self._tell(worker, "started")
        store = str(self._job.store.path)
        settings = {**self._job.settings(), "store": store, "device": device}
        worker.send_bytes(packed((settings, self._torch_threads)))

    def _tell(self, worker: _Worker, state: str) -> None:
        facts = {"worker": worker.number, "device": worker.device, "state": state}
        self._job.tell("worker", {**facts, "worker_pid": worker.process.pid})

    def outcomes(self) -> Generator[Outcome, None, None]:
        """Yield what becomes of every input; of none any more once the job is to stop."""
        try:
            for number, device in enumerate(self._devices, 1):
                self._start(number, device)
            while self._alive and self._job.stop.signal is None:
                for worker in self._readable():
                    try:
                        message = worker.connection.recv()
                    except (EOFError, OSError):  # killed, perhaps amid a message
                        yield from self._bury(worker)
                    else:
                        yield from self._hear(worker, message)
        finally:
            self._end()

    def _readable(self) -> list[_Worker]:
        ends = {w.connection: w for w in self._alive}
        ready = wait([*ends, self._job.stop.wakes])
        return [ends[c] for c in ready if isinstance(c, Connection) and c in ends]

    def _hear(self, worker: _Worker, message: tuple[Any, ...]) -> Iterator[Outcome]:
        kind, *content = message
        if kind == "ready":
            self._check_space(worker, content[0])
            worker.is_ready = True
            self._begin(worker)
        elif kind == "want":
            self._feed(worker)
        elif kind == "outcomes":
            outcomes, times = content
            self._job.times.add(times)
            for outcome in outcomes:
                worker.given.discard(outcome.position)
                yield self._of_the_dead(outcome) if worker.on_trial else outcome
        elif kind == "idle":
            self._begin(worker)
        else:
            raise content[0]

    def _check_space(self, worker: _Worker, fingerprint: str) -> None:
        space = self._job.store.space
        if fingerprint != space.fingerprint:
            raise RuntimeError(
                f"{worker} must give rows of space {space.fingerprint[:12]}, got {fingerprint[:12]}"
            )

    def _begin(self, worker: _Worker) -> None:
        """Begin a session: of one suspect, or of all that is left; or send the worker home."""
        worker.on_trial = bool(self._suspects)
        if self._suspects:
            self._give(worker, [self._suspects.popleft()])
            worker.send(("end",))
        elif positions := self._next():
            worker.is_open = True
            self._give(worker, positions)
        else:
            worker.send(("stop",))

    def _feed(self, worker: _Worker) -> None:
        """Give a worker its next portion while it is busy with the one before."""
        if not worker.is_open:
            return
        if positions := self._next():
            self._give(worker, positions)
        else:
            worker.is_open = False
            worker.send(("end",))

    def _next(self) -> range:
        positions = range(self._at, min(self._at + self._portion, len(self._job.inputs)))
        self._at = positions.stop
        return positions

    def _give(self, worker: _Worker, positions: Sequence[int]) -> None:
        worker.given.update(positions)
        worker.send(("items", [(p, self._job.inputs[p]) for p in positions]))

    def _bury(self, worker: _Worker) -> Iterator[Outcome]:
        """Take note that a worker has ended; another one takes its place if it left work."""
        self._alive.remove(worker)
        worker.connection.close()
        code = _code_of(worker.process)
        if code == 0 and not worker.given:
            self._tell(worker, "ended")
            return
        how = how_it_ended(code)
        self._tell(worker, how)
        if not worker.is_ready and code > 0:
            raise RuntimeError(f"{worker} {how} before it began")
        if worker.on_trial and worker.given:
            yield Outcome(worker.given.pop(), "bad", reason=f"the process that read it {how}")
        else:
            self._deaths += 1
            if self._deaths > _DEATHS:
                raise RuntimeError(f"{worker} {how}, after {_DEATHS} others: the job ends here")
            self._suspects.extend(sorted(worker.given))
            what = f": {len(worker.given)} inputs are done again"
            message = f"{worker} {how}{what if worker.is_ready else ' before it began'}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        if self._suspects or self._at < len(self._job.inputs):
            self._start(worker.number, worker.device)

    def _of_the_dead(self, outcome: Outcome) -> Outcome:
        """Count a row that a worker had put when it died as computed by this job.

        The store of the job has not been refreshed since the job began.
        """
        if outcome.status != "stored" or outcome.key is None:
            return outcome
        is_old = self._job.store.contains([outcome.key])[0]
        return outcome if is_old else replace(outcome, status="computed")

    def _end(self) -> None:
        """Have the workers write what they hold, and wait for them to end."""
        killed = False
        try:
            for worker in self._alive:
                if worker.is_ready:
                    worker.send(("stop",))
                else:  # it holds nothing yet
                    worker.process.kill()
            _wait_for(self._alive, time.monotonic() + _SECONDS)
        finally:
            for worker in self._alive:
                worker.connection.close()
                if worker.process.poll() is None:
                    worker.process.kill()
                    worker.process.wait()
                    killed = True
        if self._deaths or killed:  # seals what they have put
            FeatureStore(self._job.store.path, self._job.store.space).close()


def _code_of(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a process that has closed its pipe; one that goes on is killed."""
    try:
        return process.wait(_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _wait_for(workers: Sequence[_Worker], until: float) -> None:
    """Return when all workers have ended, or at a time at the latest."""
    ends: list[Any] = [w.connection for w in workers]
    while ends and (left := until - time.monotonic()) > 0:
        for end in wait(ends, left):
            try:
                cast(Connection, end).recv()
            except (EOFError, OSError):
                ends.remove(end)
    for worker in workers:
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0.0, until - time.monotonic()))
