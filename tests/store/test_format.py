"""docs/store_format.md, the header files and the code say the same, byte for byte."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from pyfeat import FeatureStore, Space
from pyfeat._core import crc32c
from pyfeat.errors import StoreWarning

DOCUMENT = (Path(__file__).parents[2] / "docs" / "store_format.md").read_text()
KEY = bytes(range(16))
ROW = struct.pack("<2f", 1.0, -2.0)
SPACE_JSON = b'{"dim":2,"dtype":"float32","parts":{}}'
FINGERPRINT = blake3(SPACE_JSON)


def crc_bit_by_bit(data: bytes) -> int:
    """CRC32C straight from its polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def tail_by_hand() -> bytes:
    head = b"\x93PFTAIL\n" + struct.pack("<II", 1, 8) + FINGERPRINT.digest() + bytes(12)
    record = KEY + ROW
    return b"".join(part + struct.pack("<I", crc_bit_by_bit(part)) for part in (head, record))


def segment_by_hand(n: float = 1) -> bytes:
    """Return a segment of one row, whose header says that there are n."""
    order = struct.pack("<Q", 0)
    crcs = struct.pack("<I", crc_bit_by_bit(KEY + ROW))
    metadata = {
        "format": "pyfeat-segment",
        "version": "1",
        "space": FINGERPRINT.hexdigest(),
        "crc32c_keys": f"{crc_bit_by_bit(KEY):08x}",
        "crc32c_order": f"{crc_bit_by_bit(order):08x}",
        "crc32c_crcs": f"{crc_bit_by_bit(crcs):08x}",
    }
    header = {
        "__metadata__": metadata,
        "keys": {"dtype": "U8", "shape": [n, 16], "data_offsets": [0, 16 * n]},
        "order": {"dtype": "U64", "shape": [n], "data_offsets": [16 * n, 24 * n]},
        "crcs": {"dtype": "U32", "shape": [n], "data_offsets": [24 * n, 28 * n]},
        "rows": {"dtype": "F32", "shape": [n, 2], "data_offsets": [28 * n, 36 * n]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text + KEY + order + crcs + ROW


def document_bytes(title: str) -> bytes:
    """Return the bytes of a hex listing: `offset  hex pairs` lines below a line with `title`."""
    listing = DOCUMENT.split(title, 1)[1].split("\n\n", 2)[1]
    pairs = [re.sub(r"^ +[0-9a-f]{4}  ", "", line) for line in listing.splitlines()]
    return bytes.fromhex("".join(p.split("|")[0] for p in pairs))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty store made by hand."""
    (tmp_path / "pyfeat-store.json").write_text('{"format":"pyfeat-store","version":1}')
    path = tmp_path / "spaces" / FINGERPRINT.hexdigest()[:32]
    path.mkdir(parents=True)
    (path / "space.json").write_bytes(SPACE_JSON)
    return path


def test_fingerprint_is_blake3_of_canonical_json() -> None:
    assert Space(2).fingerprint == FINGERPRINT.hexdigest()
    assert FINGERPRINT.hexdigest() in DOCUMENT


def test_native_crc_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # check value of the CRC catalogue
    data = bytes(range(251)) * 3
    for n in range(0, len(data), 37):
        assert crc32c(data[n:]) == crc_bit_by_bit(data[n:])


def test_native_crc_joins_its_stretches() -> None:
    # Up to 768 bytes a length is cut into three stretches of its own size, then into full ones.
    data = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    for n in (*range(88, 200), 767, 768, 769, 784, 863, 864, 865, 1535, 1536, 1552, 4000):
        assert crc32c(data[:n]) == crc_bit_by_bit(data[:n]), n


def test_crc_goes_on_where_it_stopped() -> None:
    assert crc32c(b"456789", crc32c(b"123")) == crc32c(b"123456789")


def test_document_shows_the_tail_built_by_hand() -> None:
    assert document_bytes("A tail with one record") == tail_by_hand()


def test_document_shows_the_segment_built_by_hand() -> None:
    assert document_bytes("The same row sealed") == segment_by_hand()


def test_tail_built_by_hand_is_read(folder: Path) -> None:
    (folder / "0000000000000001-00000000.tail").write_bytes(tail_by_hand())
    got = FeatureStore(folder.parents[1], mode="r").get([KEY])
    np.testing.assert_array_equal(got, [[1.0, -2.0]])


def test_segment_built_by_hand_is_read(folder: Path) -> None:
    (folder / "0000000000000001-00000000.safetensors").write_bytes(segment_by_hand())
    got = FeatureStore(folder.parents[1], mode="r").get([KEY])
    np.testing.assert_array_equal(got, [[1.0, -2.0]])


@pytest.mark.parametrize("n", [-1, 1 << 60, float("inf")])
def test_segment_of_an_impossible_number_of_rows_is_left_out(folder: Path, n: float) -> None:
    # A negative or huge number went on to the native module, infinity to int(): the store did not
    # open at all.
    (folder / "0000000000000001-00000000.safetensors").write_bytes(segment_by_hand(n))
    with pytest.warns(StoreWarning, match="a segment is left out: .* is no number of rows"):
        FeatureStore(folder.parents[1], mode="r")


def test_written_tail_and_segment_are_those_built_by_hand(tmp_path: Path) -> None:
    with FeatureStore(tmp_path, Space(2)) as store:
        store.put([KEY], np.array([[1, -2]], np.float32))
        store.flush()
        (tail,) = store.files()
        assert Path(tail).read_bytes() == tail_by_hand()
    (segment,) = store.files()
    assert Path(segment).read_bytes() == segment_by_hand()
