"""Keys and fingerprints: equal for equal things, different for different ones, stable over time."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3

from pyfeat import Space
from pyfeat._identity import are_joint, array_key, check_same_space, content_key
from pyfeat.errors import SpaceError


def test_key_is_the_start_of_blake3_of_the_content() -> None:
    assert content_key(b"photo") == blake3(b"photo").digest()[:16]


def test_text_is_hashed_as_utf8() -> None:
    assert content_key("naïve") == content_key("naïve".encode())


def test_view_number_changes_the_key() -> None:
    assert len({content_key(b"photo", view=v) for v in range(5)}) == 5


def test_array_key_depends_on_shape_and_dtype() -> None:
    a = np.zeros((2, 6), np.uint8)
    keys = {array_key(x) for x in (a, a.reshape(3, 4), a.view(np.int8), a.view(np.uint16))}
    assert len(keys) == 4


def test_array_key_does_not_depend_on_strides() -> None:
    a = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert array_key(a.T) == array_key(np.ascontiguousarray(a.T))


def test_fingerprint_does_not_depend_on_the_order_of_parts() -> None:
    one = Space(3, parts={"a": 1, "b": [2, 3]})
    other = Space(3, parts={"b": [2, 3], "a": 1})
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    "other",
    [Space(4), Space(3, "float16"), Space(3, parts={"layer": 2})],
    ids=["dim", "dtype", "parts"],
)
def test_fingerprint_depends_on_every_field(other: Space) -> None:
    assert Space(3).fingerprint != other.fingerprint


def test_space_survives_json() -> None:
    space = Space(3, "float16", {"weights": "ab", "preprocessing": {"mean": [0.1, 0.2, 0.3]}})
    assert Space.from_json(space.to_json()) == space


def test_different_spaces_are_refused_with_the_first_difference() -> None:
    with pytest.raises(SpaceError, match=r"X must come from space .*: layer is 1 here and 2 there"):
        check_same_space(Space(3, parts={"layer": 1}), Space(3, parts={"layer": 2}), "X")


@pytest.mark.parametrize(("dim", "dtype"), [(0, "float32"), (3, "int4")])
def test_impossible_space_is_refused(dim: int, dtype: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        Space(dim, dtype)


def tower(name: str, model: str = "m", dim: int = 2) -> Space:
    return Space(dim, parts={"joint": {"model": model, "tower": name}, "source": name})


def test_two_towers_of_one_model_are_joint() -> None:
    assert are_joint(tower("image"), tower("text"))


@pytest.mark.parametrize(
    "other",
    [tower("image"), tower("text", model="n"), tower("text", dim=3), Space(2)],
    ids=["same tower", "other model", "other width", "no tower"],
)
def test_other_spaces_are_not_joint(other: Space) -> None:
    assert not are_joint(tower("image"), other)
