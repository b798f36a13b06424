"""A process that tries one backbone on a sample, so that its memory is its own."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from pyfeat.extract import FeatureExtractor, Input, RunOptions, Times, run
from pyfeat.jobs._process import leave_signals, unpacked
from pyfeat.jobs._worker import ERRORS, send_error
from pyfeat.store import FeatureStore

_WARM = 16


def main(descriptor: int) -> None:
    """Measure what comes through a pipe, packed: settings of an extractor, modality, inputs."""
    leave_signals()
    connection = Connection(descriptor)
    try:
        connection.send(("measured", _measure(*unpacked(connection.recv_bytes()))))
    except ERRORS as error:
        send_error(connection, error)


def _measure(settings: dict[str, Any], modality: str, inputs: list[Input]) -> dict[str, Any]:
    began = time.perf_counter()
    extractor = FeatureExtractor(**settings)
    if extractor.modality != modality:
        raise ValueError(f"inputs must be of kind {extractor.modality}, got kind {modality}")
    backbone = extractor.get_backbone([item.value for item in inputs])
    loaded = time.perf_counter()
    options = RunOptions(
        extractor.batch_size, extractor.deterministic, extractor.dtype, extractor.decode
    )
    for _ in run(inputs[:_WARM], backbone, None, options):
        pass
    times, unreadable = Times(), 0
    with tempfile.TemporaryDirectory(prefix="pyfeat-") as folder:
        warm = time.perf_counter()
        with FeatureStore(folder, extractor.space_) as store:
            for outcome in run(inputs, backbone, store, options, times):
                unreadable += outcome.status == "bad"
        seconds = time.perf_counter() - warm
        n_bytes = sum(Path(file).stat().st_size for file in store.files())
        row_bytes = n_bytes / max(len(store), 1)
    on_gpu = backbone.device.type == "cuda"
    return {
        "dim": extractor.space_.dim,
        "row_bytes": row_bytes,
        "load_seconds": loaded - began,
        "items_per_second": len(inputs) / seconds,
        "unreadable": unreadable,
        "shares": times.shares(),
        "memory_bytes": _peak_bytes(),
        "device_memory_bytes": torch.cuda.max_memory_reserved(backbone.device) if on_gpu else 0,
    }


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
