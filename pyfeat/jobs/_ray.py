"""`extract` on a Ray cluster: workers write into the store, the job that started them keeps account.

Ray Data hands pieces of the inputs to actors. What an actor had in hand when it died is given out
again; the rows that it had put are found then.
"""

from __future__ import annotations

import pickle
import secrets
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pyfeat._identity import Space
from pyfeat._model_file import replace_file
from pyfeat.backbones import Backbone
from pyfeat.extract import FeatureExtractor, Input, Outcome, RunOptions, engine_of
from pyfeat.jobs._ray_cluster import Places, cluster, places_of
from pyfeat.jobs._ray_worker import Ledger, Report, Work, Worker, as_piece
from pyfeat.store import FeatureStore

# Batches in a piece of work: their account comes at once, at its end.
_BATCHES = 16
_PIECES = 8  # for each worker at least, where there are few inputs: all end at about one time
# Inputs whose names and values lie in the memory of the cluster at a time.
_WAVE = 2**20


def run_on_ray(
    inputs: Sequence[Input],
    extractor: FeatureExtractor,
    backbone: Backbone,
    store: FeatureStore,
    options: RunOptions,
    *,
    workers: int | None = None,
    address: str | None = None,
) -> Generator[Outcome, None, None]:
    """Yield what becomes of every input, as `pyfeat.extract.run` does, from workers of a cluster.

    Parameters
    ----------
    inputs : sequence of Input
        Their values must pickle.
    extractor : FeatureExtractor
        Must pickle.
    backbone : Backbone
        That of the extractor, on the engine that was chosen.
    store : FeatureStore
        Open for writing; its folder must be seen by every machine under the same path.
    options : RunOptions
    workers : int, optional
        See `places_of`.
    address : str, optional
        See `cluster`.

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
    settings = _settings(extractor, backbone, store.space)
    try:
        with cluster(address, workers) as ray, _token(store.path) as token:
            places = places_of(ray, workers, settings["device"])
            threads = torch.get_num_threads()
            work = Work(
                settings, store.space, str(store.path), token, options, places.cpus, threads
            )
            for start in range(0, len(inputs), _WAVE):
                stop = min(start + _WAVE, len(inputs))
                for report in _reports(ray, inputs, (start, stop), work, places):
                    yield from _settle(report)
    finally:
        FeatureStore(store.path, store.space).close()  # seals what workers that were killed left
        store.refresh()


def _settings(extractor: FeatureExtractor, backbone: Backbone, space: Space) -> dict[str, Any]:
    """Return the arguments of an extractor that computes the rows of a space anywhere."""
    settings = extractor.get_params(deep=False)
    was_open = "auto" in (extractor.engine, extractor.precision)
    device = backbone.device.type if was_open else str(extractor.device)
    engine, precision = engine_of(space.parts)
    return {
        **settings,
        "engine": engine,
        "precision": precision,
        "device": device.partition(":")[0],  # a worker sees the one GPU that it has been given
        "store": None,
        "progress": False,
    }


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
    ray: Any, inputs: Sequence[Input], part: tuple[int, int], work: Work, places: Places
) -> Iterator[Report]:
    start, stop = part
    step = _step(stop - start, work, places)
    pieces = [as_piece(i, inputs[i : min(i + step, stop)]) for i in range(start, stop, step)]
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
        for report in batch["report"]:
            yield pickle.loads(report)


def _step(n: int, work: Work, places: Places) -> int:
    """Return how many inputs make a piece of work."""
    size = work.options.batch_size
    batch = int(size) if size != "auto" else (128 if places.gpus else 16)
    return max(1, min(_BATCHES * batch, -(-n // (_PIECES * places.workers))))


def _settle(report: Report) -> Iterator[Outcome]:
    for kind, message in report.told:
        warnings.warn(message, kind, stacklevel=2)
    if report.error is not None:
        raise report.error
    yield from report.outcomes
