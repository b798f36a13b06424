"""From what people type to inputs of any kind, and to texts."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pyfeat._identity import Space
from pyfeat.jobs._collect import KINDS, Paths, found_in
from pyfeat.jobs._collected import Collected, Files

__all__ = ["Collected", "collect_inputs", "collect_texts", "modality_of_space"]


def modality_of_space(space: Space | None) -> str:
    """Return "image", "text", "audio" or "video": what rows of a space were made of."""
    if space is not None and "video" in space.parts:
        return "video"
    preparation = {} if space is None else space.parts.get("preprocessing", {})
    marks = {"tokenizer": "text", "sample_rate": "audio"}
    return next((marks[mark] for mark in marks if mark in preparation), "image")


def collect_inputs(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Collected,
    modality: str,
    column: str | None = None,
) -> Collected:
    """Return the inputs that paths and addresses stand for, to a backbone of a modality.

    Parameters
    ----------
    inputs : path-like or sequence of path-like
        Paths, or addresses as fsspec takes them (`s3://bucket/photos`), of

        - a folder: its files by suffix, searched recursively;
        - a glob, or a pattern like `{000..010}.tar`: what each match stands for;
        - a tar archive, compressed or not: its members by suffix;
        - `.csv`, `.tsv`, `.parquet`, `.arrow`: a column of paths, of files (bytes, or struct of
          bytes and path), or of texts;
        - a folder that `save_to_disk` of Hugging Face's `datasets` wrote: the same;
        - `.txt`: paths, one a line, or texts (see `collect_texts`);
        - another file: itself.
    modality : {"image", "text", "audio", "video"}
    column : str, optional
        Column of a table; of an archive what follows the stem of its members ("jpg", "left.png").

    Returns
    -------
    found : Collected
        Names are absolute paths and addresses, `photos.tar::a/b.jpg` and `t.parquet#17`.
        Only names are read: of an archive its headers, of a table its columns of paths.

    Raises
    ------
    ValueError
        If an input is not there, a glob matches nothing, nothing is found at all, or a table has no
        such column, or is empty.
    OSError
        If something cannot be listed.
    ImportError
        If a package is missing: the message says which.
    """
    if isinstance(inputs, Collected):
        return inputs
    if isinstance(inputs, Paths):
        return Collected([Files(inputs, modality)])
    if modality not in KINDS:
        raise ValueError(f"modality must be one of {list(KINDS)}, got {modality!r}")
    return Collected(found_in(inputs, modality, column))


def collect_texts(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, column: str | None = None
) -> Collected:
    """Return the texts that inputs stand for, in a fixed order.

    Parameters
    ----------
    inputs : path-like or sequence of path-like
        - `.csv`, `.tsv`, `.parquet`, `.arrow`: the cells of one column, each a text;
        - `.txt`: the lines, each a text; those of nothing but white space are left out;
        - another file: one text;
        - a folder: its `.txt` files (searched recursively), each one text;
        - a glob: what it matches, each as above;
        - whatever else `collect_inputs` takes: members of archives, data sets, addresses.
    column : str, optional
        Column of a table that holds the texts; by default "text" if there is one, else the first
        of text.

    Returns
    -------
    texts : Collected
        Cells and lines are called `/folder/reviews.csv#17`, with the number of the row, the header
        not counted, or of the line; both from 1. Equal texts stay: each has its own name, and all
        of them one row in a store. Not checked to be readable, nor to be UTF-8.

    Raises
    ------
    ValueError
        If an input is not there, a glob matches nothing, nothing is found at all, or a table has no
        such column.
    """
    return collect_inputs(inputs, "text", column)
