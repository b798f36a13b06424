"""Measure contestants on one case: first whether they are right, then how fast.

A benchmark is a file `bench_NAME.py` with one function, `cases(quick: bool)`, that yields `Case`
objects; `run.py` does the rest. Cases are generated one after another, so that only the inputs of
one are alive. `quick` asks for the smallest case or two. One with cases for a GPU, too, makes those
of `device.devices()` only.

    def cases(quick):
        x = make_input()
        yield Case(
            name="1000 x 768",
            contestants=[
                Contestant("ours", lambda: op(x)),
                Contestant("numpy", lambda: plain(x), bound=1e-6),
                Contestant("other", skip="other is not installed"),
            ],
            expected=reference(x),
            error=largest_difference,
            unit="largest difference",
            bytes=x.nbytes,
        )
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import device
import numpy as np
import torch
from elsewhere import Elsewhere

SAMPLE_SECONDS = 0.01  # one sample repeats a short call until it lasts this long
# Threads of another process spin after a call, OpenBLAS's for some 50 ms, Intel's OpenMP's for
# 200 ms, and no clock of ours shows it: whoever came next was up to 10 % slow.
OTHERS_SETTLE_SECONDS = 0.25
PERCENTILES = (20, 50, 80)
BACKEND = r"(cpp(\[\w+\])?|cuda|triton|reference)(?!\w)"

Row = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """One way to do a case's work.

    Parameters
    ----------
    name : str
        Column "contestant" of the table. One of ours begins with "pyfeat BACKEND", and may go on:
        "pyfeat cpp[avx512], float16 base".
    run : callable, optional
        Does the work once and returns the result; on a GPU it need not wait. None with a `skip`.
    bound : float, default=0.0
        Largest error that still counts as right.
    skip : str, optional
        Why it cannot run here; it then gets a row with the reason.
    after : callable, optional
        Clears up after each call of `run`, outside the time. A sample is one call then.
    """

    name: str
    run: Callable[[], Any] | None = None
    bound: float = 0.0
    skip: str | None = None
    after: Callable[[], Any] | None = None

    @property
    def backend(self) -> str | None:
        """Backend the name says, "cpp[avx2]" or "triton"; None for everybody else's."""
        found = re.match(BACKEND, self.name.removeprefix("pyfeat "))
        return found[0] if found and self.name.startswith("pyfeat ") else None


@dataclass(frozen=True)
class Case:
    """One input, its right answer, and who competes on it.

    Parameters
    ----------
    name : str
        Column "case" of the table.
    contestants : list of Contestant
        Timed interleaved, one sample each a round.
    expected : object or callable
        The reference's result, or what computes it: then only a case that runs waits for it.
    error : callable
        `error(result, expected)` as a float; NaN, or more than a contestant's bound, is WRONG.
    unit : str
        What `error` measures.
    items : int, default=1
        Items (images, rows) of one call, for the rate.
    bytes : int, optional
        Bytes one call must at least read and write: gives the share of the bandwidth that plain
        reading reaches.
    flop : int, optional
        Floating-point operations of one call: gives the share of the multiply-add peak in fp32.
    threads : int, default=1
        Threads the contestants use: the ceilings are measured with as many.
    torch_threads : int, default=1
        What torch may use inside one call.
    device : {"cpu", "cuda"}, default="cpu"
        Where the contestants run: whose ceilings count, and what a clock waits for.
    """

    name: str
    contestants: list[Contestant]
    expected: Any
    error: Callable[[Any, Any], float]
    unit: str
    items: int = 1
    bytes: int | None = None
    flop: int | None = None
    threads: int = 1
    torch_threads: int = 1
    device: str = "cpu"


def in_threads(run: Callable[[], Any], threads: int, calls: int) -> Callable[[], Any]:
    """Return a callable that calls `run` `calls` times on `threads` threads and returns one result.

    The threads are started once, with the first call.
    """
    pool = ThreadPoolExecutor(threads)

    def run_all() -> Any:
        results = list(pool.map(lambda _: run(), range(calls)))
        return results[0]

    return run_all


def largest_difference(result: Any, expected: Any) -> float:
    """Return max |result - expected| in float64; infinite when the shapes differ."""
    a, b = (
        x.detach().double().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, float)
        for x in (result, expected)
    )
    return float(np.abs(a - b).max(initial=0.0)) if a.shape == b.shape else math.inf


def measure(case: Case, rounds: int) -> list[Row]:
    """Return one row for each contestant: checked, then timed in `rounds` interleaved samples."""
    torch.set_num_threads(case.torch_threads)
    if callable(case.expected):
        case = replace(case, expected=case.expected())
    rows = [_checked(case, c) for c in case.contestants]
    racing = [
        (row, c.run, c.after)
        for row, c in zip(rows, case.contestants, strict=True)
        if row["status"] == "ok"
    ]
    wait = device.wait_for(case.device)
    calls = [1 if after else _calls_per_sample(run, wait) for _, run, after in racing]
    samples: list[list[float]] = [[] for _ in racing]
    last = racing[-1][1] if racing else None  # it has just been counted
    for turn in range(rounds):
        for at in range(len(racing)):
            i = (at + turn) % len(racing)
            _settle(last)
            _, last, after = racing[i]
            samples[i].append(_seconds(last, calls[i], wait))
            if after is not None:
                after()
    for (row, *_), seconds in zip(racing, samples, strict=True):
        row.update(_times(case, seconds))
    return rows


def _checked(case: Case, contestant: Contestant) -> Row:
    row: Row = {"case": case.name, "contestant": contestant.name, "unit": case.unit}
    if contestant.run is None:
        return {**row, "status": "skipped", "reason": contestant.skip}
    error = float(case.error(contestant.run(), case.expected))
    if contestant.after is not None:
        contestant.after()
    right = error <= contestant.bound  # false for NaN
    return {**row, "status": "ok" if right else "WRONG", "error": error, "bound": contestant.bound}


def _nothing() -> None:
    pass


def _settle(last: Callable[[], Any] | None) -> None:
    """Wait until the last contestant's threads, which spin for more work, have gone to sleep."""
    if isinstance(last, Elsewhere):
        time.sleep(OTHERS_SETTLE_SECONDS)
    for _ in range(50):
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.002:
            return


def _seconds(run: Callable[[], Any], calls: int, wait: Callable[[], Any] = _nothing) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return (time.perf_counter() - start) / calls


def _calls_per_sample(run: Callable[[], Any], wait: Callable[[], Any]) -> int:
    run()
    return max(1, math.ceil(SAMPLE_SECONDS / max(_seconds(run, 1, wait), 1e-7)))


def _times(case: Case, seconds: list[float]) -> Row:
    p20, p50, p80 = (float(p) for p in np.percentile(seconds, PERCENTILES))
    row: Row = {"p20_us": p20 * 1e6, "p50_us": p50 * 1e6, "p80_us": p80 * 1e6}
    row["items_per_s"] = case.items / p50
    if case.device != "cpu":
        return row | device.shares(case.device, case.bytes, case.flop, p50)
    if case.bytes is not None:
        row["share_of_bytes"] = case.bytes / p50 / bytes_per_second(case.threads)
    if case.flop is not None:
        row["share_of_flop"] = case.flop / p50 / flop_per_second(case.threads)
    return row


@lru_cache
def bytes_per_second(threads: int) -> float:
    """Return bytes read a second from arrays larger than any cache, on that many threads."""
    from pyfeat import _core

    return _core.bytes_read_per_second(threads)


@lru_cache
def flop_per_second(threads: int, bf16: bool = False) -> float:
    """Return FLOP a second of multiply-adds in registers, with the best instruction set."""
    from pyfeat import _core

    before = _core.isa()
    _core.set_isa(_core.isas()[0])
    best = max(_core.flop_per_second(bf16, threads) for _ in range(9))
    _core.set_isa(before)
    return best
