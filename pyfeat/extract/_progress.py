"""A bar with rate and remaining time, or the caller's own function, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_of(
    progress: bool | Callable[[int, int], None], total: int
) -> Iterator[Callable[[], None]]:
    """Give a function to be called once for each item that is done.

    Parameters
    ----------
    progress : bool or callable
        True for a bar on stderr; a callable gets (done, total).
    total : int
    """
    if callable(progress):
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        yield count
    elif progress:
        with _bar(total) as advance:
            yield advance
    else:
        yield lambda: None


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
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

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("features", total=total)
        yield lambda: bar.advance(task)
