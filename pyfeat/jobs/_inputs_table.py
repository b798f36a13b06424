"""Tables: which column holds the inputs, and whether its cells are paths, texts or files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from pyfeat.jobs._collected import Files, Lost, Part, Texts
from pyfeat.jobs._inputs_arrow import ARROW_SUFFIXES, Cells, columns_of, strings_of
from pyfeat.jobs._inputs_remote import as_place, beside, is_url, opened, suffix_of

TABLE_SUFFIXES = frozenset({".csv", ".tsv", *ARROW_SUFFIXES})


def is_table(place: str) -> bool:
    """Return whether a place is called like a table."""
    return suffix_of(place) in TABLE_SUFFIXES


def parts_of_table(place: str, modality: str, column: str | None) -> list[Part]:
    """Return the inputs that a table holds.

    Parameters
    ----------
    place : str
        Path or address of a CSV, TSV, parquet or arrow file.
    modality : str
    column : str, optional
        Of texts: by default "text", else the first column of texts. Of others: by default "path",
        else the first column of files ("image" before others), else the first column.

    Raises
    ------
    ValueError
        If it is empty or no table, or has no such column.
    """
    if suffix_of(place) in ARROW_SUFFIXES:
        return parts_of_columns([place], place, modality, column)
    header, rows = read_rows(place)
    at = header.index(column_for(modality, column, place, header))
    return [_of_strings(place, [row[at] for row in rows], modality)]


def parts_of_columns(
    places: list[str], title: str, modality: str, column: str | None
) -> list[Part]:
    """Return the inputs that files of equal columns hold, numbered from the first to the last.

    A file without rows has none, whatever its columns.

    Raises
    ------
    ValueError
        If there is no such column, or it holds neither files nor texts.
    """
    parts: list[Part] = []
    n_rows = 0
    for place in places:
        columns = columns_of(place)
        if not columns.n_rows and not columns.damage:
            continue
        name = column_for(modality, column, place, columns.names, columns.files, columns.texts)
        if name in columns.files or (modality == "text" and name in columns.texts):
            parts.append(Cells(place, name, columns.n_rows, title, n_rows))
        elif name in columns.texts or (modality == "text" and "<" not in columns.types[name]):
            parts.append(_of_strings(place, strings_of(place, name), modality))
        else:
            rule = "must hold bytes, a struct of bytes and path, or text"
            raise ValueError(f"column {rule}, got {name!r} of {columns.types[name]} in {place!r}")
        if columns.damage:
            parts.append(Lost(place, columns.damage))
        n_rows += columns.n_rows
    return parts


def column_for(
    modality: str,
    column: str | None,
    place: str,
    names: list[str],
    files: Sequence[str] = (),
    texts: Sequence[str] | None = None,
) -> str:
    """Return the column that holds the inputs.

    Raises
    ------
    ValueError
        If there is no column of the name that was asked for, or none at all.
    """
    if column is not None:
        if column not in names:
            raise ValueError(f"column must be one of {names}, got {column!r} for {place!r}")
        return column
    if not names:
        raise ValueError(f"inputs must have a column, got the table {place!r} without one")
    strings = names if texts is None else texts
    if modality == "text":
        wanted = ["text", *strings]
    else:
        wanted = ["path", *([modality] if modality in files else []), *files, *strings]
    return next((name for name in wanted if name in names), names[0])


def _of_strings(place: str, cells: list[str], modality: str) -> Part:
    if modality == "text":
        return Texts(place, np.arange(1, len(cells) + 1), cells)
    return Files([listed(place, cell) for cell in cells if cell], modality)


def listed(place: str, path: str) -> str:
    """Return the place of a path in a list: of a local one it is taken from the current folder."""
    return as_place(beside(place, path) if is_url(place) else path)


def read_rows(place: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV or TSV file, as text."""
    delimiter = "\t" if suffix_of(place) == ".tsv" else ","
    try:
        with opened(place) as raw:
            file = io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="")
            rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
    except csv.Error as error:
        raise ValueError(f"{place}: must be a table, got {error}") from None
    if not rows:
        raise ValueError(f"inputs must not be empty, got the table {place!r}")
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise ValueError(f"{place}, row {number}: must have {width} fields, got {len(row)}")
    return rows[0], rows[1:]


def parts_of_list(place: str, modality: str) -> list[Part]:
    """Return the paths that the lines of a `.txt` file are, or of texts the lines themselves."""
    with opened(place) as file:
        lines = file.read().decode("utf-8-sig", "surrogateescape")
    if modality != "text":
        paths = [line.strip() for line in lines.split("\n")]
        return [Files([listed(place, path) for path in paths if path], modality)]
    kept = [(n, line.strip()) for n, line in enumerate(lines.split("\n"), 1) if line.strip()]
    return [Texts(place, np.array([n for n, _ in kept], np.int64), [t for _, t in kept])]
