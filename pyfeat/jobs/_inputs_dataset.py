"""Data sets of Hugging Face on disk: folders of arrow files that `save_to_disk` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyfeat.jobs._collected import Part
from pyfeat.jobs._inputs_table import parts_of_columns

_SET, _SETS, _STATE = "dataset_info.json", "dataset_dict.json", "state.json"


def is_dataset(folder: Path) -> bool:
    """Return whether a folder is a data set, or a dictionary of some."""
    return (folder / _SETS).is_file() or bool((folder / _SET).is_file() and arrow_files(folder))


def splits_of(folder: Path) -> list[Path]:
    """Return the data sets of a folder: itself, or its splits in their order."""
    if not (folder / _SETS).is_file():
        return [folder]
    return [folder / str(name) for name in _json(folder / _SETS).get("splits", [])]


def arrow_files(folder: Path) -> list[str]:
    """Return the files of one data set in the order of their rows.

    Raises
    ------
    ValueError
        If its rows are chosen by a file of indices.
    """
    if not (folder / _STATE).is_file():
        return [str(f) for f in sorted(folder.glob("*.arrow"))]
    state = _json(folder / _STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise ValueError(f"{folder}: must be saved without indices: call flatten_indices() before")
    return [str(folder / f["filename"]) for f in state.get("_data_files", [])]


def parts_of_dataset(folder: Path, modality: str, column: str | None) -> list[Part]:
    """Return the inputs of a data set, called `folder#17` with the number of the row from 1.

    Raises
    ------
    ValueError
        If it is empty, or has no column for the inputs.
    """
    return [
        part
        for split in splits_of(folder)
        for part in parts_of_columns(arrow_files(split), str(split), modality, column)
    ]


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: must be JSON, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: must be a JSON object, got {type(value).__name__}")
    return value
