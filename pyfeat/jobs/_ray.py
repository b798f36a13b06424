"""`extract` on a Ray cluster: workers write into the store, the job keeps the account.

Ray Data hands pieces of the inputs to actors. What an actor had in hand when it died is given out
again; the rows that it had put are found then.
"""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyfeat._model_file import replace_file
from pyfeat.extract import Input, Outcome, RunOptions
from pyfeat.jobs._job import Job
from pyfeat.jobs._ray_cluster import Places, cluster, import_ray, is_client, places_of
from pyfeat.jobs._ray_worker import Ledger, Piece, Report, Work, Worker
from pyfeat.store import FeatureStore

# Batches in a piece of work: their account comes at once, at its end.
_BATCHES = 8
_PIECES = 8  # for each worker at least, where there are few inputs: all end at about one time
# Seconds that the end of a job waits for its workers to end; the next writer seals what is left.
_PATIENCE = 5.0
# Inputs whose names and values lie in the memory of the cluster at a time.
_WAVE = 2**20


def run_on_ray(job: Job) -> Generator[Outcome, None, None]:
    """Yield what becomes of every input, as `pyfeat.extract.run` does, from workers of a cluster.

    Parameters
    ----------
    job : Job
        Extractor and values of inputs must pickle; the folder of the store must be seen by every
        machine under the same path.

    Yields
    ------
    outcome : Outcome
        One for each input, without its row: that is on the disk.

    Raises
    ------
    ImportError, ConnectionError
        As from `cluster`.
    ValueError
        If a GPU is wanted and the cluster has none.
    StoreError
        If a machine does not see the store, or cannot write into it.
    SpaceError
        If the backbone of a machine gives other rows: its packages have other versions.
    """
    if not len(job.inputs):
        return  # all is there: no cluster is started for that
    options, folder, space = job.options, job.store.path, job.store.space
    settings = _settings(job)
    try:
        with cluster(options.address, options.workers) as ray, _token(folder) as token:
            places = places_of(ray, options.workers, settings["device"])
            threads = (places.cpus, torch.get_num_threads())
            work = Work(settings, space, str(folder), token, job.run_options, threads)
            for start in range(0, len(job.inputs), _WAVE):
                part = range(start, min(start + _WAVE, len(job.inputs)))
                for report in _reports(ray, job.inputs, part, work, places):
                    yield from _outcomes(report, job)
    finally:
        _seal(job.store)


def _settings(job: Job) -> dict[str, Any]:
    """Return the arguments of an extractor that computes the rows of a job on any machine."""
    extractor = job.extractor
    was_open = "auto" in (extractor.engine, extractor.precision)
    device = job.backbone.device.type if was_open else str(extractor.device)
    # A worker sees the one GPU that it has been given.
    return {**job.settings(), "device": device.partition(":")[0]}


def _seal(store: FeatureStore) -> None:
    """Seal what workers that were killed have put, as soon as they are gone."""
    until = time.monotonic() + _PATIENCE
    while True:
        FeatureStore(store.path, store.space).close()
        store.refresh()
        if not any(f.endswith(".tail") for f in store.files()) or time.monotonic() > until:
            return
        time.sleep(0.2)


@contextmanager
def _token(folder: Path) -> Iterator[str]:
    """Give the name of a file that lies in a folder for a while."""
    path = folder / f"ray-{secrets.token_hex(8)}.tmp"
    replace_file(path, b"")
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


def _reports(
    ray: Any, inputs: Sequence[Input], part: range, work: Work, places: Places
) -> Iterator[Report]:
    step = _step(len(part), work.options, places)
    starts = part[::step]
    pieces = [
        {"piece": Piece(i, [inputs[k] for k in range(i, min(i + step, part.stop))])} for i in starts
    ]
    if not is_client(ray):
        yield from results(pieces, work, places)
        return
    # Ray Data needs a process of the cluster to run it.
    remote = ray.remote(num_cpus=0)(Results).remote(pieces, work, places)
    while (report := ray.get(remote.take.remote())) is not None:
        yield report


def results(pieces: list[dict[str, Any]], work: Work, places: Places) -> Iterator[Report]:
    """Yield what became of pieces of work, in the order in which they were done."""
    ray = import_ray()
    ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger).remote()
    needs: dict[str, Any] = {"num_gpus": 1} if places.gpus else {"num_cpus": places.cpus}
    data = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        Worker,
        fn_constructor_args=(work, ledger),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(places.workers, len(pieces))),
        **needs,
    )
    for batch in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        yield from batch["report"]


class Results:
    """The same one by one, from an actor."""

    def __init__(self, *arguments: Any) -> None:
        self._results = results(*arguments)

    def take(self) -> Report | None:
        """Return the next report; None after the last one."""
        return next(self._results, None)


def _step(n: int, options: RunOptions, places: Places) -> int:
    """Return how many inputs make a piece of work."""
    size = options.batch_size
    batch = int(size) if size != "auto" else (128 if places.gpus else 16)
    return max(1, min(_BATCHES * batch, -(-n // (_PIECES * places.workers))))


def _outcomes(report: Report, job: Job) -> Iterator[Outcome]:
    for kind, message in report.told:
        warnings.warn(message, kind, stacklevel=2)
    if report.error is not None:
        raise report.error
    job.times.add(report.times)
    if report.deaths:
        state = f"does {len(report.outcomes)} inputs again, at which {report.deaths} workers died"
        job.tell("worker", {"worker": report.worker, "state": state})
        yield from _of_the_dead(report.outcomes, job.store)
    else:
        yield from report.outcomes


def _of_the_dead(outcomes: Sequence[Outcome], store: FeatureStore) -> Iterator[Outcome]:
    """Count rows that a worker had put when it died as computed by this job, which they were.

    The store has not been refreshed since the job began.
    """
    seen: set[bytes | None] = set()
    for o in outcomes:
        is_new = o.status == "stored" and o.key is not None and not store.contains([o.key])[0]
        yield replace(o, status="computed") if is_new and o.key not in seen else o
        seen.add(o.key)
