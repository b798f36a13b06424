"""Open sealed segments: the header is read here, the bytes are mapped natively."""

from __future__ import annotations

import json
import os
from pathlib import Path
from reprlib import repr
from typing import Any

from pyfeat._core import Segment
from pyfeat._identity import KEY_BYTES, Space
from pyfeat.errors import CorruptStoreError
from pyfeat.store._layout import SAFETENSORS_DTYPE, SCALE_BYTES, as_store_error, row_bytes

MAX_HEADER = 1 << 20
MAX_ROWS = 1 << 48  # the offsets of the tables before the rows fit into 64 bits


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the JSON header of a safetensors file and the offset where its tensors begin.

    Raises
    ------
    CorruptStoreError
        If the file does not begin with a safetensors header.
    """
    with as_store_error("read a segment", path), path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 2 <= length <= MAX_HEADER:
            raise CorruptStoreError(f"{path}, byte 0: {length} is no length of a segment's header")
        text = f.read(length)
    if len(text) < length:
        raise CorruptStoreError(f"{path}, byte {8 + len(text)}: the file ends in its header")
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{path}, byte 8: the header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise CorruptStoreError(f"{path}, byte 8: the header is no JSON object")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that says a name twice: readers differ in which of the two they believe."""
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name stands there twice")
    return names


def _same(got: Any, wanted: Any) -> bool:
    """Return whether two JSON values are equal; to Python 1, 1.0 and True are."""
    if type(got) is not type(wanted):
        return False
    if isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(_same(got[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(_same, got, wanted))
    return bool(got == wanted)


def expected_header(n: int, space: Space) -> dict[str, Any]:
    """Return dtype, shape and offsets that the tensors of a segment of `n` rows must have."""
    scale = SCALE_BYTES[space.dtype]
    shapes = {
        "keys": ("U8", [n, KEY_BYTES], n * KEY_BYTES),
        "order": ("U64", [n], n * 8),
        "crcs": ("U32", [n], n * 4),
        "scales": ("F32", [n], n * scale),
        "rows": (SAFETENSORS_DTYPE[space.dtype], [n, space.dim], n * (row_bytes(space) - scale)),
    }
    if not scale:
        del shapes["scales"]
    header, begin = {}, 0
    for name, (dtype, shape, size) in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
        begin += size
    return header


def open_segment(path: Path, space: Space) -> Segment:
    """Map a segment of `space`.

    Raises
    ------
    CorruptStoreError
        If the header is not that of a segment of this space.
    StoreError
        If the file cannot be opened, or is shorter than its header says.
    """
    n, begin = check_header(path, space)
    return map_segment(path, n, begin, space)


def map_segment(path: Path, n: int, begin: int, space: Space, there: int | None = None) -> Segment:
    """Map a file as a segment of `n` rows whose tensors begin at an offset, whatever its header.

    `there` is how many rows the file still has, where it was cut off: only `intact` is asked then.
    """
    header = expected_header(n, space)
    offsets = {name: begin + header[name]["data_offsets"][0] for name in header}
    row = row_bytes(space) - SCALE_BYTES[space.dtype]
    return Segment(os.fsencode(path), n, row, **offsets, there=n if there is None else there)


def check_header(path: Path, space: Space) -> tuple[int, int]:
    """Return the number of rows, and where the tensors begin.

    Raises
    ------
    CorruptStoreError
        If the header is not that of a segment of this space.
    """
    header, begin = read_header(path)
    metadata = header.pop("__metadata__", None)
    wanted = {"format": "pyfeat-segment", "version": "1", "space": space.fingerprint}
    said = {k: metadata.get(k) for k in wanted} if isinstance(metadata, dict) else metadata
    if not _same(said, wanted):
        raise CorruptStoreError(f"{path}, byte 8: the header must hold {wanted}, got {repr(said)}")
    try:
        n = header["order"]["shape"][0]
    except (KeyError, TypeError, IndexError):
        raise CorruptStoreError(f"{path}, byte 8: the header has no tensor `order`") from None
    if type(n) is not int or not 0 <= n <= MAX_ROWS:
        raise CorruptStoreError(f"{path}, byte 8: {repr(n)} is no number of rows")
    if not _same(header, expected_header(n, space)):
        raise CorruptStoreError(f"{path}, byte 8: the header does not fit the space of its folder")
    return n, begin


def damaged_offsets(path: Path, segment: Segment) -> list[tuple[int, str]]:
    """Return (offset, what) of everything in a segment that fails its checksum."""
    header, begin = read_header(path)
    found = []
    for name in ("keys", "order", "crcs"):
        first, last = header[name]["data_offsets"]
        crc = f"{segment.crc_of(begin + first, last - first):08x}"
        if crc != header["__metadata__"].get(f"crc32c_{name}"):
            found.append((begin + first, f"the checksum of tensor `{name}` does not fit"))
    for row in segment.damaged_rows():
        found.append((segment.offset(row), f"row {row} fails its checksum"))
    return found
