"""Headers of tar archives, read one after the other to the very end."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable
from typing import Any

_tarfile: Any = tarfile  # some of its names are not in the stubs
_STEP = 2**20  # bytes: of one read of what is only read to be checked, and of zeros behind an end


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


class Listing:
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
            info = archive.firstmember or _behind(archive, file)
            while info is not None:
                self._take(info)
                archive.members.clear()
                if archive.offset <= info.offset:
                    return f"it is damaged: its member {info.name} has a size of {info.size}"
                if archive.offset != file.tell():
                    file.seek(archive.offset - 1)
                    if not file.read(1):
                        return f"it is cut off in its member {info.name}"
                try:
                    info = _Info.fromtarfile(archive)
                except _tarfile.EOFHeaderError:
                    info = _behind(archive, file)
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


def _behind(archive: Any, file: Any) -> Any:
    """Return the first member of an archive that was written behind the end of another one."""
    for _ in range(_STEP // tarfile.BLOCKSIZE):
        archive.offset += tarfile.BLOCKSIZE
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            return None
        if any(block):
            try:
                _Info.frombuf(block, archive.encoding, archive.errors)
            except tarfile.TarError:
                return None  # no archive: whatever else lies there
            file.seek(archive.offset)
            return _Info.fromtarfile(archive)
    return None


def _plain(name: str) -> str:
    """Return the name of a member without "." and ".." and a slash before it."""
    if name[:1] in "./" or "//" in name or "/." in name:
        return posixpath.normpath(name).lstrip("/")
    return name
