"""Exports that are arrays: .npy and safetensors."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pyfeat._identity import KEY_BYTES, canonical_json
from pyfeat.store._exported import Exported
from pyfeat.store._layout import SAFETENSORS_DTYPE, SPACE

NAMES = "names.jsonl"


def write_npy(exported: Exported, out: Path) -> None:
    """Write a folder with rows.npy, keys.npy, names.jsonl and space.json."""
    out.mkdir()
    (out / SPACE).write_text(exported.space.to_json())
    with (
        (out / "rows.npy").open("wb") as rows,
        (out / "keys.npy").open("wb") as keys,
        (out / NAMES).open("wb") as names,
    ):
        _write_npy_header(rows, exported.dtype, (exported.n, exported.space.dim))
        _write_npy_header(keys, np.dtype(np.uint8), (exported.n, KEY_BYTES))
        for block in exported.blocks():
            rows.write(np.ascontiguousarray(block.rows).data)
            keys.write(np.ascontiguousarray(block.keys).data)
            _write_names(names, block.names)


def write_safetensors(exported: Exported, out: Path) -> None:
    """Write a file with the tensors `rows` and `keys`, and a list of names beside it."""
    n, dim = exported.n, exported.space.dim
    end = n * dim * exported.dtype.itemsize
    header = {
        "__metadata__": {"format": "pt", "space": exported.space.to_json()},
        "rows": {
            "dtype": SAFETENSORS_DTYPE[exported.dtype.name],
            "shape": [n, dim],
            "data_offsets": [0, end],
        },
        "keys": {
            "dtype": "U8",
            "shape": [n, KEY_BYTES],
            "data_offsets": [end, end + n * KEY_BYTES],
        },
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the rows begin where a float may
    with (
        out.open("wb") as file,
        out.with_name(f"{out.name}.{NAMES}").open("wb") as names,
        tempfile.TemporaryFile(dir=out.parent) as keys,
    ):
        file.write(len(text).to_bytes(8, "little") + text)
        for block in exported.blocks():
            file.write(np.ascontiguousarray(block.rows).data)
            keys.write(np.ascontiguousarray(block.keys).data)
            _write_names(names, block.names)
        keys.seek(0)
        shutil.copyfileobj(keys, file)


def _write_npy_header(file: BinaryIO, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )


def _write_names(file: BinaryIO, names: list[list[str]]) -> None:
    file.writelines(canonical_json(of_one).encode() + b"\n" for of_one in names)
