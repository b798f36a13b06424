"""Labels of inputs: from the folder in their name, or from a table."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pyfeat.jobs._inputs_arrow import ARROW_SUFFIXES, columns_of, strings_of
from pyfeat.jobs._inputs_dataset import arrow_files, is_dataset, splits_of
from pyfeat.jobs._inputs_remote import as_place, path_of, suffix_of
from pyfeat.jobs._inputs_table import listed, read_rows
from pyfeat.jobs._named import member_of


def folder_of(name: str) -> str:
    """Return the name of the folder that an input lies in.

    Parameters
    ----------
    name : str
        Of a file, of an address, or of a member of an archive; one that lies in no folder of its
        archive has the archive's own name without suffixes.

    Examples
    --------
    >>> folder_of("/photos/cat/1.jpg"), folder_of("/photos.tar::cat/1.jpg")
    ('cat', 'cat')
    >>> folder_of("/photos/cat.tar.gz::1.jpg"), folder_of("s3://photos/cat/1.jpg")
    ('cat', 'cat')
    """
    if (found := member_of(name)) is None:
        return _folder(path_of(name))
    archive, member = found
    return _folder(member) or Path(path_of(archive)).name.partition(".")[0]


def _folder(path: str) -> str:
    # Not by `Path`, which has Python remember every part of every name.
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return parts[-2] if len(parts) > 1 else ""


def read_labels(source: str | os.PathLike[str], names: Iterable[str] = ()) -> dict[str, str]:
    """Return label by name of the input.

    Parameters
    ----------
    source : path-like
        Table (CSV, TSV, parquet, arrow) with columns "path" and "label", or else its first two
        columns. If it is the table of the inputs itself, or a data set of Hugging Face, its column
        "label": that of row 17 labels the input `table#17`.
    names : iterable of str
        Of the inputs.

    Returns
    -------
    labels : dict of str to str
        Paths are absolute.

    Raises
    ------
    ValueError
        If the file is not there, has fewer than two columns, has no labels for its own rows, or
        gives one path two labels.
    """
    place = as_place(os.fspath(source))
    folder = Path(place)
    if folder.is_dir() and is_dataset(folder):
        splits = [
            (str(s), [row for f in arrow_files(s) for row in _rows(f)]) for s in splits_of(folder)
        ]
        return {f"{title}#{i}": row for title, rows in splits for i, row in enumerate(rows, 1)}
    if not folder.is_file():
        given = os.fspath(source)
        raise ValueError(f"labels must be 'folder' or a table, got {given!r}: no such file")
    if any(name.startswith(f"{place}#") for name in names):
        return {f"{place}#{i}": label for i, label in enumerate(_rows(place), 1)}
    labels: dict[str, str] = {}
    for path, label in zip(*_path_and_label(place), strict=True):
        name = listed(place, path)
        if labels.setdefault(name, label) != label:
            both = [labels[name], label]
            raise ValueError(f"labels must give each path one label, got {both} for {name!r}")
    return labels


def _path_and_label(place: str) -> tuple[list[str], list[str]]:
    table = _Table(place)
    if len(table.header) < 2:
        raise ValueError(f"labels must have two columns, path and label, got {table.header}")
    path = "path" if "path" in table.header else table.header[0]
    label = "label" if "label" in table.header else table.header[1]
    return table.column(path), table.column(label)


def _rows(place: str) -> list[str]:
    table = _Table(place)
    if "label" not in table.header:
        raise ValueError(f"labels must have a column 'label', got {table.header} in {place!r}")
    return table.column("label")


class _Table:
    """The columns of a table as text; numbers of classes by their names, where it knows them."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._rows: list[list[str]] = []
        self._classes: dict[str, list[str]] = {}
        if suffix_of(place) in ARROW_SUFFIXES:
            columns = columns_of(place)
            self.header, self._classes = columns.names, columns.classes
        else:
            self.header, self._rows = read_rows(place)

    def column(self, name: str) -> list[str]:
        """Return the cells of a column; null is empty, and so is class -1."""
        if suffix_of(self._place) not in ARROW_SUFFIXES:
            at = self.header.index(name)
            return [row[at] for row in self._rows]
        cells = strings_of(self._place, name)
        if name not in self._classes:
            return cells
        known = {str(i): label for i, label in enumerate(self._classes[name])}
        return [known.get(cell, "") for cell in cells]
