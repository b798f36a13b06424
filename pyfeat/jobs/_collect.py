"""From what people type (folders, globs, files, lists) to a list of paths."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyfeat.jobs._collected import Files, Part
from pyfeat.jobs._inputs_dataset import is_dataset, parts_of_dataset
from pyfeat.jobs._inputs_remote import (
    as_place,
    filesystem_of,
    found_at,
    is_glob,
    is_url,
    listing,
    suffix_of,
)
from pyfeat.jobs._inputs_table import is_table, parts_of_list, parts_of_table
from pyfeat.jobs._inputs_tar import is_tar, members_of

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".avif",
        ".tga",
        ".ico",
    ]
)
AUDIO_SUFFIXES = frozenset(
    [".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au"]
)
VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv"]
)
# What is looked for in folders, and what one of them is called.
KINDS = {
    "image": (IMAGE_SUFFIXES, "image"),
    "audio": (AUDIO_SUFFIXES, "recording"),
    "video": (VIDEO_SUFFIXES, "video"),
    "text": (frozenset({".txt"}), "text"),
}


class Paths(list[str]):
    """Absolute paths, one an item: what `collect` returns, and leaves alone when it gets it."""


def collect(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    column: str | None = None,
    modality: str = "image",
) -> Paths:
    """Return the absolute paths that inputs stand for, each once, in a fixed order.

    Parameters
    ----------
    inputs : path-like or sequence of path-like
        Folders (searched recursively), globs, files, and lists of paths: `.txt` (one a line),
        `.csv`, `.tsv`, `.parquet`; addresses of such. Paths in a list are taken from the current
        folder.
    column : str, optional
        Column of a table that holds the paths; by default "path" if there is one, else the first
        of text.
    modality : {"image", "audio", "video"}, default="image"
        Files of which kind are looked for in folders, by their suffix.

    Returns
    -------
    paths : Paths
        A list of str. Not checked to be readable: what cannot be read is the business of the job.

    Raises
    ------
    ValueError
        If an input is not there, a glob matches nothing, nothing is found at all, or a list has no
        such column, or `modality` is another one; or if an input has no path of its own, being in
        an archive or a cell (see `collect_inputs`).
    """
    if modality not in ("image", "audio", "video"):
        raise ValueError(f"modality must be one of {list(KINDS)[:3]}, got {modality!r}")
    if isinstance(inputs, Paths):
        return inputs
    parts = found_in(inputs, modality, column)
    for part in parts:
        if not isinstance(part, Files):
            raise ValueError(f"inputs must be files with a path, got {part.input(0).name!r}")
    return Paths(place for part in parts if isinstance(part, Files) for place in part.places)


def found_in(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    modality: str,
    column: str | None,
) -> list[Part]:
    """Return what inputs stand for, each file, archive and table once.

    Raises
    ------
    ValueError
        If an input is not there, a glob matches nothing, nothing is found at all, or a column is
        asked for that is not there.
    """
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    finder = _Finder(modality, column)
    for item in given:
        finder.add(os.fspath(item))
    if column is not None and not finder.is_tabular:
        kind = "table" if modality == "text" else "list"
        raise ValueError(
            f"column must be given with a {kind} (.csv ...), got {column!r} without one"
        )
    parts = finder.parts()
    if not any(len(part) for part in parts):
        message = f"inputs must name at least one {KINDS[modality][1]}, got {list(map(str, given))}"
        raise ValueError(message + finder.hint)
    return parts


def is_there(item: str) -> bool:
    """Return whether something that was typed may stand for inputs; addresses are not asked."""
    if is_url(item) or os.path.lexists(item) or glob.has_magic(item):
        return True
    return any(is_there(one) for one in braces(item) if one != item)


_BRACE = re.compile(r"\{([^{}]*)\}")


def braces(item: str) -> list[str]:
    """Return what `{000..010}` and `{a,b}` in a name stand for.

    Examples
    --------
    >>> braces("{08..10}.tar"), braces("{a,b}{0..1}"), braces("{x}")
    (['08.tar', '09.tar', '10.tar'], ['a0', 'a1', 'b0', 'b1'], ['{x}'])
    """
    for found in _BRACE.finditer(item):
        first, dots, last = found[1].partition("..")
        if dots and first.isdecimal() and last.isdecimal():
            low, high = int(first), int(last)
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            step = 1 if low <= high else -1
            words: Iterable[str] = (f"{n:0{width}}" for n in range(low, high + step, step))
        elif "," in found[1]:
            words = found[1].split(",")
        else:
            continue
        head, tail = item[: found.start()], braces(item[found.end() :])
        return [f"{head}{word}{rest}" for word in words for rest in tail]
    return [item]


class _Finder:
    """Goes through what was typed, and remembers what was found."""

    def __init__(self, modality: str, column: str | None) -> None:
        self._modality = modality
        self._column = column
        self._suffixes = KINDS[modality][0]
        self._parts: list[Part] = []
        self._sources: set[str] = set()
        self._of_folder = False
        self.is_tabular = False  # whether a column can be meant
        self.hint = ""

    def add(self, item: str) -> None:
        """Find what one item stands for."""
        place = as_place(item)
        if is_url(place):
            with listing(place):
                self._add_address(place)
        elif Path(place).is_dir():
            self._add_folder(Path(place), named=item)
        elif os.path.lexists(place):
            self._add_file(place)
        elif (words := braces(item)) != [item]:
            for word in words:
                self.add(word)
        elif glob.has_magic(item):
            matches = sorted(glob.glob(item, recursive=True))  # noqa: PTH207  absolute patterns too
            if not matches:
                raise ValueError(f"inputs must match something, got the glob {item!r}: no match")
            for match in matches:
                self.add(match)
        else:
            raise ValueError(f"inputs must exist, got {item!r}: no such file or folder")

    def _add_folder(self, folder: Path, named: str) -> None:
        if is_dataset(folder):
            self._add_source(str(folder))
            return
        # A folder with the name of a file is most likely a mistake: the job names it.
        is_named = self._modality != "text" and Path(named).suffix.lower() in self._suffixes
        head = [str(folder)] if is_named else []
        self._of_folder = True
        self._add_places([*head, *files_below(folder, self._suffixes)])

    def _add_file(self, place: str) -> None:
        """Take a file, local or not, for what its name says that it is."""
        if is_tar(place) or is_table(place):
            self._add_source(place)
        elif suffix_of(place) == ".txt" and place not in self._sources:
            self._sources.add(place)
            self.is_tabular |= self._modality != "text"
            self._parts += parts_of_list(place, self._modality)
        elif suffix_of(place) != ".txt":
            self._add_places([place])

    def _add_address(self, url: str) -> None:
        if (words := braces(url)) != [url]:
            for word in words:
                self._add_address(word)
        elif not is_glob(url) and (_is_source(url) or suffix_of(url) in self._suffixes):
            filesystem_of(url)  # a package that is missing is told at once
            self._add_file(url)  # a file that is missing is named by the job
        else:
            places, was_glob = found_at(url, self._suffixes)
            if not was_glob:
                self._add_places(places)
            for place in places if was_glob else ():
                self._add_file(place)

    def _add_source(self, place: str) -> None:
        self.is_tabular = True
        if place in self._sources:
            return
        self._sources.add(place)
        if is_tar(place):
            parts, others = members_of(place, self._is_wanted)
            if not any(map(len, parts)):
                self.hint = f": the members of {place} are others, like {others}"
        elif is_table(place):
            parts = parts_of_table(place, self._modality, self._column)
        else:
            parts = parts_of_dataset(Path(place), self._modality, self._column)
        if not parts:
            self.hint = f": the table {place} has no rows"
        self._parts += parts

    def _is_wanted(self, member: str) -> bool:
        """Return whether a member of an archive is an input; a column is what follows its stem."""
        name = member.rpartition("/")[2].lower()
        if self._column is not None:
            return name.partition(".")[2] == self._column.lower().lstrip(".")
        return name[name.rfind(".") :] in self._suffixes and name[:1] != "."

    def _add_places(self, places: list[str]) -> None:
        self._parts.append(Files(places, self._modality))

    def parts(self) -> list[Part]:
        """Return what was found, each file once."""
        if len(self._parts) == 1:  # one folder has each of its files once
            return self._parts if self._of_folder else [_unique(self._parts[0], set())]
        seen: set[str] = set()
        return [_unique(part, seen) for part in self._parts]


def _unique(part: Part, seen: set[str]) -> Part:
    """Return files without those seen before; anything else as it is."""
    if not isinstance(part, Files):
        return part
    fresh = [place for place in dict.fromkeys(part.places) if place not in seen]
    seen.update(fresh)
    return Files(fresh, part.modality)


def _is_source(place: str) -> bool:
    return is_tar(place) or is_table(place) or suffix_of(place) == ".txt"


def files_below(folder: Path, suffixes: frozenset[str]) -> Iterator[str]:
    """Yield files by suffix, and what cannot be looked into; links to folders are followed once."""
    unreadable: list[str] = []
    top = os.path.realpath(folder)
    seen = {top}
    left = [(str(folder), top)]  # folders to come, the next one last, and where they really are
    while left:
        parent, real = left.pop()
        try:
            with os.scandir(parent) as entries:
                kinds = [(entry.is_dir(), entry.name, entry) for entry in entries]
        except OSError:
            unreadable.append(parent)
            continue
        inside = [entry for is_folder, _, entry in kinds if is_folder]
        fresh = _fresh(inside, real, seen)
        names = [name for is_folder, name, _ in kinds if not is_folder]
        root = parent.rstrip("/") + "/"
        for name in sorted([*names, *fresh]):
            dot = name.rfind(".")
            if dot > 0 and name[dot:].lower() in suffixes:
                yield root + name
        left += [(root + name, fresh[name]) for name in sorted(fresh, reverse=True)]
    yield from unreadable


def _fresh(folders: list[os.DirEntry[str]], real: str, seen: set[str]) -> dict[str, str]:
    """Return where folders really are that were not seen before, by name; of one its link last."""
    fresh: dict[str, str] = {}
    for entry in sorted(folders, key=lambda e: (e.is_symlink(), e.name)):
        place = os.path.realpath(entry.path) if entry.is_symlink() else f"{real}/{entry.name}"
        if place not in seen:
            seen.add(place)
            fresh[entry.name] = place
    return fresh
