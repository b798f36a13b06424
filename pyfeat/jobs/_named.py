"""Inputs found again by their names, as a store lists them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pyfeat.extract import Input
from pyfeat.jobs._collect_texts import collect_inputs
from pyfeat.jobs._collected import Collected, Files
from pyfeat.jobs._inputs_remote import is_url

_MEMBER = re.compile(r"(?P<source>.*)::(?P<member>(?!/)(?!.*://).*)", re.DOTALL)
_CELL = re.compile(r"(?P<source>.*)#[0-9]+", re.DOTALL)


def member_of(name: str) -> tuple[str, str] | None:
    """Return archive and member of a name like `photos.tar::a/b.jpg`; None for any other name."""
    found = _MEMBER.fullmatch(name)
    return None if found is None else (found["source"], found["member"])


def inputs_named(names: Iterable[str], modality: str) -> dict[str, Input]:
    """Return inputs by their names; what is not there any more is left out.

    Parameters
    ----------
    names : iterable of str
        Paths, addresses, members of archives, rows and lines. Each archive and table is listed
        once; of a table the inputs are those of its column by default.
    modality : {"image", "text", "audio", "video"}
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
        try:
            listed = collect_inputs([source], modality)
        except (ValueError, OSError, ImportError):
            continue
        found.update((item.name, item) for item in listed if item.name in wanted)
    return found
