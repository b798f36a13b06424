"""Parquet and arrow files: columns, and cells that are read one by one."""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from pyfeat.errors import InputError
from pyfeat.extract import Input
from pyfeat.jobs._forward import Block, Forward, damaged, shared
from pyfeat.jobs._inputs_arrow_file import arrow_batches, mapped, parquet_file, pyarrow
from pyfeat.jobs._inputs_remote import Remote, as_place, beside, is_url, reading, suffix_of

ARROW_SUFFIXES = (".parquet", ".arrow")
_STEP = 2**22  # bytes of one step through a parquet file, about


@dataclass(frozen=True)
class Columns:
    """What a file of columns holds.

    Parameters
    ----------
    types : dict of str to str
        Type of each column.
    files, texts : list of str
        Columns whose cells are bytes, or a struct of bytes and path; those of text.
    classes : dict of str to list of str
        Names of the classes whose numbers a column holds (Hugging Face's `ClassLabel`).
    n_rows : int
    damage : str
        Why there may be more rows.
    """

    types: dict[str, str]
    files: list[str]
    texts: list[str]
    classes: dict[str, list[str]]
    n_rows: int
    damage: str = ""

    @property
    def names(self) -> list[str]:
        return list(self.types)


@dataclass(frozen=True)
class Cell:
    """A file, or a text, in a cell.

    Parameters
    ----------
    place : str
        Path or address of the file of columns.
    column : str
    row : int
        From 0.
    stamp : int
        When it was listed, in ns: what was read of it before is not used.
    """

    place: str
    column: str
    row: int
    stamp: int

    def read(self) -> bytes:
        """Return its bytes, of a text in UTF-8; raise InputError if they cannot be had."""
        value = self._value()
        if isinstance(value, dict):
            path, value = value.get("path"), value.get("bytes")
            if value is None and path:
                return _file(as_place(beside(self.place, path)))
        if value is None:
            raise InputError(self.place, "it is null")
        return value.encode(errors="surrogatepass") if isinstance(value, str) else bytes(value)

    def _value(self) -> Any:
        if suffix_of(self.place) == ".arrow" and not is_url(self.place):
            with reading(self.place):
                return mapped(self.place, self.stamp).cell(self.column, self.row)
        source = _stream(self.place, self.column, self.stamp)
        (block,) = source.get(self.row, self.row + 1)
        return block.data[self.row - block.start].as_py()


@dataclass(frozen=True)
class Cells:
    """The cells of one column.

    Parameters
    ----------
    place, column : str
    n_rows : int
    title : str
        What their names begin with.
    first : int
        Rows of other files of the data set before these.
    stamp : int
    """

    place: str
    column: str
    n_rows: int
    title: str
    first: int = 0
    stamp: int = field(default_factory=time.time_ns)

    def __len__(self) -> int:
        return self.n_rows

    def input(self, i: int) -> Input:
        """Return a cell, called `t.parquet#17` with the number of its row from 1."""
        cell = Cell(self.place, self.column, i, self.stamp)
        return Input(f"{self.title}#{self.first + i + 1}", cell)


def columns_of(place: str) -> Columns:
    """Return the columns of a parquet or arrow file, read from its head or foot.

    Raises
    ------
    ImportError
        If pyarrow is missing.
    ValueError
        If it is no such file.
    """
    try:
        if suffix_of(place) == ".parquet":
            with parquet_file(place) as file:
                return _described(file.schema_arrow, file.metadata.num_rows)
        if not is_url(place):
            file = mapped(place, time.time_ns())
            return _described(file.schema, file.n_rows, file.damage)
        with arrow_batches(place) as (schema, batches):
            return _described(schema, sum(len(batch) for batch in batches))
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: names of columns must be UTF-8, got {error.object!r}") from None


def strings_of(place: str, name: str) -> list[str]:
    """Return the cells of a column as text; null is empty."""
    if suffix_of(place) == ".parquet":
        with parquet_file(place) as file:
            cells = file.read(columns=[name]).column(0).to_pylist()
    elif is_url(place):
        with arrow_batches(place) as (_, batches):
            cells = [cell for batch in batches for cell in batch.column(name).to_pylist()]
    else:
        cells = mapped(place, time.time_ns()).cells(name)
    return ["" if cell is None else str(cell) for cell in cells]


def _described(schema: Any, n_rows: int, damage: str = "") -> Columns:
    types = {f.name: str(f.type) for f in schema}
    files = [f.name for f in schema if _is_file(f.type)]
    texts = [f.name for f in schema if _is_text(f.type)]
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said.get("info", {}).get("features", {})
        classes = {k: v["names"] for k, v in features.items() if v.get("_type") == "ClassLabel"}
    except (ValueError, AttributeError, KeyError):
        classes = {}
    return Columns(types, files, texts, classes, n_rows, damage)


def _is_file(kind: Any) -> bool:
    import pyarrow.types as t

    if t.is_dictionary(kind):
        kind = kind.value_type
    if t.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_file(kind.field(at).type)
    binary = (t.is_binary, t.is_large_binary, t.is_fixed_size_binary, t.is_binary_view)
    listed = t.is_list(kind) or t.is_large_list(kind)
    return any(is_one(kind) for is_one in binary) or (listed and t.is_uint8(kind.value_type))


def _is_text(kind: Any) -> bool:
    import pyarrow.types as t

    if t.is_dictionary(kind):
        kind = kind.value_type
    return any(is_one(kind) for is_one in (t.is_string, t.is_large_string, t.is_string_view))


def _file(place: str) -> bytes:
    if is_url(place):
        return Remote(place).read()
    with reading(place):
        return Path(place).read_bytes()


def _stream(place: str, column: str, stamp: int) -> Forward:
    def make() -> Forward:
        if suffix_of(place) != ".parquet":
            return Forward(lambda _: _remote_blocks(place, column), lambda _: 0, place)
        groups = _Groups(place, column)
        return Forward(groups.blocks, groups.entry, place)

    return shared((place, column, stamp), make)


class _Groups:
    """The rows of a parquet file: reading may begin at each of its groups of rows."""

    def __init__(self, place: str, column: str) -> None:
        self._place = place
        self._column = column
        self._starts: list[int] = []
        self._rows = 1  # of one step

    def entry(self, row: int) -> int:
        """Return the first row of the group that holds a row."""
        if not self._starts:
            with parquet_file(self._place) as file:
                about = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
            self._starts = [0, *accumulate(g.num_rows for g in about)]
            size = sum(g.total_byte_size for g in about)
            self._rows = max(1, min(4096, _STEP * self._starts[-1] // max(size, 1)))
        return self._starts[self._group(row)]

    def _group(self, row: int) -> int:
        return bisect_right(self._starts, row, hi=len(self._starts) - 1) - 1

    def blocks(self, start: int) -> Iterator[Block]:
        """Yield rows from the group that holds the first one wanted."""
        at, first = self.entry(start), self._group(start)
        with parquet_file(self._place) as file, damaged("its table", pyarrow().ArrowException):
            for group in range(first, len(self._starts) - 1):
                # One by one: a batch over two of them would be lost with the second.
                how = {"row_groups": [group], "columns": [self._column]}
                for batch in file.iter_batches(self._rows, **how):
                    yield Block(at, at + len(batch), batch.nbytes, _whole(batch.column(0)))
                    at += len(batch)


def _remote_blocks(place: str, column: str) -> Iterator[Block]:
    at = 0
    with arrow_batches(place) as (_, batches), damaged("its table", pyarrow().ArrowException):
        for batch in batches:
            yield Block(at, at + len(batch), batch.nbytes, _whole(batch.column(column)))
            at += len(batch)


def _whole(cells: Any) -> Any:
    """Return cells whose offsets lead nowhere else."""
    cells.validate(full=True)
    return cells
