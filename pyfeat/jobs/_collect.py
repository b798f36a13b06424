"""From what people type (folders, globs, files, lists) to a list of paths."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

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
LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".parquet"})


class Paths(list[str]):
    """Absolute paths, one an item: what `collect` returns, and leaves alone when it gets it."""


def collect(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, column: str | None = None
) -> Paths:
    """Return the absolute paths that inputs stand for, each once, in a fixed order.

    Parameters
    ----------
    inputs : path-like or sequence of path-like
        Folders (searched recursively for images), globs, image files, and lists of paths: `.txt`
        (one a line), `.csv`, `.tsv`, `.parquet`. Paths in a list are taken from the current folder.
    column : str, optional
        Column of a table that holds the paths; by default "path" if there is one, else the first.

    Returns
    -------
    paths : Paths
        A list of str. Not checked to be readable: what cannot be read is the business of the job.

    Raises
    ------
    ValueError
        If an input is not there, a glob matches nothing, nothing is found at all, or a list has no
        such column.
    """
    if isinstance(inputs, Paths):
        return inputs
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    if column is not None and not any(_is_list(Path(item)) for item in inputs):
        raise ValueError(f"column must be given with a list (.csv ...), got {column!r} without one")
    found: dict[str, None] = {}
    for item in inputs:
        for path in _expand(os.fspath(item), column):
            found[os.path.abspath(path)] = None  # noqa: PTH100  symlinks stay as they are
    if not found:
        given = [os.fspath(i) for i in inputs]
        raise ValueError(f"inputs must name at least one image, got {given}")
    return Paths(found)


def _is_list(path: Path) -> bool:
    return path.suffix.lower() in LIST_SUFFIXES and path.is_file()


def _expand(item: str, column: str | None) -> Iterable[str]:
    path = Path(item)
    if path.is_dir():
        # A folder with the name of an image is most likely a mistake: the job names it.
        named = [item] if path.suffix.lower() in IMAGE_SUFFIXES else []
        return [*named, *files_below(path, IMAGE_SUFFIXES)]
    if _is_list(path):
        return _listed(path, column)
    if os.path.lexists(item):
        return [item]
    if glob.has_magic(item):
        matches = sorted(glob.glob(item, recursive=True))  # noqa: PTH207  absolute patterns too
        if not matches:
            raise ValueError(f"inputs must match something, got the glob {item!r}: no match")
        return [p for match in matches for p in _expand(match, column)]
    raise ValueError(f"inputs must exist, got {item!r}: no such file or folder")


def files_below(folder: Path, suffixes: frozenset[str]) -> Iterator[str]:
    """Yield files by suffix, and what cannot be looked into; links to folders are followed once."""
    unreadable: list[str] = []
    seen = {os.path.realpath(folder)}
    walk = os.walk(folder, onerror=lambda e: unreadable.append(str(e.filename)), followlinks=True)
    for parent, folders, names in walk:
        fresh = []
        for name in sorted(folders, key=lambda n: (os.path.islink(f"{parent}/{n}"), n)):  # noqa: PTH114
            real = os.path.realpath(f"{parent}/{name}")
            if real not in seen:
                seen.add(real)
                fresh.append(name)
        folders[:] = sorted(fresh)
        for name in sorted([*names, *folders]):
            if Path(name).suffix.lower() in suffixes:
                yield str(Path(parent, name))
    yield from unreadable


def _listed(path: Path, column: str | None) -> list[str]:
    if path.suffix.lower() == ".txt":
        lines = path.read_text("utf-8-sig", errors="surrogateescape").splitlines()
        return [line.strip() for line in lines if line.strip()]
    header, rows = read_table(path)
    name = column if column is not None else ("path" if "path" in header else header[0])
    if name not in header:
        raise ValueError(f"column must be one of {header}, got {name!r} for {str(path)!r}")
    index = header.index(name)
    return [row[index] for row in rows if row[index]]


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV, TSV or parquet file, as text; null is empty."""
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as f:
            rows = [row for row in csv.reader(f, delimiter=delimiter) if row]
    except csv.Error as error:
        raise ValueError(f"{path}: must be a table, got {error}") from None
    if not rows:
        raise ValueError(f"inputs must not be empty, got the table {str(path)!r}")
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise ValueError(f"{path}, row {number}: must have {width} fields, got {len(row)}")
    return rows[0], rows[1:]


def _parquet(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ImportError("parquet lists need pyarrow: pip install pyarrow") from None
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: must be a parquet file, got {error}") from None
    columns = [
        ["" if v is None else str(v) for v in table.column(name).to_pylist()]
        for name in table.column_names
    ]
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def read_labels(file: str | os.PathLike[str]) -> dict[str, str]:
    """Return label by absolute path from a CSV, TSV or parquet file.

    Parameters
    ----------
    file : path-like
        Table with columns "path" and "label", or else its first two columns.

    Returns
    -------
    labels : dict of str to str

    Raises
    ------
    ValueError
        If the file is not there, has fewer than two columns, or gives one path two labels.
    """
    source = Path(file)
    if not source.is_file():
        raise ValueError(f"labels must be 'folder' or a table, got {str(source)!r}: no such file")
    header, rows = read_table(source)
    if len(header) < 2:
        raise ValueError(f"labels must have two columns, path and label, got {header}")
    p = header.index("path") if "path" in header else 0
    q = header.index("label") if "label" in header else 1
    labels: dict[str, str] = {}
    for row in rows:
        path = os.path.abspath(row[p])  # noqa: PTH100  symlinks stay as they are
        if labels.setdefault(path, row[q]) != row[q]:
            both = [labels[path], row[q]]
            raise ValueError(f"labels must give each path one label, got {both} for {path!r}")
    return labels
