"""Inputs found again by their names, as a store lists them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pyfeat.extract import Input
from pyfeat.jobs._collect_texts import collect_inputs
from pyfeat.jobs._collected import Collected, Files
from pyfeat.jobs._inputs_arrow import ARROW_SUFFIXES, columns_of
from pyfeat.jobs._inputs_dataset import arrow_files, is_dataset, splits_of
from pyfeat.jobs._inputs_remote import is_url, suffix_of
from pyfeat.jobs._inputs_table import is_table, read_rows
from pyfeat.jobs._inputs_tar import is_tar

_MEMBER = re.compile(r"(?P<source>.*)::(?P<member>(?!/)(?!.*://).*)", re.DOTALL)
_CELL = re.compile(r"(?P<source>.*)#[0-9]+", re.DOTALL)
_NUMBER = re.compile(r"#[0-9]+$")


def member_of(name: str) -> tuple[str, str] | None:
    """Return archive and member of a name like `photos.tar::a/b.jpg`; None for any other name."""
    found = _MEMBER.fullmatch(name)
    return None if found is None else (found["source"], found["member"])


def inputs_named(
    names: Iterable[str], modality: str, is_right: Callable[[Input], bool] = lambda _: True
) -> dict[str, Input]:
    """Return inputs by their names; what is not there any more is left out.

    Parameters
    ----------
    names : iterable of str
        Paths, addresses, members of archives, rows and lines. Each archive and table is listed
        once for each column that is tried.
    modality : {"image", "text", "audio", "video"}
    is_right : callable
        Says whether an input is the one that was meant: a name does not say the column. Where the
        column by default has none that is right, the others of the table are tried in their order;
        where no column has, the input is that of the column by default.
    """
    found: dict[str, Input] = {}
    inside: dict[str, set[str]] = {}  # names by the archive or table that they are in
    for name in names:
        member, cell = member_of(name), _CELL.fullmatch(name)
        if Path(name).is_file() or (is_url(name) and not (member or cell)):
            found[name] = Collected([Files([name], modality)])[0]
        elif source := (member[0] if member else cell["source"] if cell else ""):
            inside.setdefault(source, set()).add(name)
    for source, wanted in inside.items():
        found |= _inside(source, wanted, modality, is_right)
    return found


def _inside(
    source: str, wanted: set[str], modality: str, is_right: Callable[[Input], bool]
) -> dict[str, Input]:
    """Return the inputs of one archive or table."""
    found = _listed(source, wanted, modality, None)
    left = {name for name in wanted if name not in found or not is_right(found[name])}
    for column in _columns(source, left) if left else ():
        for name, item in _listed(source, left, modality, column).items():
            if is_right(item):
                found[name] = item
                left.discard(name)
        if not left:
            break
    return found


def _listed(source: str, wanted: set[str], modality: str, column: str | None) -> dict[str, Input]:
    try:
        listed = collect_inputs([source], modality, column)
    except (ValueError, OSError, ImportError):
        return {}
    return {item.name: item for item in listed if item.name in wanted}


def _columns(source: str, names: set[str]) -> Iterator[str]:
    """Yield the columns of an archive or table; of an archive those of the names."""
    try:
        if is_tar(source):
            # Behind the stem of the member, and before the number of a second one of its name.
            members = [name[len(source) + 2 :].rpartition("/")[2] for name in names]
            yield from sorted({_NUMBER.sub("", m).partition(".")[2] for m in members} - {""})
        elif is_dataset(Path(source)) or suffix_of(source) in ARROW_SUFFIXES:
            yield from columns_of(_first_file(source)).names
        elif is_table(source):
            yield from read_rows(source)[0]
    except (ValueError, OSError, ImportError):
        return


def _first_file(source: str) -> str:
    if not is_dataset(Path(source)):
        return source
    for split in splits_of(Path(source)):
        for file in arrow_files(split):
            return file
    raise ValueError(f"{source}: must hold a file of rows, got none")
