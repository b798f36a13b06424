"""CORAL against its formula, the published numbers, and its own contract."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from scipy.io import loadmat
from scipy.linalg import fractional_matrix_power
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyfeat._identity import Space
from pyfeat.align import CORAL, coral
from pyfeat.errors import DomainWarning, SpaceError
from tests.rows_on_disk import RowsOnDisk

EPS = float(np.finfo(np.float64).eps)


# The checks know of no domains: nothing to align is what they ask for.
@pytest.mark.filterwarnings("ignore::pyfeat.errors.DomainWarning")
@parametrize_with_checks([CORAL(), CORAL(align_mean=True)])
def test_follows_the_scikit_learn_contract(estimator, check):
    check(estimator)


def two_domains(rng: np.random.Generator, n: int = 200, d: int = 4):
    """Return rows of a source and a target domain, with means far from 0."""
    source = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 3.0
    target = rng.standard_normal((n + 50, d)) @ rng.standard_normal((d, d)) - 2.0
    return source, target


def stacked(source, target):
    """Return the rows of both domains and their `sample_domain`, shuffled."""
    X = np.concatenate([source, target])
    domain = np.r_[np.ones(len(source), int), -np.ones(len(target), int)]
    order = np.random.default_rng(2).permutation(len(X))
    return X[order], domain[order]


def condition(*rows) -> float:
    return max(float(np.linalg.cond(np.cov(r.T))) for r in rows)


# --- the map ---------------------------------------------------------------------------------


def test_mapped_source_rows_have_the_covariance_of_the_target(rng):
    source, target = two_domains(rng)
    mapped = source @ coral(source, target, regularization=0.0).map
    bound = 100 * EPS * condition(source, target) * np.abs(np.cov(target.T)).max()
    assert np.abs(np.cov(mapped.T) - np.cov(target.T)).max() < bound


@pytest.mark.parametrize("regularization", [0.1, 1.0])
def test_map_is_the_formula(rng, regularization):
    source, target = two_domains(rng)
    cs, ct = (np.cov(r.T) + regularization * np.eye(4) for r in (source, target))
    expected = fractional_matrix_power(cs, -0.5) @ fractional_matrix_power(ct, 0.5)
    bound = 100 * EPS * condition(source, target) * np.abs(expected).max()
    found = coral(source, target, regularization=regularization).map
    assert np.abs(found - expected).max() < bound


def test_one_domain_twice_maps_to_itself(rng):
    source, _ = two_domains(rng)
    found = coral(source, source).map
    assert np.abs(found - np.eye(4)).max() < 100 * EPS * condition(source)


def test_a_huge_regularization_maps_nothing(rng):
    source, target = two_domains(rng)
    largest = max(np.abs(np.cov(r.T)).max() for r in (source, target))
    found = coral(source, target, regularization=1e9).map
    assert np.abs(found - np.eye(4)).max() < 4 * largest / 1e9


def test_a_direction_without_variance_maps_to_zero(rng):
    source, target = two_domains(rng)
    source[:, 2] = 7.0
    assert not coral(source, target, regularization=0.0).map[2].any()


def test_float32_rows_lose_no_more_than_float32(rng):
    source, target = (r.astype(np.float32) for r in two_domains(rng))
    exact = coral(source.astype(float), target.astype(float)).map
    bound = 100 * float(np.finfo(np.float32).eps) * condition(source, target)
    assert np.abs(coral(source, target).map - exact).max() < bound * np.abs(exact).max()


def test_tensors_give_tensors(rng):
    source, target = (torch.from_numpy(r) for r in two_domains(rng))
    assert isinstance(coral(source, target).map, torch.Tensor)


def test_views_give_what_their_rows_give(rng, tmp_path):
    source, target = two_domains(rng)
    views = (RowsOnDisk(tmp_path / f"{len(r)}.npy", r) for r in (source, target))
    expected = coral(source, target).map
    bound = 1e3 * EPS * condition(source, target) * np.abs(expected).max()
    assert np.abs(coral(*views).map - expected).max() < bound


def test_other_widths_are_refused(rng):
    with pytest.raises(ValueError, match="X_target must have 3 columns like X_source, got 2"):
        coral(np.ones((4, 3)), np.ones((4, 2)))


def test_a_negative_regularization_is_refused():
    with pytest.raises(ValueError, match="regularization must be at least 0 and finite, got -1"):
        coral(np.ones((4, 3)), np.ones((4, 3)), regularization=-1)


def test_an_infinite_regularization_is_refused(rng):
    # Bug: the map was full of NaN.
    X, domain = stacked(*two_domains(rng))
    with pytest.raises(ValueError, match="regularization must be at least 0 and finite, got inf"):
        CORAL(regularization=np.inf).fit(X, sample_domain=domain)


def test_a_regularization_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="regularization must be a number, got None"):
        coral(np.ones((4, 3)), np.ones((4, 3)), regularization=None)


def test_rows_too_large_to_square_are_refused(rng):
    # Bug: a LinAlgError of the eigenvectors.
    source, target = two_domains(rng)
    with pytest.raises(ValueError, match="X_target must hold numbers whose squares add up in"):
        coral(source, target * 1e200)


# --- which rows are mapped -------------------------------------------------------------------


def test_the_estimator_maps_with_the_function(rng):
    source, target = two_domains(rng)
    X, domain = stacked(source, target)
    mapped = CORAL().fit_transform(X, sample_domain=domain)
    expected = X[domain > 0] @ coral(X[domain > 0], X[domain < 0]).map
    np.testing.assert_allclose(mapped[domain > 0], expected, atol=1e3 * EPS)


def test_target_rows_stay(rng):
    X, domain = stacked(*two_domains(rng))
    mapped = CORAL().fit_transform(X, sample_domain=domain)
    np.testing.assert_array_equal(mapped[domain < 0], X[domain < 0])


def test_rows_without_a_domain_are_target_rows(rng):
    X, domain = stacked(*two_domains(rng))
    np.testing.assert_array_equal(CORAL().fit(X, sample_domain=domain).transform(X), X)


def test_new_source_rows_are_mapped_when_they_say_so(rng):
    X, domain = stacked(*two_domains(rng))
    aligner = CORAL().fit(X, sample_domain=domain)
    mapped = aligner.transform(X[:7], sample_domain=np.ones(7, int))
    np.testing.assert_allclose(mapped, X[:7] @ aligner.map_, atol=1e3 * EPS)


def test_one_domain_is_that_of_every_row(rng):
    # Bug: a ValueError about shape ().
    source, target = two_domains(rng)
    aligner = CORAL().fit(source, X_target=target)
    mapped = aligner.transform(source, sample_domain=1)
    np.testing.assert_allclose(mapped, source @ aligner.map_, atol=1e3 * EPS)


def test_several_sources_and_targets_are_pooled(rng):
    X, domain = stacked(*two_domains(rng))
    several = domain * rng.integers(1, 4, size=len(domain))
    pooled, split = (CORAL().fit(X, sample_domain=s) for s in (domain, several))
    np.testing.assert_array_equal(pooled.map_, split.map_)


@pytest.mark.parametrize("mask", [-1, np.nan], ids=["classes", "numbers"])
def test_masked_labels_say_which_rows_are_target(rng, mask):
    X, domain = stacked(*two_domains(rng))
    labels = rng.integers(0, 3, size=len(X)) + (0.5 if np.isnan(mask) else 0)
    by_label = CORAL().fit_transform(X, np.where(domain > 0, labels, mask))
    np.testing.assert_array_equal(by_label, CORAL().fit_transform(X, sample_domain=domain))


def test_X_target_makes_every_row_of_X_source(rng):
    source, target = two_domains(rng)
    aligner = CORAL()
    mapped = aligner.fit_transform(source, X_target=target)
    expected = source @ coral(source, target).map
    np.testing.assert_allclose(mapped, expected, atol=1e3 * EPS)


@pytest.mark.parametrize("domain", [1, -1], ids=["source", "target"])
def test_one_domain_alone_is_warned_about_and_left_alone(rng, domain):
    X, _ = two_domains(rng)
    with pytest.warns(DomainWarning, match="nothing is mapped"):
        mapped = CORAL().fit_transform(X, sample_domain=np.full(len(X), domain))
    np.testing.assert_array_equal(mapped, X)


def test_no_word_of_domains_is_warned_about(rng):
    X, _ = two_domains(rng)
    with pytest.warns(DomainWarning):
        aligner = CORAL().fit(X, np.arange(len(X)) % 3)
    np.testing.assert_array_equal(aligner.map_, np.eye(4))


def test_both_ways_at_once_are_refused(rng):
    X, _ = two_domains(rng)
    with pytest.raises(ValueError, match="X_target must be left out when sample_domain is given"):
        CORAL().fit(X, sample_domain=np.ones(len(X), int), X_target=X)


def test_the_mean_is_only_turned_by_default(rng):
    source, target = two_domains(rng)
    aligner = CORAL()
    mapped = aligner.fit_transform(source, X_target=target)
    np.testing.assert_allclose(
        mapped.mean(0), source.mean(0) @ aligner.map_, atol=len(source) * 10 * EPS
    )


def test_the_mean_moves_on_request(rng):
    source, target = two_domains(rng)
    mapped = CORAL(align_mean=True).fit_transform(source, X_target=target)
    np.testing.assert_allclose(mapped.mean(0), target.mean(0), atol=len(source) * 100 * EPS)


# --- pipelines -------------------------------------------------------------------------------


def test_a_pipeline_hands_the_domain_on_without_routing(rng):
    X, domain = stacked(*two_domains(rng))
    y = (X[:, 0] > 0).astype(int)
    pipe = make_pipeline(CORAL(), SVC()).fit(X, y, coral__sample_domain=domain)
    np.testing.assert_array_equal(pipe[0].map_, CORAL().fit(X, sample_domain=domain).map_)


def test_a_pipeline_hands_the_domain_on_with_routing(rng):
    X, domain = stacked(*two_domains(rng))
    y = (X[:, 0] > 0).astype(int)
    with sklearn.config_context(enable_metadata_routing=True):
        pipe = make_pipeline(CORAL(), SVC()).fit(X, y, sample_domain=domain)
    np.testing.assert_array_equal(pipe[0].map_, CORAL().fit(X, sample_domain=domain).map_)


def test_the_request_can_be_changed():
    with sklearn.config_context(enable_metadata_routing=True):
        aligner = CORAL().set_fit_request(sample_domain=False, X_target=True)
    assert aligner.get_metadata_routing().fit.requests == {
        "sample_domain": False,
        "X_target": True,
    }


def test_a_pipeline_trains_its_last_step_on_mapped_rows(rng):
    source, target = two_domains(rng)
    y = (source[:, 0] > 3).astype(int)
    pipe = make_pipeline(CORAL(), SVC(kernel="linear"))
    pipe.fit(source, y, coral__X_target=target)
    by_hand = SVC(kernel="linear").fit(source @ coral(source, target).map, y)
    np.testing.assert_allclose(
        pipe.decision_function(target), by_hand.decision_function(target), rtol=1e-3, atol=1e-3
    )


def test_column_names_come_out_as_they_went_in(rng):
    pd = pytest.importorskip("pandas")
    X, domain = stacked(*two_domains(rng))
    frame = pd.DataFrame(X, columns=list("abcd"))
    out = CORAL().set_output(transform="pandas").fit_transform(frame, sample_domain=domain)
    assert list(out.columns) == list("abcd")


def test_a_clone_is_not_fitted(rng):
    X, domain = stacked(*two_domains(rng))
    with pytest.raises(NotFittedError):
        clone(CORAL().fit(X, sample_domain=domain)).transform(X)


# --- kinds of rows ---------------------------------------------------------------------------


def test_tensor_rows_come_back_as_tensors(rng):
    X, domain = stacked(*two_domains(rng))
    mapped = CORAL().fit_transform(torch.from_numpy(X), sample_domain=torch.from_numpy(domain))
    np.testing.assert_array_equal(mapped.numpy(), CORAL().fit_transform(X, sample_domain=domain))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_rows_stay_on_their_device(rng):
    X, domain = stacked(*two_domains(rng))
    rows = torch.from_numpy(X).cuda()
    mapped = CORAL().fit_transform(rows, sample_domain=domain)
    assert mapped.device == rows.device
    np.testing.assert_allclose(
        mapped.cpu().numpy(), CORAL().fit_transform(X, sample_domain=domain), atol=1e5 * EPS
    )


def test_a_view_is_mapped_in_the_order_of_its_positions(rng, tmp_path):
    X, domain = stacked(*two_domains(rng))
    view = RowsOnDisk(tmp_path / "rows.npy", X)
    mapped = CORAL().fit_transform(view, sample_domain=domain)
    expected = CORAL().fit_transform(X, sample_domain=domain)
    np.testing.assert_allclose(mapped, expected, atol=1e5 * EPS)


def test_target_rows_in_a_view_are_handed_on_as_the_view(rng, tmp_path):
    X, domain = stacked(*two_domains(rng))
    view = RowsOnDisk(tmp_path / "rows.npy", X)
    assert CORAL().fit(X, sample_domain=domain).transform(view) is view


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_rows_is_kept(rng, dtype):
    X, domain = stacked(*two_domains(rng))
    assert CORAL().fit_transform(X.astype(dtype), sample_domain=domain).dtype == dtype


def test_a_target_of_another_space_is_refused(rng, tmp_path):
    source, target = two_domains(rng)
    here = RowsOnDisk(tmp_path / "s.npy", source)
    there = RowsOnDisk(tmp_path / "t.npy", target, Space(4, parts={"weights": "v"}))
    with pytest.raises(SpaceError, match="X_target must come from space"):
        CORAL().fit(here, X_target=there)


# --- saving ----------------------------------------------------------------------------------


def test_a_saved_aligner_maps_the_same(rng, tmp_path: Path):
    X, domain = stacked(*two_domains(rng))
    aligner = CORAL(align_mean=True, regularization=0.5).fit(X, sample_domain=domain)
    aligner.save(tmp_path / "coral.safetensors")
    again = CORAL.load(tmp_path / "coral.safetensors")
    np.testing.assert_array_equal(
        again.transform(X, sample_domain=domain), aligner.transform(X, sample_domain=domain)
    )


def test_a_saved_aligner_keeps_its_space(rng, tmp_path: Path):
    X, domain = stacked(*two_domains(rng))
    view = RowsOnDisk(tmp_path / "rows.npy", X)
    CORAL().fit(view, sample_domain=domain).save(tmp_path / "coral.safetensors")
    assert CORAL.load(tmp_path / "coral.safetensors").space_ == view.space


# --- published numbers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def office(data_root: Path):
    """Return {domain: (rows, labels)} of Office-Caltech10 with SURF, z-scored per domain."""
    names = {"C": "Caltech10", "A": "amazon", "W": "webcam", "D": "dslr"}
    domains = {}
    for letter, name in names.items():
        content = loadmat(data_root / "office_caltech10_surf" / f"{name}_SURF_L10.mat")
        rows = content["fts"] / content["fts"].sum(axis=1, keepdims=True)
        spread = rows.std(axis=0)
        rows = (rows - rows.mean(axis=0)) / np.where(spread == 0.0, 1.0, spread)
        domains[letter] = rows, content["labels"].ravel()
    return domains


def average_accuracy(office, adapt) -> float:
    """Return the accuracy of a linear SVC over the 12 pairs, in percent."""
    accuracies = []
    for source, target in permutations(office, 2):
        (Xs, ys), (Xt, yt) = office[source], office[target]
        accuracies.append(SVC(kernel="linear").fit(adapt(Xs, Xt), ys).score(Xt, yt))
    return 100 * float(np.mean(accuracies))


# One row of the smallest target domain (157 rows) in one of 12 pairs is worth 0.05.
ROUNDING_AND_ONE_ROW = 0.05 + 0.05 + 0.05


def test_office_caltech_without_alignment(office):
    assert average_accuracy(office, lambda Xs, _: Xs) == pytest.approx(
        45.9, abs=ROUNDING_AND_ONE_ROW
    )


def test_office_caltech_with_coral(office):
    found = average_accuracy(office, lambda Xs, Xt: CORAL().fit_transform(Xs, X_target=Xt))
    assert found == pytest.approx(46.6, abs=ROUNDING_AND_ONE_ROW)
