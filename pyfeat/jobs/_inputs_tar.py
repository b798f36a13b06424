"""Members of tar archives: found by their headers, read where they lie."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import posixpath
import tarfile
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

_COMPRESSED: dict[str, Callable[[Any], Any]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tbz2": bz2.open,
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
}
_tarfile: Any = tarfile  # some of its names are not in the stubs
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
    listing = _Listing(wanted, not path_of(place).lower().endswith(".tar"))
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


class _Info(tarfile.TarInfo):
    """A header of which only is read what is asked here: the rest takes most of the time."""

    _USUAL = frozenset(b"0\x00125xgLK")  # kinds whose fields all lie where POSIX has them

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        """Return the header of a block; anything unusual is left to `tarfile`."""
        if len(buf) != tarfile.BLOCKSIZE or buf[156] not in cls._USUAL:
            return super().frombuf(buf, encoding, errors)
        if sum(buf) - sum(buf[148:156]) + 8 * ord(" ") != _tarfile.nti(buf[148:156]):
            return super().frombuf(buf, encoding, errors)
        name, link, prefix = (
            part.partition(b"\0")[0].decode(encoding, errors)
            for part in (buf[:100], buf[157:257], buf[345:500])
        )
        kind = buf[156:157]
        info = cls(f"{prefix}/{name}" if prefix and kind not in (b"L", b"K") else name)
        is_folder = kind == tarfile.AREGTYPE and name.endswith("/")  # as before POSIX
        info.type = tarfile.DIRTYPE if is_folder else kind
        info.size = _tarfile.nti(buf[124:136])
        info.linkname = link
        return info


class _Listing:
    """The members of one archive as their headers go by."""

    def __init__(self, wanted: Callable[[str], bool], compressed: bool) -> None:
        self._wanted = wanted
        self._compressed = compressed
        self._links: list[tuple[str, str]] = []
        self._taken: set[str] = set()
        self.names: list[str] = []
        self.spans: list[tuple[int, int]] = []
        self.lost: list[tuple[str, str]] = []
        self.others: list[str] = []

    def run(self, file: Any) -> str:
        """Take all members; return why there may be more, or nothing."""
        try:
            # Not by `next`, which takes a damaged header for the end.
            archive: Any = tarfile.TarFile(fileobj=file, tarinfo=_Info)
            info = archive.firstmember
            while info is not None:
                self._take(info)
                archive.members.clear()
                if archive.offset <= info.offset:
                    return f"it is damaged: its member {info.name} has a size of {info.size}"
                if archive.offset != file.tell():
                    file.seek(archive.offset - 1)
                    if not file.read(1):
                        return f"it is cut off in its member {info.name}"
                info = _Info.fromtarfile(archive)
        except _tarfile.EOFHeaderError:
            return self._end(file)
        except _tarfile.EmptyHeaderError:
            return "it has no mark at its end: members may be missing"
        except tarfile.TarError as error:
            return f"it is cut off or damaged: {error}"
        return self._end(file)

    def _end(self, file: Any) -> str:
        """Read on to the checksum behind compressed data, which raises if it is not theirs."""
        while self._compressed and file.read(_STEP):
            pass
        return ""

    def _take(self, info: tarfile.TarInfo) -> None:
        name = _plain(info.name)
        if info.isdir() or not self._wanted(name):
            if len(self.others) < 3 and not info.isdir():
                self.others.append(name)
            return
        if name in self._taken:  # a later one of the same name has a number
            name = next(n for i in range(2, 2**62) if (n := f"{name}#{i}") not in self._taken)
        self._taken.add(name)
        if info.issym():
            self._links.append((name, posixpath.join(posixpath.dirname(name), info.linkname)))
        elif info.islnk():
            self._links.append((name, info.linkname))
        elif info.isreg() and not info.issparse():
            self.names.append(name)
            self.spans.append((info.offset_data, info.size))
        else:
            self.lost.append((name, "it is no plain file"))

    def resolve(self) -> None:
        """Give links the bytes of what they lead to."""
        where = dict(zip(self.names, self.spans, strict=True)) if self._links else {}
        for name, target in self._links:
            span = where.get(_plain(target))
            if span is None:
                self.lost.append((name, f"it is a link to {target}, which is not taken from there"))
            else:
                self.names.append(name)
                self.spans.append(span)


def _plain(name: str) -> str:
    """Return the name of a member without "." and ".." and a slash before it."""
    if name[:1] in "./" or "//" in name or "/." in name:
        return posixpath.normpath(name).lstrip("/")
    return name


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
