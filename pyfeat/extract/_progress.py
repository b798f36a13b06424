"""A bar with rate and remaining time, or the caller's own function, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The bar is told so often: an item may take microseconds.
_SECONDS = 0.05

Advance = Callable[[int], None]


@contextmanager
def progress_of(
    progress: bool | Callable[[int, int], None], total: int, note: Callable[[], str] | None = None
) -> Iterator[Advance]:
    """Give a function to be called with the number of items that are done since the last call.

    Parameters
    ----------
    progress : bool or callable
        True for a bar on stderr; a callable gets (done, total).
    total : int
    note : callable, optional
        Returns what the bar says behind the remaining time.
    """
    if callable(progress):
        done = 0

        def count(n: int) -> None:
            nonlocal done
            done += n
            progress(done, total)

        yield count
    elif progress:
        with _bar(total, note or str) as advance:
            yield advance
    else:
        yield lambda _: None


@contextmanager
def _bar(total: int, note: Callable[[], str]) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Items a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "-/s")

    class NoteColumn(ProgressColumn):
        """What the caller has to say."""

        def render(self, _task: Task) -> Text:
            return Text(note())

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        RateColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        NoteColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("features", total=total)
        done, told = 0, 0.0

        def advance(n: int) -> None:
            nonlocal done, told
            done += n
            if (now := time.perf_counter()) - told > _SECONDS:
                told = now
                bar.update(task, completed=done)

        try:
            yield advance
        finally:
            bar.update(task, completed=done)
