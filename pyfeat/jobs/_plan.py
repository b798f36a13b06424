"""What a job would cost, from a probe of a few inputs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import nn

from pyfeat._config import num_threads
from pyfeat.extract import FeatureExtractor, Input, progress_of, read_file
from pyfeat.jobs._collect_texts import Collected, collect_inputs
from pyfeat.jobs._process import how_it_ended, packed, start_process

SAMPLE = 200
# Of a line in the list of inputs, beside the name.
_ITEM_BYTES = 52
# Of what the memo knows of a file.
_MEMO_BYTES = 60


@dataclass(frozen=True)
class Estimate:
    """What one backbone in one precision would cost.

    Parameters
    ----------
    backbone, engine, precision : str
    seconds : float
        Time of the whole job on this machine, in one process.
    items_per_second : float
    disk_bytes : int
        Size of the store, if no two inputs are equal.
    memory_bytes : int
        Most memory the process held.
    device_memory_bytes : int
        Most memory it held on the GPU; 0 on a CPU.
    dim : int
        Numbers of a row.
    unreadable : int
        Inputs of the sample without a row.
    shares : dict of str to float
        Which share of the work was read, decode, forward and write.
    error : str or None
        Why it cannot run here; all else is 0 then.
    """

    backbone: str
    engine: str
    precision: str
    seconds: float = 0.0
    items_per_second: float = 0.0
    disk_bytes: int = 0
    memory_bytes: int = 0
    device_memory_bytes: int = 0
    dim: int = 0
    unreadable: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a job would cost with each of some backbones.

    Parameters
    ----------
    total : int
        Inputs of the job.
    sample : int
        Inputs that were tried.
    input_bytes : int
        Size of all inputs, going by the sample.
    estimates : list of Estimate
        One for each backbone and precision, in the order asked for.
    """

    total: int
    sample: int
    input_bytes: int
    estimates: list[Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)


def plan(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Collected,
    backbones: Sequence[str | nn.Module | FeatureExtractor],
    *,
    precisions: Sequence[str] = ("fp32",),
    engine: str = "torch",
    dtype: str = "float32",
    device: str = "auto",
    column: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> Plan:
    """Try backbones on 200 of the inputs, and say what all of them would cost.

    Each one runs in a process of its own, as a job would, into a store that is thrown away.

    Parameters
    ----------
    inputs : path-like or sequence of path-like
        As for `extract`.
    backbones : sequence of str, Module or FeatureExtractor
        Names and modules are tried with the arguments below, extractors with their own settings
        and the precisions below.
    precisions : sequence of str, default=("fp32",)
    engine : str, default="torch"
    dtype : str, default="float32"
    device : str, default="auto"
    column : str, optional
        Column of a table that holds the paths, the files or the texts (see `collect_inputs`).
    progress : bool or callable, default=False
        Counts what was tried.

    Returns
    -------
    plan : Plan

    Raises
    ------
    ValueError
        If the inputs name nothing, or there is no backbone to try.

    Notes
    -----
    Inputs are spread evenly over the job. They are read once beforehand, and no backbone is taken
    to be faster than that was: a sample that lies in the page cache is read faster than the rest.
    Time is for inputs that are not in the store yet.
    """
    extractors = [
        b
        if isinstance(b, FeatureExtractor)
        else FeatureExtractor(b, engine=engine, dtype=dtype, device=device)
        for b in backbones
    ]
    if not extractors or not precisions:
        raise ValueError("backbones and precisions must name at least one each, got none")
    modality = extractors[0].modality
    found = collect_inputs(inputs, modality, column)
    positions = np.linspace(0, len(found) - 1, min(SAMPLE, len(found))).astype(int)
    sample = [found[i] for i in np.unique(positions).tolist()]
    n_bytes, per_second = _read_all(sample)
    tries = [(e, p) for e in extractors for p in precisions]
    estimates = []
    with progress_of(progress, len(tries)) as advance:
        for extractor, precision in tries:
            settings = extractor.get_params(deep=False)
            settings |= {"precision": precision, "store": None, "progress": False}
            measured = _probe(settings, modality, sample)
            estimates.append(_estimate(settings, measured, (len(found), per_second), sample))
            advance(1)
    return Plan(len(found), len(sample), round(n_bytes / len(sample) * len(found)), estimates)


def _read_all(sample: Sequence[Input]) -> tuple[int, float]:
    """Return the size of inputs, and how many of them are read in a second."""
    began = time.perf_counter()
    with ThreadPoolExecutor(num_threads()) as pool:
        sizes = list(pool.map(_size, sample))
    return sum(sizes), len(sample) / max(time.perf_counter() - began, 1e-9)


def _size(item: Input) -> int:
    value = item.value
    try:
        if _is_file(item):
            return len(read_file(value))
        if hasattr(value, "read"):
            return len(value.read())
    except (OSError, ValueError):
        return 0
    return len(value.encode("utf-8", "replace")) if isinstance(value, str) else len(bytes(value))


def _is_file(item: Input) -> bool:
    # The name of a text is where it stands.
    value = item.value
    return isinstance(value, os.PathLike) or (isinstance(value, str) and value == item.name)


def _probe(settings: dict[str, Any], modality: str, sample: list[Input]) -> dict[str, Any]:
    """Return what a process measured, or {"error": why it could not}."""
    try:
        content = packed((settings, modality, sample))
    except TypeError as error:
        return {"error": str(error)}
    process, connection = start_process("pyfeat.jobs._probe", {})
    try:
        connection.send_bytes(content)
        kind, answer = connection.recv()
    except (EOFError, OSError):
        return {"error": f"its process {how_it_ended(process.wait())}"}
    except KeyboardInterrupt:
        process.kill()  # nothing of it is kept
        raise
    finally:
        connection.close()
        process.wait()
    return answer if kind == "measured" else {"error": str(answer) or type(answer).__name__}


def _estimate(
    settings: dict[str, Any],
    measured: dict[str, Any],
    job: tuple[int, float],
    sample: Sequence[Input],
) -> Estimate:
    backbone = settings["backbone"]
    name = backbone if isinstance(backbone, str) else type(backbone).__name__
    names = {
        "backbone": name,
        "engine": settings["engine"],
        "precision": settings["precision"],
    }
    if "error" in measured:
        return Estimate(**names, error=measured["error"])
    total, read_per_second = job
    rate = min(measured["items_per_second"], read_per_second)
    named = sum(len(os.fsencode(item.name)) for item in sample) / len(sample)
    noted = _MEMO_BYTES * sum(map(_is_file, sample)) / len(sample)
    kept = {k: measured[k] for k in ("memory_bytes", "device_memory_bytes", "dim", "unreadable")}
    return Estimate(
        **names,
        **kept,
        seconds=measured["load_seconds"] + total / rate,
        items_per_second=rate,
        disk_bytes=round(total * (measured["row_bytes"] + _ITEM_BYTES + named + noted)),
        shares=measured["shares"],
    )
