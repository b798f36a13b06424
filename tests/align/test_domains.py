"""Which rows are source."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyfeat.align import source_rows


def test_positive_is_source_and_negative_is_target():
    assert source_rows(4, [3, -1, 1, -7]).tolist() == [True, False, True, False]


def test_domains_may_be_a_tensor():
    assert source_rows(2, torch.tensor([1, -1])).tolist() == [True, False]


def test_minus_one_masks_a_class():
    assert source_rows(3, y=np.array([0, -1, 5])).tolist() == [True, False, True]


def test_minus_one_masks_a_class_that_is_written_as_a_float():
    assert source_rows(3, y=np.array([0.0, -1.0, 5.0])).tolist() == [True, False, True]


def test_minus_one_masks_among_objects():
    assert source_rows(2, y=np.array(["cat", -1], dtype=object)).tolist() == [True, False]


@pytest.mark.parametrize("mask", [-1, None, float("nan"), np.float32("nan")])
def test_missing_text_is_masked(mask):
    # Bug: None and NaN among text were classes like any other.
    y = np.array(["cat", mask], dtype=object)
    assert source_rows(2, y=y).tolist() == [True, False]


@pytest.mark.parametrize("dtype", ["string", "Int64", "category"])
def test_what_pandas_calls_missing_is_masked(dtype):
    pd = pytest.importorskip("pandas")
    y = pd.Series([1, 2, None], dtype="Int64").astype(dtype)
    assert source_rows(3, y=y).tolist() == [True, True, False]


def test_minus_one_masks_text_in_a_list():
    # Bug: numpy makes the number the text "-1", which is a class.
    assert source_rows(2, y=["cat", -1]).tolist() == [True, False]


def test_the_text_minus_one_is_a_class():
    assert source_rows(2, y=["cat", "-1"]) is None


def test_one_domain_is_that_of_every_row():
    assert source_rows(2, 1).tolist() == [True, True]


def test_nan_masks_a_number():
    assert source_rows(3, y=np.array([0.5, np.nan, -1.0])).tolist() == [True, False, True]


def test_minus_one_among_numbers_is_a_number():
    assert source_rows(2, y=np.array([0.5, -1.0])) is None


def test_domains_come_before_labels():
    assert source_rows(2, [1, -1], y=[-1, 0]).tolist() == [True, False]


@pytest.mark.parametrize("y", [None, [0, 1], ["a", "b"], [True, False]])
def test_nothing_tells(y):
    assert source_rows(2, y=y) is None


def test_domain_zero_is_refused():
    with pytest.raises(
        ValueError, match=r"positive \(source\) or negative \(target\), got 0 in row 1"
    ):
        source_rows(2, [1, 0])


def test_a_fraction_of_a_domain_is_refused():
    with pytest.raises(ValueError, match="sample_domain must hold integers"):
        source_rows(2, [1.5, -1.0])


def test_domains_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"sample_domain must have shape \(3,\), got \(2,\)"):
        source_rows(3, [1, -1])


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match="y must have 3 rows like X, got 2"):
        source_rows(3, y=[1, -1])
