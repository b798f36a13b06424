"""Exports that are tables: parquet, and datasets of Hugging Face."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyfeat._identity import KEY_BYTES
from pyfeat.store._exported import Block, Exported

# One file of a dataset, before the next one is begun.
_ROWS_OF_FILE = 1 << 20


def write_parquet(exported: Exported, out: Path) -> None:
    """Write a file with the columns `key`, `names` and `row`."""
    pq = _package("pyarrow.parquet", "pyarrow")
    schema = _schema(exported)
    with pq.ParquetWriter(out, schema, compression="none", use_dictionary=False) as writer:
        for block in exported.blocks():
            writer.write_batch(_batch(block, schema))


def write_hf(exported: Exported, out: Path) -> None:
    """Write a folder for `datasets.load_from_disk`."""
    pa = _package("pyarrow", "pyarrow")
    datasets = _package("datasets", "datasets")
    schema = _schema(exported)
    features = datasets.Features.from_arrow_schema(schema)
    schema = features.arrow_schema
    out.mkdir()
    names: list[str] = []
    blocks = exported.blocks()
    for part in range(max(1, -(-exported.n // _ROWS_OF_FILE))):
        names.append(f"data-{part:05d}.arrow")
        with pa.OSFile(str(out / names[-1]), "wb") as file, pa.ipc.new_stream(file, schema) as s:
            for block in _some(blocks, _ROWS_OF_FILE):
                s.write_batch(_batch(block, schema))
    info = {"features": features.to_dict(), "description": exported.space.to_json()}
    (out / "dataset_info.json").write_text(json.dumps(info))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": exported.space.fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (out / "state.json").write_text(json.dumps(state))


def _some(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
    """Take blocks until there are about that many rows; leave the others."""
    taken = 0
    while taken < rows and (block := next(blocks, None)) is not None:
        taken += len(block.rows)
        yield block


def _schema(exported: Exported) -> Any:
    pa = _package("pyarrow", "pyarrow")
    fields = [
        ("key", pa.binary(KEY_BYTES)),
        ("names", pa.list_(pa.string())),
        ("row", pa.list_(pa.from_numpy_dtype(exported.dtype), exported.space.dim)),
    ]
    return pa.schema(fields, metadata={"pyfeat.space": exported.space.to_json()})


def _batch(block: Block, schema: Any) -> Any:
    pa = _package("pyarrow", "pyarrow")
    keys = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(KEY_BYTES), len(block.keys), [None, pa.py_buffer(block.keys.tobytes())]
    )
    # Names of files are bytes; what is no UTF-8 of them cannot stand in a table.
    names = [[os.fsencode(n).decode("utf-8", "replace") for n in of_one] for of_one in block.names]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(block.rows.ravel()), block.rows.shape[1])
    columns = [keys, pa.array(names, pa.list_(pa.string())), rows]
    wanted = [c.cast(f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(wanted, schema=schema)


def _package(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(
            f"this export needs the package {package}: pip install 'pyfeat[export]'"
        ) from None
