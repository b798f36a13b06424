"""Model files: safetensors with JSON, whole or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from pyfeat import _core
from pyfeat._estimator_file import load_estimator
from pyfeat._model_file import load_model, replace_file, save_model


def test_arrays_and_facts_come_back(tmp_path: Path) -> None:
    arrays = {
        "numbers": np.arange(6.0).reshape(2, 3),
        "flags": np.array([True, False]),
        "names": np.array(["Katze", "犬"]),
        "column_major": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    save_model(tmp_path / "m", "Thing", arrays, {"C": 1.5, "nested": {"a": [1, None]}})
    got, facts = load_model(tmp_path / "m", "Thing")
    assert facts == {"C": 1.5, "nested": {"a": [1, None]}}
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == array.dtype


def test_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="classes must hold numbers, bools or text"):
        save_model(tmp_path / "m", "Thing", {"classes": np.array([object()])}, {})


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path must be a model file, got "):
        load_model(tmp_path / "m", "Thing")


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"something else entirely")
    with pytest.raises(ValueError, match="path must be a pyfeat model"):
        load_model(tmp_path / "m", "Thing")


def test_another_kind_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "m", "Other", {"a": np.zeros(1)}, {})
    with pytest.raises(ValueError, match=r"must hold a Thing \(format 1\), got Other"):
        load_model(tmp_path / "m", "Thing")


@pytest.mark.parametrize(
    ("metadata", "got"),
    [
        ([1, 2], "metadata is a list"),
        ("text", "metadata is a str"),
        (None, "metadata is a NoneType"),
        ({"format": 1, "kind": "Thing", "facts": {}}, "texts are missing"),
        ({"format": 1, "kind": "Thing", "texts": {}}, "facts are missing"),
        ({"format": 1, "kind": "Thing", "texts": [], "facts": {}}, "texts are missing"),
    ],
    ids=["list", "text", "null", "no texts", "no facts", "texts of another type"],
)
def test_metadata_of_another_shape_is_refused(tmp_path: Path, metadata: object, got: str) -> None:
    # They raised AttributeError and KeyError.
    blob = save({"a": np.zeros(1)}, metadata={"pyfeat": json.dumps(metadata)})
    (tmp_path / "m").write_bytes(blob)
    with pytest.raises(ValueError, match=f"path must be a pyfeat model, got .*: {got}"):
        load_model(tmp_path / "m", "Thing")


def test_a_model_that_is_no_estimator_is_refused(tmp_path: Path) -> None:
    # It raised KeyError.
    save_model(tmp_path / "m", "Nothing", {"a": np.zeros(1)}, {"params": {}, "more": {}})
    got = "feature_names, n_features, space missing"
    with pytest.raises(ValueError, match=f"path must hold a saved Nothing, got .*: {got}"):
        load_estimator(tmp_path / "m", type("Nothing", (), {}))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_failed_write_leaves_the_old_file(tmp_path: Path, n: int) -> None:
    replace_file(tmp_path / "m", b"old")
    _core.fail_operation(n, errno.ENOSPC)
    try:
        with pytest.raises(OSError, match=r"No space left on device: '.*/m'"):
            replace_file(tmp_path / "m", b"new")
    finally:
        _core.fail_operation(0, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m").read_bytes() == b"old"
