"""The batch job: many inputs into a store, resumable, never dying of one of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

from torch import nn

from pyfeat.extract import FeatureExtractor, Input
from pyfeat.jobs._collect_texts import Collected, collect_inputs
from pyfeat.jobs._options import JobOptions, Options, check_options
from pyfeat.jobs._report import listeners_of
from pyfeat.jobs._run_job import Progress, run_job
from pyfeat.jobs._summary import ExtractSummary
from pyfeat.store import Item

if TYPE_CHECKING:
    from typing_extensions import Unpack

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Collected


def extract(
    inputs: Inputs,
    store: str | os.PathLike[str],
    backbone: str | nn.Module | FeatureExtractor = "efficientnet_lite0",
    *,
    progress: Progress = False,
    **options: Unpack[JobOptions],
) -> ExtractSummary:
    """Put a row for every input into a store; run it again to go on where it stopped.

    Parameters
    ----------
    inputs : path-like or sequence of path-like
        Folders, globs, files, lists, tar archives, columns of tables, data sets of Hugging Face on
        disk, and addresses of such (see `collect_inputs`).
    store : path-like
        Folder of the store; made when it is not there.
    backbone : str, Module or FeatureExtractor, default="efficientnet_lite0"
        What computes the rows; an extractor brings its layers, engine, dtype, batch size and so on
        (its own store and `on_error` are not used).
    progress : bool or callable, default=False
        True shows a bar on stderr; a callable gets (done, total).
    **options : JobOptions
        decode, column, fidelity, shard, rehash, retry_failed, log_json, tensorboard, runner,
        workers, devices, address: see `JobOptions`.

    Returns
    -------
    summary : ExtractSummary

    Raises
    ------
    TypeError
        If there is no option of a name.
    ValueError
        If the inputs name nothing, none of a sample can be read, or an option is not as described.
    BackendError
        If the engine cannot run, or none is true enough.
    StoreError
        If the store cannot be written.
    JobInterrupted
        A KeyboardInterrupt: if Ctrl-C or SIGTERM asked the job to stop. Everything computed is in
        the store; the same call goes on.

    Examples
    --------
    >>> from pyfeat import jobs
    >>> summary = jobs.extract("photos/", "feats/", "resnet50")  # doctest: +SKIP
    """
    job = check_options(options)
    with listeners_of(job) as listeners:
        extractor = (
            backbone if isinstance(backbone, FeatureExtractor) else FeatureExtractor(backbone)
        )
        if job.decode is not None:
            extractor = copy(extractor).set_params(decode=job.decode)
        found = collect_inputs(inputs, extractor.modality, job.column)
        return run_job(found, store, extractor, job, listeners, progress)


def extract_items(
    inputs: Sequence[Input],
    store: str | os.PathLike[str],
    extractor: FeatureExtractor,
    progress: Progress = False,
) -> tuple[ExtractSummary, list[Item]]:
    """Do the work of `extract` in this process; return what became of every input too, in order.

    For few inputs: `run_job` holds nothing of each.
    """
    items: dict[int, Item] = {}

    def keep(position: int, item: Item) -> None:
        items[position] = item

    with listeners_of(Options()) as listeners:
        summary = run_job(inputs, store, extractor, Options(), listeners, progress, keep)
    return summary, [items[i] for i in sorted(items)]
