"""A store's list of inputs while a job runs: written in pieces, held in a few bytes an input."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring_ascii as json_text
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import Space
from pyfeat._model_file import publish_file
from pyfeat.store._items import Item, damaged_line, item_line, parse_item, read_lists
from pyfeat.store._layout import (
    ITEMS,
    TEMPORARY,
    as_store_error,
    create_space,
    create_store,
    new_id,
    space_folder,
)

# Lines of one file. Fewer are written when the last piece is a twentieth of the job's time ago.
PIECE = 10_000
_SHARE = 20
_SECONDS = 60.0
# A line of an input with a row is {"key":"<32 hex digits>","name":<JSON text>}.
_KEY, _NAME, _NAME_AT = b'{"key":"', b'","name":', 40
_TEXT_AT = _NAME_AT + len(_NAME)


class ItemLog:
    """Adds to the list of inputs of one space; what the list says already is left out.

    Of each input that the list had at first it holds 16 bytes, for the latest word: two of ten
    million are taken for one with a chance of one in 300,000, and the later of them is then missing
    from the list.

    Parameters
    ----------
    path : path-like
        Folder of the store.
    space : Space
    piece : int, default=10000
        Lines of a file. Each file is written at once, all or nothing.

    Warns
    -----
    StoreWarning
        With the first line that is written, if one of the list is damaged: it is left out.
    """

    def __init__(self, path: str | os.PathLike[str], space: Space, piece: int = PIECE) -> None:
        self._root = Path(path)
        self._space = space
        self._piece = piece
        self._said: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._new: list[bytes] = []
        self._new_names: list[bytes] = []
        self._began = self._written = time.monotonic()

    def add(self, item: Item) -> None:
        """Note what became of one input."""
        self._new.append(item_line(item).encode())
        self._new_names.append(json_text(item.name).encode())
        self._flush_if_due()

    def add_rows(self, names: Sequence[str], keys: NDArray[np.uint8]) -> None:
        """Note inputs that have a row.

        Parameters
        ----------
        names : sequence of str, of length n
        keys : ndarray of shape (n, 16), uint8
        """
        for start in range(0, len(names), self._piece):
            digits = keys[start : start + self._piece].tobytes().hex()
            texts = [json_text(name).encode() for name in names[start : start + self._piece]]
            self._new += [
                b'{"key":"%b","name":%b}' % (digits[32 * i : 32 * i + 32].encode(), text)
                for i, text in enumerate(texts)
            ]
            self._new_names += texts
            self._flush_if_due()

    @property
    def is_written(self) -> bool:
        """Whether everything noted is on the disk."""
        return not self._new

    def _flush_if_due(self) -> None:
        if len(self._new) >= self._piece or (len(self._new) % 64 == 0 and self._is_due()):
            self.flush()

    def _is_due(self) -> bool:
        now = time.monotonic()
        return now - self._written > max(_SECONDS, (now - self._began) / _SHARE)

    def flush(self) -> None:
        """Write what was noted since the last piece.

        Raises
        ------
        StoreError
            If the disk refuses. What was noted is written with the next piece.
        """
        self._written = time.monotonic()
        fresh = self._fresh()
        if fresh:
            create_store(self._root)
            folder = create_space(self._root, self._space)
            with as_store_error("write the list of inputs", folder):
                publish_file(
                    folder / f".{new_id()}{ITEMS}{TEMPORARY}",
                    lambda: folder / f"{new_id()}{ITEMS}",
                    b"\n".join(fresh) + b"\n",
                )
            self._now_says()
        self._new.clear()
        self._new_names.clear()

    def _fresh(self) -> list[bytes]:
        """Return the lines that the list does not say already; it is read when there is one."""
        if self._said is None and self._new:
            self._said = read_lists(space_folder(self._root, self._space), _known)
        if self._said is None or not len(self._said[0]):
            return self._new
        names, at, known = self._find(self._said[0])
        said = known & (self._said[1][at] == _hashes(self._new))
        # Where one of several words on a name is new, the last of them must stand last.
        said &= ~np.isin(names, names[~said])
        return [line for line, s in zip(self._new, said.tolist(), strict=True) if not s]

    def _now_says(self) -> None:
        """Remember what was written about names that the list had."""
        if self._said is not None and len(self._said[0]):
            _, at, known = self._find(self._said[0])
            self._said[1][at[known]] = _hashes(self._new)[known]

    def _find(
        self, said: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Return the new names, where they are in the list, and whether they are."""
        names = _hashes(self._new_names)
        at = np.minimum(np.searchsorted(said, names), len(said) - 1)
        return names, at, said[at] == names


def _known(lists: list[Path]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the hashes of all names, ascending, and those of the latest line on each."""
    hashed = [_hashed(file) for file in lists]
    of_names = np.concatenate([np.empty(0, np.int64), *(names for names, _ in hashed)])
    of_lines = np.concatenate([np.empty(0, np.int64), *(lines for _, lines in hashed)])
    order = np.argsort(of_names, kind="stable")
    of_names = of_names[order]
    last = np.ones(len(of_names), bool)
    last[:-1] = of_names[1:] != of_names[:-1]
    return of_names[last], of_lines[order][last]


def _hashed(file: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    names, lines = array("q"), array("q")
    with file.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if line[:8] == _KEY and line[_NAME_AT:_TEXT_AT] == _NAME and line[-3:] == b'"}\n':
                names.append(hash(line[_TEXT_AT:-2]))
                lines.append(hash(line[:-1]))
            elif (item := parse_item(line)) is not None:
                names.append(hash(json_text(item.name).encode()))
                lines.append(hash(item_line(item).encode()))
            else:
                damaged_line(file, number)
    return np.frombuffer(names, np.int64), np.frombuffer(lines, np.int64)


def _hashes(texts: list[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, texts), np.int64, len(texts))


def quarantined_names(path: str | os.PathLike[str], space: Space) -> set[str]:
    """Return the names of the inputs that are in quarantine: the latest word on them is a reason.

    Holds only names that were in quarantine at some time, however long the list is.
    """
    return read_lists(space_folder(Path(path), space), _names_in_quarantine)


def _names_in_quarantine(lists: list[Path]) -> set[str]:
    bad: dict[bytes, str] = {}
    for file in lists:
        with file.open("rb") as handle:
            for line in handle:
                if line[:8] == _KEY:
                    bad.pop(line.rstrip()[_TEXT_AT:-1], None)
                elif (item := parse_item(line)) is not None and item.reason is not None:
                    bad[json_text(item.name).encode()] = item.name
    return set(bad.values())


def write_items(path: str | os.PathLike[str], space: Space, items: Iterable[Item]) -> int:
    """Add items to a store's list, all or nothing; what the list already says is left out.

    Returns
    -------
    n_written : int
    """
    given = list(items)
    log = ItemLog(path, space, piece=len(given) + 1)
    for item in given:
        log.add(item)
    n = len(log._fresh())
    log.flush()
    return n
