"""Jobs from files to predictions, with the default backbone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

from pyfeat import FeatureExtractor, FeatureStore
from pyfeat.errors import SpaceError, StoreWarning
from pyfeat.heads import LogisticHead
from pyfeat.jobs import build_index, extract, fit, predict, search_index
from pyfeat.jobs._predict import extractor_of
from pyfeat.store import read_items, verify
from tests.jobs.conftest import pooled_colours
from tests.towers import save_towers


def test_every_input_is_counted_once(class_folders: Path, tmp_path: Path) -> None:
    shutil.copy(class_folders / "red" / "0.png", class_folders / "red" / "copy.png")
    (class_folders / "red" / "broken.png").write_bytes(b"no image")
    extract(class_folders / "blue", tmp_path / "feats", pooled_colours())
    s = extract(class_folders, tmp_path / "feats", pooled_colours())
    assert (s.total, s.computed, s.stored, len(s.quarantined)) == (14, 6, 7, 1)


def test_damaged_row_is_computed_again(class_folders: Path, tmp_path: Path) -> None:
    # A job took a row that fails its checksum for a hit, and `fit` then failed on it for ever.
    extract(class_folders, tmp_path / "feats", pooled_colours())
    (segment,) = (tmp_path / "feats").glob("spaces/*/*.safetensors")
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    with pytest.warns(StoreWarning, match="the row fails its checksum"):
        s = extract(class_folders, tmp_path / "feats", pooled_colours())
    assert (s.computed, s.stored) == (1, 11)
    fit(tmp_path / "feats", "folder", tmp_path / "model.safetensors", cv=0)


def test_two_processes_may_fill_one_store(class_folders: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pyfeat.jobs import extract;"
        "s = extract(sys.argv[1], sys.argv[2]); sys.exit(s.total != 12)"
    )
    arguments = [sys.executable, "-c", code, str(class_folders), str(tmp_path / "feats")]
    jobs = [subprocess.Popen(arguments) for _ in range(2)]
    assert [job.wait() for job in jobs] == [0, 0]
    assert len(FeatureStore(tmp_path / "feats", mode="r")) == 12
    assert verify(tmp_path / "feats") == []


def test_quarantine_names_path_and_reason(horrors: Path, tmp_path: Path) -> None:
    s = extract(horrors, tmp_path / "feats", pooled_colours())
    reasons = {Path(q.path).name: q.reason for q in s.quarantined}
    assert sorted(reasons) == ["a.jpg", "empty.jpg", "text.jpg", "truncated.jpg", "unreadable.jpg"]
    assert all(reasons.values())
    assert s.computed == 2


def test_file_that_was_mended_leaves_quarantine(class_folders: Path, tmp_path: Path) -> None:
    broken = class_folders / "red" / "0.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:50])
    first = extract(class_folders, tmp_path / "feats", pooled_colours())
    broken.write_bytes(content)
    second = extract(class_folders, tmp_path / "feats", pooled_colours())
    assert [len(first.quarantined), len(second.quarantined)] == [1, 0]
    (space,) = FeatureStore.spaces(tmp_path / "feats")
    assert all(i.reason is None for i in read_items(tmp_path / "feats", space))


def test_same_job_twice_writes_nothing(class_folders: Path, tmp_path: Path) -> None:
    extract(class_folders, tmp_path / "feats", pooled_colours())
    before = sorted(p.name for p in (tmp_path / "feats").rglob("*"))
    extract(class_folders, tmp_path / "feats", pooled_colours())
    assert sorted(p.name for p in (tmp_path / "feats").rglob("*")) == before


def test_interrupted_job_goes_on_where_it_stopped(class_folders: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    fx = pooled_colours().set_params(batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        extract(class_folders, tmp_path / "feats", fx, progress=stop)
    s = extract(class_folders, tmp_path / "feats", fx)
    assert s.stored >= 8
    assert s.stored + s.computed == 12


def test_rows_of_a_job_are_those_of_the_transformer(class_folders: Path, tmp_path: Path) -> None:
    fx = pooled_colours().set_params(deterministic=True)
    extract(class_folders, tmp_path / "feats", fx)
    paths = sorted(str(p) for p in class_folders.rglob("*.png"))
    fresh = fx.transform(paths)
    stored = fx.set_params(store=tmp_path / "feats").transform(paths)
    np.testing.assert_array_equal(stored, fresh)


def test_decode_of_a_job_overrides_that_of_its_extractor(
    class_folders: Path, tmp_path: Path
) -> None:
    fx = pooled_colours()
    exact = extract(class_folders, tmp_path / "feats", fx)
    fast = extract(class_folders, tmp_path / "feats", fx, decode="fast")
    assert fast.space == clone(fx).set_params(decode="fast").get_space().fingerprint
    assert (fast.space != exact.space, fast.computed, fx.decode) == (True, 12, "exact")
    again = extract(class_folders, tmp_path / "feats", clone(fx).set_params(decode="fast"))
    assert (again.space, again.stored) == (fast.space, 12)


def test_fit_learns_the_names_of_folders(class_folders: Path, tmp_path: Path) -> None:
    extract(class_folders, tmp_path / "feats", pooled_colours())
    s = fit(tmp_path / "feats", "folder", tmp_path / "model.safetensors")
    assert s.classes == {"blue": 6, "red": 6}
    assert s.accuracy == 1.0


def test_fit_takes_labels_from_a_table(class_folders: Path, tmp_path: Path) -> None:
    extract(class_folders, tmp_path / "feats", pooled_colours())
    labels = tmp_path / "labels.csv"
    rows = [f"{p},{'a' if i % 2 else 'b'}" for i, p in enumerate(class_folders.rglob("*.png"))]
    labels.write_text("path,label\n" + "\n".join(rows[:10]) + "\n")
    s = fit(tmp_path / "feats", labels, tmp_path / "model.safetensors", cv=0)
    assert (s.classes, s.unlabelled, s.accuracy) == ({"a": 5, "b": 5}, 2, None)


def test_model_of_standardised_rows_takes_plain_rows(class_folders: Path, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    extract(class_folders, tmp_path / "feats", pooled_colours())
    fit(tmp_path / "feats", "folder", tmp_path / "model.safetensors", C=0.1, cv=0)
    paths = sorted(str(p) for p in class_folders.rglob("*.png"))
    X = pooled_colours().transform(paths).astype(np.float64)
    y = [Path(p).parent.name for p in paths]
    want = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000))
    got = LogisticHead.load(tmp_path / "model.safetensors").predict_proba(X)
    np.testing.assert_allclose(got, want.fit(X, y).predict_proba(X), atol=1e-3)


def test_fit_of_one_class_is_refused(class_folders: Path, tmp_path: Path) -> None:
    extract(class_folders / "red", tmp_path / "feats", pooled_colours())
    with pytest.raises(ValueError, match="labels must give at least 2 classes"):
        fit(tmp_path / "feats", "folder", tmp_path / "model.safetensors")


def test_model_of_a_module_says_how_to_predict(class_folders: Path, tmp_path: Path) -> None:
    extract(class_folders, tmp_path / "feats", pooled_colours())
    fit(tmp_path / "feats", "folder", tmp_path / "model.safetensors", cv=0)
    with pytest.raises(ValueError, match="backbone with a name, got one from a module"):
        predict(tmp_path / "model.safetensors", class_folders)


@pytest.fixture
def trained(class_folders: Path, tmp_path: Path) -> Path:
    """A store and a model of the default backbone."""
    extract(class_folders, tmp_path / "feats")
    fit(tmp_path / "feats", "folder", tmp_path / "model.safetensors", cv=0)
    return tmp_path


def test_default_backbone_predicts_its_training_photos(trained: Path) -> None:
    s = predict(trained / "model.safetensors", trained / "photos", store=trained / "feats")
    assert all(p.label == Path(p.path).parent.name for p in s.predictions)
    assert (len(s.predictions), s.extraction.computed) == (12, 0)


def test_prediction_without_store_gives_the_same(trained: Path) -> None:
    model = trained / "model.safetensors"
    with_store = predict(model, trained / "photos", store=trained / "feats").predictions
    without = predict(model, trained / "photos").predictions
    assert [(p.path, p.label) for p in with_store] == [(p.path, p.label) for p in without]


def test_model_refuses_a_backbone_that_changed(trained: Path) -> None:
    head = LogisticHead.load(trained / "model.safetensors")
    assert head.space_ is not None
    parts = {**head.space_.parts, "weights": "0" * 64}
    head.space_ = type(head.space_)(head.space_.dim, head.space_.dtype, parts)
    head.save(trained / "other.safetensors")
    with pytest.raises(SpaceError, match="weights is '0000"):
        predict(trained / "other.safetensors", trained / "photos")


def test_model_brings_the_way_its_files_were_decoded(class_folders: Path, tmp_path: Path) -> None:
    extract(class_folders, tmp_path / "feats", decode="fast")
    fit(tmp_path / "feats", "folder", tmp_path / "model.safetensors", cv=0)
    s = predict(tmp_path / "model.safetensors", class_folders, store=tmp_path / "feats")
    assert (len(s.predictions), s.extraction.computed) == (12, 0)


def test_nearest_image_to_an_image_is_itself(trained: Path) -> None:
    assert build_index(trained / "feats", trained / "photos.index") == 12
    query = trained / "photos" / "red" / "3.png"
    found, _ = search_index(trained / "photos.index", query, k=6)
    assert found[0].path == str(query)
    assert found[0].score == pytest.approx(1, abs=1e-5)
    assert [Path(n.path).parent.name for n in found] == ["red"] * 6


def test_store_is_clean_after_all_of_it(trained: Path) -> None:
    assert verify(trained / "feats") == []


def test_extractor_of_a_space_reads_videos_as_before(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_towers(tmp_path, "clip")
    pooled = FeatureExtractor(f"hf/{tmp_path}", video="max", frames=3, device="cpu")
    again = extractor_of(pooled.get_space(), tmp_path)
    assert (again.video, again.frames) == ("max", 3)
    assert again.get_space().fingerprint == pooled.get_space().fingerprint
