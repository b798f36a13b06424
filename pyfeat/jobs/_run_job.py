"""One job from its inputs to its summary, whoever does the work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from pyfeat.backbones import Fidelity
from pyfeat.extract import FeatureExtractor, Input, Outcome, run
from pyfeat.jobs._account import Account
from pyfeat.jobs._forward import close_sources
from pyfeat.jobs._golden import keep_golden
from pyfeat.jobs._job import Job
from pyfeat.jobs._options import Options
from pyfeat.jobs._ray import run_on_ray
from pyfeat.jobs._report import Listeners, Report, reporting
from pyfeat.jobs._settle import Notes, Settled, settle
from pyfeat.jobs._share import Selected, chosen_inputs
from pyfeat.jobs._stop import stoppable
from pyfeat.jobs._summary import ExtractSummary, JobInterrupted
from pyfeat.jobs._workers import Workers, devices_of
from pyfeat.store import FeatureStore, Item, ItemLog, Memo

Progress = bool | Callable[[int, int], None]
Keep = Callable[[int, Item], None]
# Inputs that an engine is chosen on, at most.
_SAMPLE = 32


def run_job(
    inputs: Sequence[Input],
    store: str | os.PathLike[str],
    extractor: FeatureExtractor,
    options: Options,
    listeners: Listeners,
    progress: Progress = False,
    keep: Keep | None = None,
) -> ExtractSummary:
    """Do the work of `extract` on inputs that were collected.

    Parameters
    ----------
    inputs : sequence of Input
    store : path-like
    extractor : FeatureExtractor
    options : Options
    listeners : Listeners
        Who is told; of an error by the caller.
    progress : bool or callable, default=False
    keep : callable, optional
        Gets the position of each input among those that were chosen, and what became of it.

    Raises
    ------
    JobInterrupted
        If a signal asked the job to stop.
    StoreError
        If what failed is to be tried again where no store is.
    """
    began = time.perf_counter()
    if options.retry_failed:
        FeatureStore.spaces(store)  # raises where none is: nothing can have failed there
    # With the store, whose rows decide where an engine is to be chosen.
    extractor = copy(extractor).set_params(store=store)
    sample = _sample(inputs)
    backbone = extractor.get_backbone(sample)
    measured = extractor.measure_fidelity(sample) if options.fidelity else extractor.fidelity_
    space = extractor.space_
    with FeatureStore(store, space) as open_store, Memo(store, space) as memo:
        chosen = chosen_inputs(inputs, options, store, space)
        settled = settle(chosen, open_store, memo, rehash=options.rehash)
        rest = Selected(chosen, settled.rest) if len(settled.hits) else chosen
        job = Job(rest, open_store, extractor, backbone, options)
        # Opened after the other one, which has sealed what dead writers left.
        earlier = FeatureStore(store, space, mode="r")
        account = Account(len(chosen), ItemLog(store, space), earlier)
        account.add_hits(len(settled.hits))
        running = time.perf_counter()
        facts = {"store": str(Path(store)), "space": space.fingerprint, **job.origin()}
        with reporting(account, job.times, listeners, progress, facts) as report:
            job.tell = report.tell
            _keep_hits(chosen, settled, keep)
            notes = Notes(settled, memo)
            _do(job, account, report, notes, _of_rest(settled, keep))
        if keep is None and account.computed and job.stop.signal is None:
            keep_golden(store, space, backbone, job.run_options)
    now = time.perf_counter()
    summary = _summary(job, account, measured, (now - began, now - running))
    end = "end" if job.stop.signal is None else "interrupted"
    report.tell(end, {**summary.to_dict(), **report.state()})
    if job.stop.signal is not None:
        raise JobInterrupted(summary, job.stop.signal)
    return summary


def _keep_hits(chosen: Sequence[Input], settled: Settled, keep: Keep | None) -> None:
    if keep is not None:
        for position, key in zip(settled.hits.tolist(), settled.keys, strict=True):
            keep(position, Item(chosen[position].name, key.tobytes()))


def _of_rest(settled: Settled, keep: Keep | None) -> Keep | None:
    """Return what takes positions among the rest."""
    if keep is None:
        return None
    return lambda position, item: keep(int(settled.rest[position]), item)


def _do(job: Job, account: Account, report: Report, notes: Notes, keep: Keep | None) -> None:
    """Go through the inputs until they are done, or a signal comes."""
    try:
        with stoppable() as job.stop, closing(_outcomes(job)) as outcomes:
            for o in outcomes:
                name = job.inputs[o.position].name
                account.add(name, o)
                notes.add(o)
                if account.is_written:
                    notes.write()
                if o.status == "bad":
                    report.tell("quarantined", {"path": name, "reason": o.reason})
                if keep is not None:
                    keep(o.position, Item(name, o.key, o.reason or None))
                report.advance()
                if job.stop.signal is not None:
                    break
    finally:
        account.close()
        notes.write()
        close_sources()


def _outcomes(job: Job) -> Generator[Outcome, None, None]:
    """Return what becomes of every input, by whoever does the work."""
    if job.options.runner == "ray" and len(job.inputs):
        return run_on_ray(job)
    devices = devices_of(job.extractor.device, job.options.devices, job.options.workers)
    if devices and len(job.inputs):  # nobody is started for nothing
        return Workers(job, devices[: len(job.inputs)]).outcomes()
    return run(job.inputs, job.backbone, job.store, job.run_options, job.times)


def _sample(inputs: Sequence[Input]) -> list[Any]:
    """Return values of a few inputs, spread evenly, for a choice of the engine."""
    positions = np.linspace(0, len(inputs) - 1, min(_SAMPLE, len(inputs))).astype(int)
    return [inputs[i].value for i in np.unique(positions).tolist()]


def _summary(
    job: Job, account: Account, measured: Fidelity | None, seconds: tuple[float, float]
) -> ExtractSummary:
    origin = job.origin()
    engine, precision = origin["engine"], origin["precision"]
    return ExtractSummary(
        store=str(job.extractor.store),
        space=job.store.space.fingerprint,
        total=account.done,
        computed=account.computed,
        hits=account.hits,
        duplicates=account.duplicates,
        quarantined=account.named,
        seconds=seconds[0],
        images_per_second=account.done / seconds[1],
        modality=job.backbone.modality,
        engine=engine,
        precision=precision,
        choice=_choice(job.extractor, engine, precision),
        truncated=account.truncated,
        fidelity=measured,
        n_quarantined=account.quarantined,
        left=account.total - account.done,
        shard=origin["shard"],
        times=job.times.to_dict(),
        shares=job.times.shares(),
    )


def _choice(extractor: FeatureExtractor, engine: str, precision: str) -> str | None:
    """Return why an engine was taken; None where nothing was to be chosen."""
    if "auto" not in (extractor.engine, extractor.precision):
        return None
    if extractor.fidelity_ is None:
        return f"{engine} {precision}: what was chosen for the store before"
    return extractor.fidelity_.reason()
