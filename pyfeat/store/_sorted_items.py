"""The list of inputs in order of name, however long: a block is sorted at a time."""

from __future__ import annotations

import heapq
import marshal
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from pyfeat._identity import Space
from pyfeat.errors import StoreError
from pyfeat.store._items import Item, damaged_line, parse_items, read_lists
from pyfeat.store._layout import space_folder

# Items that are sorted in memory; and of each sorted block, those in memory while all are merged.
BLOCK = 1 << 14
_CHUNK = 1 << 7

_Word = tuple[str, bytes | None, str | None]  # an Item
_name = itemgetter(0)


def iter_items(path: str | os.PathLike[str], space: Space) -> Iterator[Item]:
    """Yield what is known of every input, the latest word on each, in order of name.

    Parameters
    ----------
    path : path-like
        Folder of the store.
    space : Space

    Yields
    ------
    item : Item

    Raises
    ------
    StoreError
        If a temporary file is needed, and there is no folder for it.

    Warns
    -----
    StoreWarning
        If a line is not what `ItemLog` writes: it is left out.

    Notes
    -----
    The lists are read when the first one is asked for. Blocks of 16,384 lines are sorted in memory;
    where there are more, they wait in a temporary file of about the size of the lists.
    """
    with ExitStack() as opened:
        runs = read_lists(space_folder(Path(path), space), lambda lists: _runs(lists, opened))
        # Of words on one name those of an older run come first.
        words = heapq.merge(*runs, key=_name)
        latest = next(words, None)
        for word in words:
            if latest is not None and word[0] != latest[0]:
                yield Item(*latest)
            latest = word
        if latest is not None:
            yield Item(*latest)


def read_items(path: str | os.PathLike[str], space: Space) -> list[Item]:
    """Return all that `iter_items` yields."""
    return list(iter_items(path, space))


def _runs(lists: Sequence[Path], opened: ExitStack) -> list[Iterator[_Word]]:
    """Return runs in order of name, the oldest first; in each a name stands once."""
    words = _words(lists)
    runs: list[Iterator[_Word]] = []
    file: IO[bytes] | None = None
    while block := list(islice(words, BLOCK)):
        run = sorted({word[0]: word for word in block}.values(), key=_name)
        if len(block) < BLOCK:  # the last one, and as a rule the only one
            runs.append(iter(run))
        else:
            file = file or opened.enter_context(_temporary_file())
            runs.append(_spilled(run, file))
    return runs


def _temporary_file() -> IO[bytes]:
    try:
        return TemporaryFile()
    except FileNotFoundError as error:
        # Not as it is: `read_lists` would take it for a list that was merged, for ever.
        raise StoreError(
            f"TMPDIR must name a folder, to put a long list of inputs in order, got none: {error}"
        ) from None


def _words(lists: Iterable[Path]) -> Iterator[_Word]:
    for file in lists:
        for number, item in parse_items(file):
            if item is None:
                damaged_line(file, number)
            else:
                yield item.name, item.key, item.reason


def _spilled(run: list[_Word], file: IO[bytes]) -> Iterator[_Word]:
    """Write a run to the end of a file, and return what reads it."""
    places = []
    for start in range(0, len(run), _CHUNK):
        chunk = marshal.dumps(run[start : start + _CHUNK])
        places.append((file.tell(), len(chunk)))
        file.write(chunk)
    file.flush()
    return (
        word
        for offset, size in places
        for word in marshal.loads(os.pread(file.fileno(), size, offset))
    )
