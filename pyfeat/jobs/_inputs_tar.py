"""Members of tar archives: found by their headers, read where they lie."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat.errors import InputError
from pyfeat.extract import Input
from pyfeat.jobs._collected import Lost, Part
from pyfeat.jobs._forward import Block, Damaged, Forward, damaged, shared
from pyfeat.jobs._inputs_remote import is_url, opened, path_of, read_range, tried
from pyfeat.jobs._inputs_tar_headers import Listing

_COMPRESSED: dict[str, Callable[[Any], Any]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tbz2": bz2.open,
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
}
TAR_SUFFIXES = (".tar", *_COMPRESSED)
_STEP = 2**20  # bytes of one block


def is_tar(place: str) -> bool:
    """Return whether a place is called like a tar archive."""
    return path_of(place).lower().endswith(TAR_SUFFIXES)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Parameters
    ----------
    place : str
        Path or address of the archive.
    offset, size : int
        Where its bytes lie, in the archive as it is after decompression.
    forward : bool
        Whether the archive can be read forward only.
    stamp : int
        When it was listed, in ns: what was read of it before is not used.
    """

    place: str
    offset: int
    size: int
    forward: bool
    stamp: int

    def read(self) -> bytes:
        """Return its bytes; raise InputError if they cannot be had."""
        if not self.size:
            return b""
        stop = self.offset + self.size
        if not self.forward:
            content = read_range(self.place, self.offset, self.size)
        else:
            blocks = _stream(self.place, self.stamp).get(self.offset, stop)
            cut = (b.data[max(self.offset - b.start, 0) : stop - b.start] for b in blocks)
            content = b"".join(cut)
        if len(content) < self.size:
            reason = f"its archive is cut off: {len(content)} of {self.size} bytes"
            raise InputError(self.place, reason)
        return content


@dataclass(frozen=True)
class Members:
    """Files in one archive.

    Parameters
    ----------
    place : str
    names : list of str
    spans : ndarray of shape (n, 2), int64
        Offset and size of each.
    forward : bool
    stamp : int
    """

    place: str
    names: list[str]
    spans: NDArray[np.int64]
    forward: bool
    stamp: int = field(default_factory=time.time_ns)

    def __len__(self) -> int:
        return len(self.names)

    def input(self, i: int) -> Input:
        """Return a member, called `photos.tar::a/b.jpg`."""
        offset, size = self.spans[i].tolist()
        value = Member(self.place, offset, size, self.forward, self.stamp)
        return Input(f"{self.place}::{self.names[i]}", value)


def members_of(place: str, wanted: Callable[[str], bool]) -> tuple[list[Part], list[str]]:
    """Return the wanted members of an archive, and the names of a few that are not wanted.

    Parameters
    ----------
    place : str
        Path or address. Only the headers of its members are read; of a compressed archive, and of
        one on a server that sends no parts of files, all of it.
    wanted : callable
        From the name of a member to whether it is an input.

    Returns
    -------
    parts : list of Part
        What cannot be listed, because the archive ends early or is damaged, is one part `Lost`
        with the name of the archive.
    others : list of str
    """
    forward = not path_of(place).lower().endswith(".tar")
    return (
        tried(lambda: _listed(place, wanted, forward))
        if is_url(place)
        else _listed(place, wanted, forward)
    )


def _listed(
    place: str, wanted: Callable[[str], bool], forward: bool
) -> tuple[list[Part], list[str]]:
    listing = Listing(wanted, not path_of(place).lower().endswith(".tar"))
    try:
        with _decompressed(place, forward) as file, damaged("it"):
            reason = listing.run(file)
    except Damaged as error:
        # So fsspec says that a web server ignores the header "Range".
        if is_url(place) and not forward and isinstance(error.__cause__, ValueError):
            return _listed(place, wanted, True)
        reason = str(error)
    listing.resolve()
    spans = np.array(listing.spans, np.int64).reshape(-1, 2)
    parts: list[Part] = [Members(place, listing.names, spans, forward)]
    parts += [Lost(f"{place}::{name}", why) for name, why in listing.lost]
    if reason:
        parts.append(Lost(place, reason))
    return parts, listing.others


@contextmanager
def _decompressed(place: str, forward: bool) -> Iterator[Any]:
    name = path_of(place).lower()
    suffix = next((s for s in _COMPRESSED if name.endswith(s)), None)
    with opened(place, seekable=not forward or suffix is not None) as file:
        if suffix is not None:
            with _COMPRESSED[suffix](file) as plain:
                yield plain
        elif forward:
            yield _Forwards(file)
        else:
            yield file


class _Forwards(io.RawIOBase):
    """A file that can only be read, and be skipped forward by reading."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._at = 0

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Skip up to a position."""
        if whence != 0 or offset < self._at:
            raise io.UnsupportedOperation("it is read forward only")
        while self._at < offset and self.read(min(offset - self._at, _STEP)):
            pass
        return self._at

    def read1(self, size: int) -> bytes:
        """Return bytes, at most so many."""
        return self.read(size)

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, or what is left."""
        parts = []
        while size and (part := self._file.read(size)):
            parts.append(part)
            self._at += len(part)
            size -= len(part)
        return b"".join(parts)


def _stream(place: str, stamp: int) -> Forward:
    def open_at(_start: int) -> Iterator[Block]:
        at = 0
        with _decompressed(place, True) as file:
            for content in _pieces(file):
                yield Block(at, at + len(content), len(content), content)
                at += len(content)

    return shared((place, stamp), lambda: Forward(open_at, lambda _start: 0, place))


def _pieces(file: Any) -> Iterator[bytes]:
    """Yield 1 MiB at a time; of damaged data also what lies before the damage."""
    while True:
        piece = bytearray()
        try:
            with damaged("its archive"):
                while len(piece) < _STEP and (more := file.read1(_STEP - len(piece))):
                    piece += more
        except Damaged:
            if piece:
                yield bytes(piece)
            raise
        if not piece:
            return
        yield bytes(piece)
