"""What the commands take as inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.files import png, write_tar

from .conftest import Run, json_of

PHOTOS = {f"{folder}/{i}.png": png(i) for folder in ("cat", "dog") for i in range(2)}


def test_shards_are_extracted_fitted_and_predicted(tmp_path: Path, run: Run) -> None:
    for i, name in enumerate(("0.tar", "1.tar")):
        write_tar(tmp_path / name, dict(list(PHOTOS.items())[2 * i : 2 * i + 2]))
    shards = f"{tmp_path}/{{0..1}}.tar"
    store, model = tmp_path / "feats", tmp_path / "model.safetensors"
    assert run("extract", shards, "--store", store).exit_code == 0
    assert run("fit", "--store", store, "--labels", "folder", "--out", model).exit_code == 0
    predicted = json_of(run("predict", shards, "--model", model, "--store", store, "--json"))
    assert [p["path"] for p in predicted["predictions"]] == [
        f"{tmp_path}/{i}.tar::{name}" for i, name in zip([0, 0, 1, 1], PHOTOS, strict=True)
    ]


def test_cut_archive_ends_with_3_and_its_reason(tmp_path: Path, run: Run) -> None:
    path = write_tar(tmp_path / "t.tar", PHOTOS)
    path.write_bytes(path.read_bytes()[:-10240])
    result = run("extract", path, "--store", tmp_path / "feats")
    assert result.exit_code == 3
    assert f"not read: {path}: " in result.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{0..1}.tar", "inputs must exist, got"),
        ("memory://nowhere", "inputs must exist, got 'memory://nowhere'"),
        ("memory://nowhere/a.tar", "inputs must exist, got 'memory://nowhere/a.tar'"),
        ("nosuch://a", "inputs must be at an address of a known kind, got 'nosuch://a'"),
    ],
)
def test_what_is_not_there_is_wrong_usage(
    tmp_path: Path, run: Run, given: str, message: str
) -> None:
    pytest.importorskip("fsspec")
    result = run("extract", given, "--store", tmp_path / "feats")
    assert result.exit_code == 2
    assert message in result.stderr
