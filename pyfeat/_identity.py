"""What makes two inputs the same input and two rows comparable rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pyfeat.errors import SpaceError

KEY_BYTES = 16
ROW_DTYPES = ("float32", "float16", "bfloat16", "int8")


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def content_key(content: bytes | bytearray | memoryview | str, *, view: int = 0) -> bytes:
    """Return the 16-byte key of an input.

    Parameters
    ----------
    content : bytes-like or str
        Bytes of the file, or text (hashed as UTF-8).
    view : int, default=0
        Number of the augmented view; 0 is the plain input.

    Returns
    -------
    key : bytes of length 16
        First 128 bits of BLAKE3 of the content, and of the view number when it is not 0.
    """
    hasher = blake3(content.encode() if isinstance(content, str) else content)
    if view:
        hasher.update(b"\x00view" + view.to_bytes(8, "little"))
    return hasher.digest(length=KEY_BYTES)


def array_key(array: NDArray[Any], *, view: int = 0) -> bytes:
    """Return the 16-byte key of an array: its bytes, shape and dtype (see `content_key`)."""
    array = np.ascontiguousarray(array)
    hasher = blake3(array.reshape(-1).view(np.uint8).data)
    hasher.update(canonical_json([list(array.shape), array.dtype.str]).encode())
    if view:
        hasher.update(b"\x00view" + view.to_bytes(8, "little"))
    return hasher.digest(length=KEY_BYTES)


@dataclass(frozen=True)
class Space:
    """Identity of a row: rows are comparable when their spaces have one fingerprint.

    Parameters
    ----------
    dim : int
        Number of columns of a row.
    dtype : {"float32", "float16", "bfloat16", "int8"}, default="float32"
        Type of the stored numbers; int8 rows have a scale each.
    parts : mapping, optional
        Everything else that changes the numbers: weights, architecture, layer, pooling,
        preprocessing, precision. JSON values only.

    Attributes
    ----------
    fingerprint : str of 64 hexadecimal digits
        BLAKE3 over the canonical JSON of all of the above.
    numpy_dtype : numpy dtype
        Of the rows in memory: float16 where `dtype` is that, else float32.

    Raises
    ------
    ValueError
        If `dim` is not positive or `dtype` is not one of those named.

    Examples
    --------
    >>> Space(2).fingerprint == Space(2).fingerprint
    True
    >>> Space(2).fingerprint == Space(2, parts={"layer": "head"}).fingerprint
    False
    """

    dim: int
    dtype: str = "float32"
    parts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, got {self.dim}")
        if self.dtype not in ROW_DTYPES:
            raise ValueError(f"dtype must be one of {list(ROW_DTYPES)}, got {self.dtype!r}")

    def to_json(self) -> str:
        """Return the canonical JSON that the fingerprint is taken of."""
        return canonical_json({"dim": self.dim, "dtype": self.dtype, "parts": dict(self.parts)})

    @classmethod
    def from_json(cls, text: str) -> Space:
        """Read a space back from `to_json`."""
        value = json.loads(text)
        return cls(value["dim"], value["dtype"], value["parts"])

    @property
    def fingerprint(self) -> str:
        return blake3(self.to_json().encode()).hexdigest()

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype("float16" if self.dtype == "float16" else "float32")

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def describe_difference(self, other: Space) -> str:
        """Return one sentence that names the first part in which two spaces differ."""
        mine = {"dim": self.dim, "dtype": self.dtype, **self.parts}
        theirs = {"dim": other.dim, "dtype": other.dtype, **other.parts}
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                return f"{name} is {mine.get(name)!r} here and {theirs.get(name)!r} there"
        return "they are equal"


def check_same_space(expected: Space, got: Space, name: str) -> None:
    """Raise `SpaceError` unless two spaces have one fingerprint."""
    if expected.fingerprint != got.fingerprint:
        raise SpaceError(
            f"{name} must come from space {expected.fingerprint[:12]}, got space "
            f"{got.fingerprint[:12]}: {expected.describe_difference(got)}"
        )


def are_joint(a: Space, b: Space) -> bool:
    """Return whether two spaces are those of the two towers of one model.

    The part "joint" of such a space says of which model it is ("model") and of which tower
    ("tower"); rows of an image and of a text can then be compared, though nothing else of the
    spaces is equal but the width.
    """
    mine, theirs = a.parts.get("joint"), b.parts.get("joint")
    if mine is None or theirs is None or a.dim != b.dim:
        return False
    return bool(mine["model"] == theirs["model"] and mine["tower"] != theirs["tower"])


def space_of(rows: object) -> Space | None:
    """Return the space that rows say they come from: those of a store view do, arrays do not."""
    space = getattr(rows, "space", None)
    return space if isinstance(space, Space) else None


def check_rows_space(expected: Space | None, rows: object, name: str) -> None:
    """Raise `SpaceError` if rows say that they come from another space than the expected one.

    Rows of the other tower of one model may come too (see `are_joint`).
    """
    got = space_of(rows)
    if expected is not None and got is not None and not are_joint(expected, got):
        check_same_space(expected, got, name)
