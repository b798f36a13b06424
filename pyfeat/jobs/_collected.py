"""Any number of inputs, each made when it is asked for: ten million cost their names only."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from pyfeat.errors import InputError
from pyfeat.extract import Input
from pyfeat.jobs._inputs_remote import Remote, is_url


class Part(Protocol):
    """Inputs of one origin."""

    def __len__(self) -> int: ...

    def input(self, i: int) -> Input:
        """Return the i-th input."""
        ...


@dataclass(frozen=True)
class Files:
    """Files, each one input.

    Parameters
    ----------
    places : sequence of str
        Absolute paths and addresses: they are the names.
    modality : str
        To a backbone of texts the value is a `Path`, a str being a text.
    """

    places: Sequence[str]
    modality: str

    def __len__(self) -> int:
        return len(self.places)

    def input(self, i: int) -> Input:
        """Return a file."""
        place = self.places[i]
        if is_url(place):
            return Input(place, Remote(place))
        return Input(place, Path(place) if self.modality == "text" else place)


@dataclass(frozen=True)
class Texts:
    """Lines of a list, or cells of a table, that are texts themselves.

    Parameters
    ----------
    place : str
    numbers : ndarray of shape (n,), int64
        Of the lines or rows, from 1.
    texts : list of str
    """

    place: str
    numbers: NDArray[np.int64]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def input(self, i: int) -> Input:
        """Return a text."""
        return Input(f"{self.place}#{self.numbers[i]}", self.texts[i])


@dataclass(frozen=True)
class Lost:
    """What was to be an input and is none: the job puts it into quarantine.

    Parameters
    ----------
    name, reason : str
    """

    name: str
    reason: str

    def __len__(self) -> int:
        return 1

    def input(self, _i: int) -> Input:
        """Return an input that cannot be read."""
        return Input(self.name, self)

    def read(self) -> bytes:
        """Raise InputError."""
        raise InputError(self.name, self.reason)


class Collected(Sequence[Input]):
    """Inputs with their names: what `collect_inputs` returns, and leaves alone when it gets it.

    Parameters
    ----------
    parts : iterable of Part
        Inputs of one origin each.

    Notes
    -----
    An `Input` is made on each access. A slice is another such sequence, on the same parts.
    """

    def __init__(self, parts: Sequence[Part] = ()) -> None:
        self.parts = [p for p in parts if len(p)]
        self._ends = list(accumulate(len(p) for p in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __repr__(self) -> str:
        return f"Collected({len(self):,} inputs)"

    @overload
    def __getitem__(self, at: int) -> Input: ...
    @overload
    def __getitem__(self, at: slice) -> Collected: ...
    def __getitem__(self, at: int | slice) -> Input | Collected:
        if isinstance(at, slice):
            span = range(len(self))[at]
            return self._between(span.start, span.stop) if span.step == 1 else self.take(span)
        i = at + len(self) if at < 0 else at
        if not 0 <= i < len(self):
            raise IndexError(f"index must be below {len(self)}, got {at}")
        p = bisect_right(self._ends, i)
        return self.parts[p].input(i - (self._ends[p - 1] if p else 0))

    def __iter__(self) -> Iterator[Input]:
        for part in self.parts:
            yield from map(part.input, range(len(part)))

    def _between(self, start: int, stop: int) -> Collected:
        """Return a run of inputs; of files at the cost of their names."""
        parts: list[Part] = []
        for end, part in zip(self._ends, self.parts, strict=True):
            begin = end - len(part)
            low, high = max(start, begin), min(stop, end)
            if low >= high:
                continue
            if isinstance(part, Files):
                parts.append(Files(part.places[low - begin : high - begin], part.modality))
            else:
                parts.append(_Taken(self, range(low, high)))
        return Collected(parts)

    def take(self, positions: Sequence[int] | NDArray[np.integer[Any]]) -> Collected:
        """Return the inputs at some positions, in their order."""
        return Collected([_Taken(self, positions)])


@dataclass(frozen=True)
class _Taken:
    of: Collected
    positions: Sequence[int] | NDArray[np.integer[Any]]

    def __len__(self) -> int:
        return len(self.positions)

    def input(self, i: int) -> Input:
        return self.of[int(self.positions[i])]
