"""Rows of bfloat16 and int8: docs/store_format.md and the code say the same, byte for byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from blake3 import blake3

from pyfeat import FeatureStore, Space
from pyfeat.store import verify

from .conftest import some_keys
from .test_format import DOCUMENT, KEY, crc_bit_by_bit, document_bytes

DTYPES = ["bfloat16", "int8"]
# [1, -2]: a bfloat16 is the upper half of a float32; the largest code, 127, stands for 2, and 1 is
# then 63.5, which goes to the even neighbour.
SCALE = struct.pack("<f", 2 / 127)
ITEMS = {"bfloat16": bytes.fromhex("803f 00c0"), "int8": struct.pack("<2b", 64, -127)}
ROW = {"bfloat16": ITEMS["bfloat16"], "int8": SCALE + ITEMS["int8"]}
READ = {"bfloat16": [1.0, -2.0], "int8": [np.float32(2 / 127) * np.float32(64), -2.0]}


def space_json(dtype: str) -> bytes:
    return f'{{"dim":2,"dtype":"{dtype}","parts":{{}}}}'.encode()


def tail_by_hand(dtype: str) -> bytes:
    fingerprint = blake3(space_json(dtype)).digest()
    head = b"\x93PFTAIL\n" + struct.pack("<II", 1, len(ROW[dtype])) + fingerprint + bytes(12)
    parts = (head, KEY + ROW[dtype])
    return b"".join(part + struct.pack("<I", crc_bit_by_bit(part)) for part in parts)


def segment_by_hand(dtype: str) -> bytes:
    crcs = struct.pack("<I", crc_bit_by_bit(KEY + ROW[dtype]))
    tensors = {
        "keys": ("U8", [1, 16], KEY),
        "order": ("U64", [1], struct.pack("<Q", 0)),
        "crcs": ("U32", [1], crcs),
        **({"scales": ("F32", [1], SCALE)} if dtype == "int8" else {}),
        "rows": ({"bfloat16": "BF16", "int8": "I8"}[dtype], [1, 2], ITEMS[dtype]),
    }
    metadata = {"format": "pyfeat-segment", "version": "1"}
    metadata["space"] = blake3(space_json(dtype)).hexdigest()
    for name in ("keys", "order", "crcs"):
        metadata[f"crc32c_{name}"] = f"{crc_bit_by_bit(tensors[name][2]):08x}"
    header, begin = {"__metadata__": metadata}, 0
    for name, (kind, shape, content) in tensors.items():
        end = begin + len(content)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values())


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, dtype: str) -> Path:
    """An empty store made by hand."""
    (tmp_path / "pyfeat-store.json").write_text('{"format":"pyfeat-store","version":1}')
    path = tmp_path / "spaces" / blake3(space_json(dtype)).hexdigest()[:32]
    path.mkdir(parents=True)
    (path / "space.json").write_bytes(space_json(dtype))
    return path


def test_document_names_the_fingerprint(dtype: str) -> None:
    assert Space(2, dtype).fingerprint == blake3(space_json(dtype)).hexdigest()
    assert Space(2, dtype).fingerprint in DOCUMENT


def test_document_shows_the_tails_built_by_hand(dtype: str) -> None:
    assert document_bytes(f"The tail of the same row as {dtype}") == tail_by_hand(dtype)


def test_document_shows_the_segment_of_int8_built_by_hand() -> None:
    assert document_bytes("The int8 row sealed") == segment_by_hand("int8")


def test_tail_built_by_hand_is_read(folder: Path, dtype: str) -> None:
    (folder / "0000000000000001-00000000.tail").write_bytes(tail_by_hand(dtype))
    got = FeatureStore(folder.parents[1], mode="r").get([KEY])
    np.testing.assert_array_equal(got, [READ[dtype]])


def test_segment_built_by_hand_is_read(folder: Path, dtype: str) -> None:
    path = folder / "0000000000000001-00000000.safetensors"
    path.write_bytes(segment_by_hand(dtype))
    got = FeatureStore(folder.parents[1], mode="r").get([KEY])
    np.testing.assert_array_equal(got, [READ[dtype]])
    assert verify(folder.parents[1]) == []


def test_written_tail_and_segment_are_those_built_by_hand(tmp_path: Path, dtype: str) -> None:
    with FeatureStore(tmp_path, Space(2, dtype)) as store:
        store.put([KEY], np.array([[1, -2]], np.float32))
        store.flush()
        (tail,) = store.files()
        assert Path(tail).read_bytes() == tail_by_hand(dtype)
    (segment,) = store.files()
    assert Path(segment).read_bytes() == segment_by_hand(dtype)


@pytest.fixture
def sealed(tmp_path: Path, dtype: str) -> FeatureStore:
    with FeatureStore(tmp_path, Space(5, dtype)) as store:
        store.put(some_keys(30), np.random.default_rng(1).standard_normal((30, 5)))
    return store


def in_key_order(tensors: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    wanted = some_keys(30)
    order = np.lexsort(wanted.T[::-1])
    np.testing.assert_array_equal(tensors["keys"], wanted[order])
    return rows[tensors["order"].astype(int)][np.argsort(order)]


@pytest.mark.parametrize("dtype", ["int8"])
def test_int8_segment_is_read_by_safetensors_and_numpy(sealed: FeatureStore) -> None:
    tensors = safetensors.numpy.load_file(*sealed.files())
    rows = tensors["scales"][:, None] * tensors["rows"].astype(np.float32)
    np.testing.assert_array_equal(in_key_order(tensors, rows), sealed.get(some_keys(30)))


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_bfloat16_segment_is_read_by_safetensors_and_torch(sealed: FeatureStore) -> None:
    tensors = safetensors.torch.load_file(*sealed.files())
    rows = tensors.pop("rows").float().numpy()
    arrays = {name: t.numpy() for name, t in tensors.items()}
    np.testing.assert_array_equal(in_key_order(arrays, rows), sealed.get(some_keys(30)))


def test_header_of_another_dtype_is_named(folder: Path, dtype: str) -> None:
    content = segment_by_hand(dtype)
    for mine, other in ((b'"BF16"', b'"F16" '), (b'"I8"', b'"U8"')):
        content = content.replace(mine, other)
    (folder / "0000000000000001-00000000.safetensors").write_bytes(content)
    (damage,) = verify(folder.parents[1])
    assert "the header does not fit the space" in damage.reason
