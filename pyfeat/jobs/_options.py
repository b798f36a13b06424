"""How a job runs: every option of `extract`, checked in one place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

RUNNERS = ("local", "ray")


class JobOptions(TypedDict, total=False):
    """Options of `pyfeat.jobs.extract`; `pyfeat extract` has the same ones by the same names.

    Other Parameters
    ----------------
    decode : {"exact", "fast"}, optional
        How files become pixels (see `FeatureExtractor`); by default as the extractor says, else
        "exact".
    column : str, optional
        Column of a table that holds the paths, the files or the texts (see `collect_inputs`).
    fidelity : bool, default=False
        Whether to measure how true the engine is, on a sample of the inputs, where no choice did.
    shard : str or tuple of (int, int), optional
        "i/n" or (i, n), i from 1 to n: only the i-th of n shares of the inputs. Which share an
        input is in depends on its name alone, so that n jobs, each with its own i, take every
        input once, on any machines, into one store.
    rehash : bool, default=False
        Read every file, also those whose size and time say that they have not changed.
    retry_failed : bool, default=False
        Only the inputs that are in quarantine in this store are tried.
    log_json : path-like, optional
        File that gets one JSON object a line: start, progress, each input that goes into
        quarantine, end. "-" is stdout.
    tensorboard : path-like, optional
        Folder that gets scalars for TensorBoard.
    runner : {"local", "ray"}, default="local"
        Who does the work: processes of this machine, or actors of a Ray cluster.
    workers : int, optional
        How many processes, or actors, each with a backbone of its own; by default this process
        alone, one for each of `devices`, or as many actors as the cluster has room for.
    devices : sequence of str, optional
        Where the workers compute, in turn: ("cuda:0", "cuda:1"). By default where the extractor
        does; its "auto" and "cuda" are all GPUs there are.
    address : str, optional
        Of the Ray cluster; by default one is started on this machine.
    """

    decode: str | None
    column: str | None
    fidelity: bool
    shard: str | tuple[int, int] | None
    rehash: bool
    retry_failed: bool
    log_json: str | os.PathLike[str] | None
    tensorboard: str | os.PathLike[str] | None
    runner: str
    workers: int | None
    devices: Sequence[str] | None
    address: str | None


@dataclass(frozen=True)
class Options:
    """`JobOptions` after they were checked, with their defaults."""

    decode: str | None = None
    column: str | None = None
    fidelity: bool = False
    shard: tuple[int, int] | None = None
    rehash: bool = False
    retry_failed: bool = False
    log_json: str | None = None
    tensorboard: str | None = None
    runner: str = "local"
    workers: int | None = None
    devices: tuple[str, ...] | None = None
    address: str | None = None


def check_options(options: JobOptions | dict[str, Any]) -> Options:
    """Return options with their defaults.

    Raises
    ------
    TypeError
        If there is no option of a name, or its value has another type.
    ValueError
        If a value is not one of those that are allowed.
    """
    given: dict[str, Any] = dict(options)
    names = [f.name for f in fields(Options)]
    for name in given:
        if name not in names:
            raise TypeError(f"options must be some of {names}, got {name!r}")
    for name in ("fidelity", "rehash", "retry_failed"):
        if not isinstance(given.get(name, False), bool):
            raise TypeError(f"{name} must be True or False, got {given[name]!r}")
    for name in ("decode", "column", "address"):
        if not isinstance(given.get(name), (str, type(None))):
            raise TypeError(f"{name} must be a str, got {given[name]!r}")
    for name in ("log_json", "tensorboard"):
        if given.get(name) is not None:
            given[name] = os.fspath(given[name])
    if given.get("shard") is not None:
        given["shard"] = as_shard(given["shard"])
    if given.get("devices") is not None:
        given["devices"] = _names(given["devices"])
    checked = Options(**given)
    _check_runner(checked)
    return checked


def _check_runner(options: Options) -> None:
    if options.runner not in RUNNERS:
        raise ValueError(f"runner must be one of {list(RUNNERS)}, got {options.runner!r}")
    workers = options.workers
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool)):
        raise TypeError(f"workers must be a whole number, got {workers!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if options.address is not None and options.runner != "ray":
        raise ValueError(
            f"address must be left out unless runner is 'ray', got {options.address!r}"
        )
    if options.devices is not None and options.runner == "ray":
        raise ValueError(
            f"devices must be left out where runner is 'ray', got {list(options.devices)}"
        )


def _names(devices: Any) -> tuple[str, ...]:
    if (
        isinstance(devices, str)
        or not all(isinstance(d, str) and d for d in devices)
        or not devices
    ):
        raise TypeError(f"devices must be a list of names like 'cuda:1', got {devices!r}")
    return tuple(devices)


def as_shard(shard: str | tuple[int, int]) -> tuple[int, int]:
    """Return (i, n) of "i/n".

    Raises
    ------
    ValueError
        Unless 1 <= i <= n.
    """
    parts: Any = shard.split("/") if isinstance(shard, str) else shard
    if not isinstance(parts, (list, tuple)):
        parts = ()
    digits = [str(p).strip() for p in parts]
    if len(digits) == 2 and all(d.isdecimal() for d in digits):
        i, n = int(digits[0]), int(digits[1])
        if 1 <= i <= n:
            return i, n
    raise ValueError(f"shard must be i/n with 1 <= i <= n, like 2/8, got {shard!r}")
