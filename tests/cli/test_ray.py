"""`pyfeat extract --runner ray`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pyfeat import FeatureStore

from .conftest import Run


def test_cluster_that_is_not_there_is_an_error_of_one_line(
    run: Run, class_folders: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", exc_type=ImportError)
    store = tmp_path / "feats"
    found = run("extract", class_folders, "--store", store, "--runner=ray", "--address=127.0.0.1:1")
    assert found.exit_code == 1
    assert found.stderr.startswith("pyfeat: address must be that of a running Ray cluster, got")
    assert found.stderr.count("\n") == 1


@pytest.mark.slow
def test_ray_writes_nothing_beside_the_answer(class_folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", exc_type=ImportError)
    store = tmp_path / "feats"
    main = [sys.executable, "-c", "from pyfeat.cli import main; main()"]
    arguments = ["extract", str(class_folders), "--store", str(store), "--engine", "ray", "--json"]
    done = subprocess.run([*main, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["computed"] == 12
    assert len(FeatureStore(store, mode="r")) == 12
