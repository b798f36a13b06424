"""What a disk may hold after power loss, from the record of what was done to it.

The rules are those of POSIX, not of a file system: bytes are on the disk after a sync of their
file, names after a sync of their folder; what has not been synced is there, or not, or half.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePath

from pyfeat import _core as core

Operation = tuple[str, bool, str, object]
Contents = dict[str, bytes]  # by path below the root; a folder's path ends in "/"


@dataclass
class Record:
    """Operations below a folder, and how many there were when something was acknowledged."""

    operations: list[Operation] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)

    def acknowledge(self) -> None:
        self.acknowledged.append(len(core.recorded_operations()))

    def promised(self, n: int) -> int:
        """Return how many acknowledgements came before operation n was over."""
        return sum(m <= n for m in self.acknowledged)


@contextmanager
def recorded() -> Iterator[Record]:
    record = Record()
    core.record_operations(True)
    try:
        yield record
    finally:
        record.operations = core.recorded_operations()
        core.record_operations(False)


@dataclass
class _File:
    """Bytes as they are read, and those that are on the disk."""

    content: bytes = b""
    synced: bytes = b""
    cut: bytes | None = None  # what there was before a cut that is not on the disk
    lost: bool = False  # a sync has failed: what was not on the disk then never will be

    def survivors(self) -> list[bytes]:
        """Return what may be found: nothing new, all, half, and holes where data should be."""
        known, new = self.synced, self.content[len(self.synced) :]
        if self.content[: len(known)] != known:  # a cut that may not have arrived
            return [known, self.content]
        half = len(new) // 2
        choices = [known]
        if not self.lost:
            choices += [self.content, known + new[:half]]
        choices += [known + bytes(len(new)), known + bytes(half) + new[half:]]
        if self.cut is not None:
            choices += [self.cut, self.content + self.cut[len(self.content) :]]
        return list(dict.fromkeys(choices))


class Disk:
    """Files and names below `root` while operations are done, and what a loss of power leaves.

    Parameters
    ----------
    root : Path
        What lies above it is on the disk for good.
    before : mapping of str to bytes, optional
        What is there, and on the disk, at the beginning.
    """

    def __init__(self, root: Path, before: Contents | None = None) -> None:
        self._root = str(root)
        self._files: list[_File] = []
        self._names: dict[str, int] = {}  # -1 is a folder
        for path, content in (before or {}).items():
            self._names[path.rstrip("/")] = -1 if path.endswith("/") else self._add(content)
        self._synced_names = dict(self._names)
        self._waiting: list[dict[str, int | None]] = []  # changes of names that are not synced

    def _add(self, content: bytes = b"") -> int:
        self._files.append(_File(content, content))
        return len(self._files) - 1

    def _below(self, path: str) -> str:
        assert path.rstrip("/").startswith(self._root), path
        return path.rstrip("/")[len(self._root) :].lstrip("/")

    def do(self, operation: Operation) -> None:
        kind, failed, full, what = operation
        if not full.rstrip("/").startswith(self._root):
            return  # a sync of the folder above, which is on the disk for good
        path = self._below(full)
        if kind == "append":
            self._files[self._names[path]].content += what
        elif kind == "sync":
            self._sync(self._files[self._names[path]], failed)
        elif failed:
            return
        elif kind == "truncate":
            file = self._files[self._names[path]]
            file.cut, file.content = file.content, file.content[:what]
        elif kind == "sync_folder":
            self._sync_folder(path)
        elif kind == "create":
            self._rename({path: self._add()})
        elif kind == "make_folder" and path not in self._names:
            self._rename({path: -1})
        elif kind == "remove" and path in self._names:
            self._rename({path: None})
        elif kind == "rename":
            self._rename({path: None, self._below(str(what)): self._names[path]})

    def _sync(self, file: _File, failed: bool) -> None:
        # As on Linux: after a failed sync pages count as clean, and later syncs pass over them.
        file.lost = file.lost or failed
        if not file.lost:
            file.synced, file.cut = file.content, None

    def _rename(self, change: dict[str, int | None]) -> None:
        self._waiting.append(change)
        self._apply(self._names, change)

    @staticmethod
    def _apply(names: dict[str, int], change: dict[str, int | None]) -> None:
        for path, file in change.items():
            names.pop(path, None)
            if file is not None:
                names[path] = file

    def _sync_folder(self, folder: str) -> None:
        def is_here(change: dict[str, int | None]) -> bool:
            parent = str(PurePath(next(iter(change))).parent)
            return ("" if parent == "." else parent) == folder

        for change in filter(is_here, self._waiting):
            self._apply(self._synced_names, change)
        self._waiting = [c for c in self._waiting if not is_here(c)]

    def survivors(self, kept_names: bool | None = None) -> Iterator[Contents]:
        """Yield every state that may be found; `kept_names` says if names outlive their sync."""
        choices = [(False, True)] * len(self._waiting)
        if kept_names is not None:
            choices = [(kept_names,)] * len(self._waiting)
        for kept in product(*choices):
            names = dict(self._synced_names)
            for change, is_kept in zip(self._waiting, kept, strict=True):
                if is_kept:
                    self._apply(names, change)
            yield from self._contents(names)

    def _contents(self, names: dict[str, int]) -> Iterator[Contents]:
        there = {path: file for path, file in names.items() if self._is_there(path, names)}
        files = sorted({file for file in there.values() if file >= 0})
        for contents in product(*(self._files[file].survivors() for file in files)):
            bytes_of = dict(zip(files, contents, strict=True))
            yield {
                path if file >= 0 else path + "/": bytes_of.get(file, b"")
                for path, file in there.items()
            }

    @staticmethod
    def _is_there(path: str, names: dict[str, int]) -> bool:
        return all(str(folder) in names for folder in PurePath(path).parents if folder.name)


def rebuild(contents: Contents, root: Path) -> None:
    """Make a folder hold exactly these files."""
    root.mkdir(parents=True)
    for path, content in sorted(contents.items()):
        target = root / path
        if path.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def contents_of(root: Path) -> Contents:
    """Return what a folder holds."""
    return {
        str(p.relative_to(root)) + ("/" if p.is_dir() else ""): b""
        if p.is_dir()
        else p.read_bytes()
        for p in root.rglob("*")
    }
