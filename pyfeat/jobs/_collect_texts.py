"""From what people type to texts: cells of a table, lines of a list, files of a folder."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyfeat._identity import Space
from pyfeat.extract import Input
from pyfeat.jobs._collect import LIST_SUFFIXES, collect, files_below, read_table

TEXT_SUFFIX = ".txt"


class Collected(list[Input]):
    """Inputs with their names: what `collect_inputs` returns, and leaves alone when it gets it."""


def modality_of_space(space: Space | None) -> str:
    """Return "image", "text" or "audio": what rows of a space were made of."""
    preparation = {} if space is None else space.parts.get("preprocessing", {})
    marks = {"tokenizer": "text", "sample_rate": "audio"}
    return next((marks[mark] for mark in marks if mark in preparation), "image")


def collect_inputs(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Collected,
    modality: str,
    column: str | None = None,
) -> Collected:
    """Return the inputs that paths stand for, to a backbone of a modality.

    Parameters
    ----------
    inputs : path-like or sequence of path-like
    modality : {"image", "text", "audio"}
        To a backbone of texts see `collect_texts`; to the others every path that `collect` finds is
        an input.
    column : str, optional

    Raises
    ------
    ValueError
        As from `collect` and `collect_texts`.
    """
    if isinstance(inputs, Collected):
        return inputs
    if modality == "text":
        return collect_texts(inputs, column=column)
    return Collected(Input(path, path) for path in collect(inputs, column=column))


def collect_texts(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, column: str | None = None
) -> Collected:
    """Return the texts that inputs stand for, in a fixed order.

    Parameters
    ----------
    inputs : path-like or sequence of path-like
        - `.csv`, `.tsv`, `.parquet`: the cells of one column, each a text;
        - `.txt`: the lines, each a text; those of nothing but white space are left out;
        - another file: one text;
        - a folder: its `.txt` files (searched recursively), each one text;
        - a glob: what it matches, each as above.
    column : str, optional
        Column of a table that holds the texts; by default "text" if there is one, else the first.

    Returns
    -------
    texts : Collected
        A list of `Input`.
        Cells and lines are called `/folder/reviews.csv#17`, with the number of the row, the header
        not counted, or of the line; both from 1. Equal texts stay: each has its own name, and all
        of them one row in a store. Not checked to be readable, nor to be UTF-8.

    Raises
    ------
    ValueError
        If an input is not there, a glob matches nothing, nothing is found at all, or a table has no
        such column.
    """
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    if column is not None and not any(_is_table(Path(item)) for item in given):
        raise ValueError(f"column must be given with a table (.csv ...), got {column!r} without")
    found = {
        text.name: text for item in given for text in _expand(os.fspath(item), column)
    }  # a file that is given twice is read once
    if not found:
        raise ValueError(f"inputs must name at least one text, got {[os.fspath(i) for i in given]}")
    return Collected(found.values())


def _is_table(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in LIST_SUFFIXES and suffix != TEXT_SUFFIX and path.is_file()


def _expand(item: str, column: str | None) -> Iterable[Input]:
    path = Path(os.path.abspath(item))  # noqa: PTH100  symlinks stay as they are
    if path.is_dir():
        return [Input(name, Path(name)) for name in files_below(path, frozenset({TEXT_SUFFIX}))]
    if _is_table(path):
        return _cells(path, column)
    if path.suffix.lower() == TEXT_SUFFIX and path.is_file():
        return _lines(path)
    if os.path.lexists(item):
        return [Input(str(path), path)]
    if glob.has_magic(item):
        matches = sorted(glob.glob(item, recursive=True))  # noqa: PTH207  absolute patterns too
        if not matches:
            raise ValueError(f"inputs must match something, got the glob {item!r}: no match")
        return [text for match in matches for text in _expand(match, column)]
    raise ValueError(f"inputs must exist, got {item!r}: no such file or folder")


def _lines(path: Path) -> Iterator[Input]:
    lines = path.read_text("utf-8-sig", errors="surrogateescape").split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Input(f"{path}#{number}", line.strip())


def _cells(path: Path, column: str | None) -> Iterator[Input]:
    header, rows = read_table(path)
    name = column if column is not None else ("text" if "text" in header else header[0])
    if name not in header:
        raise ValueError(f"column must be one of {header}, got {name!r} for {str(path)!r}")
    index = header.index(name)
    for number, row in enumerate(rows, 1):
        yield Input(f"{path}#{number}", row[index])
