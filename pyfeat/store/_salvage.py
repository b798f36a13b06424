"""What is still whole in a damaged file of a store."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from pyfeat._core import Segment
from pyfeat._identity import KEY_BYTES, Space
from pyfeat.errors import CorruptStoreError
from pyfeat.store._layout import row_bytes
from pyfeat.store._segment_file import check_header, expected_header, map_segment

# Headers are padded to whole multiples of this, and take some 500 bytes.
_PADDING = 64
_LONGEST = 4096


def salvage_segment(path: Path, space: Space) -> Segment | None:
    """Map a damaged segment as far as it is there; None where not even its size can be told.

    A damaged header is not needed: how long it was and how many rows follow can be told from the
    size of the file, and the checksum of each row says whether that was right.
    """
    told, guessed = _layouts(path, space)
    # What the header says is taken without a good row too: the tables name what is lost.
    best, most = None, -1 if told else 0
    for n, begin in [*told, *guessed]:
        segment = _map(path, n, begin, space)
        found = -1 if segment is None else len(segment.intact()[1])
        if found > most:
            best, most = segment, found
        if found == n:
            break
    return best


def _map(path: Path, n: int, begin: int, space: Space) -> Segment | None:
    first, last = expected_header(n, space)["rows"]["data_offsets"]
    if n == 0 or path.stat().st_size < begin + first:
        return None
    there = (path.stat().st_size - begin - first) // ((last - first) // n)
    return map_segment(path, n, begin, space, min(n, there))


def _layouts(path: Path, space: Space) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (number of rows, offset of the tensors): as the header says, and as it may be."""
    size, each = path.stat().st_size, KEY_BYTES + 8 + 4 + row_bytes(space)
    begins = range(_PADDING, _LONGEST + 1, _PADDING)
    guessed = [((size - b) // each, b) for b in begins if size > b and (size - b) % each == 0]
    try:
        return [check_header(path, space)], guessed
    except CorruptStoreError:
        return [], guessed


def mend_description(content: bytes, folder: str) -> bytes | None:
    """Return the description of a space with its one wrong byte set right, if that is all.

    The name of the folder is the beginning of its hash, which tells when it is right again.
    """
    text = bytearray(content)
    for i in range(len(text)):
        before = text[i]
        for value in range(256):
            text[i] = value
            if blake3(text).hexdigest(length=len(folder) // 2) == folder:
                return bytes(text)
        text[i] = before
    return None
