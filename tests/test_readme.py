"""The Python of the README runs as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.jobs.conftest import class_folders  # noqa: F401  a fixture

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def block_with(name: str) -> str:
    (block,) = [b for b in BLOCKS if name in b]
    return block


def test_pipeline_example_predicts(
    class_folders: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = sorted(str(p) for p in class_folders.rglob("*.png"))
    shutil.copy(paths[0], "new.jpg")
    names: dict[str, Any] = {"paths": paths, "labels": [Path(p).parent.name for p in paths]}
    exec(block_with("GridSearchCV"), names)
    assert names["search"].predict(["new.jpg"]).tolist() == [Path(paths[0]).parent.name]


def test_alignment_example_maps_source_rows(rng: np.random.Generator) -> None:
    X = rng.standard_normal((40, 4))
    names: dict[str, Any] = {
        "X": X,
        "sample_domain": np.repeat([1, -1], 20),
        "X_source": X[:20],
        "X_target": X[20:],
    }
    exec(block_with("CORAL"), names)
    assert names["mapped"].shape == (20, 4)


def test_readme_names_only_commands_that_exist() -> None:
    from pyfeat.cli import (  # noqa: F401  they register their commands
        _app,
        _data,
        _extract,
        _model,
        _plan,
        _store,
        _tools,
    )

    known = {c.name for c in _app.app.registered_commands}
    known |= {g.name for g in _app.app.registered_groups}
    assert set(re.findall(r"^    pyfeat (\w+)", README, flags=re.MULTILINE)) <= known
