"""The whole chain on real photos, in a scikit-learn pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from pyfeat import FeatureExtractor
from pyfeat.heads import LogisticHead
from tests.extract.conftest import Seen, seen  # noqa: F401  a fixture

FOLDS = StratifiedKFold(5, shuffle=True, random_state=0)


@pytest.fixture(scope="module")
def webcam(data_root: Path) -> tuple[list[str], list[str]]:
    paths = sorted((data_root / "office_caltech10_images" / "webcam").rglob("*.jpg"))
    return [str(p) for p in paths], [p.parent.name for p in paths]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the tests of this file."""
    return tmp_path_factory.mktemp("store") / "feats"


def pipeline(store: Path) -> Pipeline:
    return make_pipeline(FeatureExtractor(store=store), StandardScaler(), LogisticHead())


def test_grid_search_sends_each_photo_through_the_backbone_once(
    webcam: tuple[list[str], list[str]],
    store: Path,
    seen: Seen,  # noqa: F811
) -> None:
    paths, labels = webcam
    grid = GridSearchCV(pipeline(store), {"logistichead__C": [0.01, 1.0]}, cv=FOLDS)
    grid.fit(paths, labels)
    unique = len({Path(p).read_bytes() for p in paths})
    assert seen.n == unique


def test_webcam_photos_are_told_apart(webcam: tuple[list[str], list[str]], store: Path) -> None:
    paths, labels = webcam
    assert np.mean(cross_val_score(pipeline(store), paths, labels, cv=FOLDS)) >= 0.95
