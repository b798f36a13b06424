"""Files of columns, opened: what is no such file is refused, what is damaged is not followed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import Any

from pyfeat.jobs._forward import Damaged, damaged
from pyfeat.jobs._inputs_remote import is_url, opened, tried

_BUFFER = 2**20


def pyarrow() -> Any:
    """Return the package; raise ImportError with the command that brings it."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        raise ImportError("parquet and arrow files need pyarrow: pip install pyarrow") from None
    return pa


@contextmanager
def _opening(place: str, kind: str) -> Iterator[None]:
    """Refuse what is no file of a kind."""
    try:
        with damaged("it", pyarrow().ArrowException):
            yield
    except Damaged as error:
        raise ValueError(f"{place}: must be a {kind} file, got {error.__cause__}") from None


@contextmanager
def parquet_file(place: str) -> Iterator[Any]:
    """Open a parquet file at a path or an address."""
    pa = pyarrow()
    # Not buffered before: a group of rows with its images may be larger than the memory.
    how = {"pre_buffer": False, "buffer_size": _BUFFER}
    with ExitStack() as stack:
        with _opening(place, "parquet"):
            if is_url(place):
                source = stack.enter_context(opened(place))
                file = tried(lambda: _whole_foot(pa.parquet.ParquetFile, source, how))
            else:
                file = pa.parquet.ParquetFile(place, **how)
        yield stack.enter_context(file)


def _whole_foot(make: Any, source: Any, how: dict[str, Any]) -> Any:
    with damaged("it", pyarrow().ArrowException):
        return make(source, **how)


class Mapped:
    """A local arrow file whose rows stay on disk until they are asked for.

    Parameters
    ----------
    place : str

    Attributes
    ----------
    schema : pyarrow.Schema
    n_rows : int
        That can be read.
    damage : str
        Why there may be more.
    """

    def __init__(self, place: str) -> None:
        pa = pyarrow()
        self.damage = ""
        self._batches: list[Any] = []
        self._whole: set[tuple[int, str]] = set()
        with _opening(place, "arrow"):
            self.schema, batches = _open(pa, pa.memory_map(place))
        try:
            with damaged("it", pa.ArrowException):
                self._batches.extend(batches)
        except Damaged as error:
            self.damage = str(error)
        self._ends = list(accumulate(len(batch) for batch in self._batches))
        self.n_rows = self._ends[-1] if self._ends else 0

    def cell(self, column: str, row: int) -> Any:
        """Return one cell; raise ValueError if those beside it are damaged."""
        i = bisect_right(self._ends, row)
        if i == len(self._ends):
            raise ValueError(f"it has {self.n_rows} rows, fewer than when it was listed")
        return self._column(i, column)[row - (self._ends[i - 1] if i else 0)].as_py()

    def cells(self, column: str) -> list[Any]:
        """Return all cells of a column."""
        return [
            cell for i in range(len(self._batches)) for cell in self._column(i, column).to_pylist()
        ]

    def _column(self, i: int, name: str) -> Any:
        cells = self._batches[i].column(name)
        if (i, name) not in self._whole:
            cells.validate(full=True)  # offsets that lead out of the file would be followed
            self._whole.add((i, name))
        return cells


@lru_cache(maxsize=16)
def mapped(place: str, _stamp: int) -> Mapped:
    """Return a local arrow file, the same one to all threads."""
    return Mapped(place)


def _open(pa: Any, file: Any) -> tuple[Any, Iterator[Any]]:
    """Return the schema and the batches of an arrow file of either kind."""
    begins = file.read(6)
    file.seek(0)
    if begins == b"ARROW1":
        reader = pa.ipc.open_file(file)
        return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
    reader = pa.ipc.open_stream(file)
    return reader.schema, iter(reader)


@contextmanager
def arrow_batches(place: str) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Open an arrow file at an address: its schema and its batches, to be read once."""
    pa = pyarrow()
    with opened(place) as file:
        with _opening(place, "arrow"):
            found = _open(pa, file)
        yield found
