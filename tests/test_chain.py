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


def pipeline(store: Path) -> Pipeline:
    return make_pipeline(FeatureExtractor(store=store), StandardScaler(), LogisticHead())


def test_webcam_photos_are_told_apart_and_each_is_computed_once(
    webcam: tuple[list[str], list[str]],
    tmp_path: Path,
    seen: Seen,  # noqa: F811
) -> None:
    paths, labels = webcam
    grid = GridSearchCV(pipeline(tmp_path / "feats"), {"logistichead__C": [0.01, 1.0]}, cv=FOLDS)
    grid.fit(paths, labels)
    assert seen.n == len({Path(p).read_bytes() for p in paths})
    scores = cross_val_score(pipeline(tmp_path / "feats"), paths, labels, cv=FOLDS)
    assert np.mean(scores) >= 0.95
    assert seen.n == len({Path(p).read_bytes() for p in paths})
