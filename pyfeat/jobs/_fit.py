"""From a store and labels to a model file."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold

from pyfeat._identity import Space
from pyfeat.jobs._labelled import labelled_rows
from pyfeat.jobs._labels import folder_of, read_labels
from pyfeat.jobs._standardized import fit_standardized
from pyfeat.store import FeatureStore, View, items_where


@dataclass(frozen=True)
class FitSummary:
    """What was learned from what.

    Parameters
    ----------
    model : str
        File of the model.
    space : str
        Fingerprint of the rows it takes.
    n_samples : int
    classes : dict of str to int
        Rows of each class.
    unlabelled : int
        Rows of the store that have no label; they were left out.
    accuracy : float, optional
        Share of right predictions on rows not trained on, over the folds of cross-validation; None
        when a class has one row only, or when it was switched off.
    folds : int
        Folds of the cross-validation; 0 when there was none.
    seconds : float
    """

    model: str
    space: str
    n_samples: int
    classes: dict[str, int]
    unlabelled: int
    accuracy: float | None
    folds: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self)


def fit(
    store: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    C: float = 1.0,
    cv: int = 5,
    space: str | None = None,
) -> FitSummary:
    """Train a head on the rows of a store and write it to a file.

    Parameters
    ----------
    store : path-like
        Store that `extract` filled.
    labels : "folder" or path-like
        "folder": the name of the folder an input lies in, of a member of an archive the one in the
        archive, or else the archive's own name. Else a table with path and label; or, with a
        column "label", the table or the data set whose rows the inputs were.
    out : path-like
        File of the model.
    C : float, default=1.0
        Inverse strength of the penalty, on standardised columns.
    cv : int, default=5
        Folds of the cross-validation that measures the accuracy; 0 leaves it out.
    space : str, optional
        First digits of the fingerprint, when the store holds several spaces.

    Returns
    -------
    summary : FitSummary

    Raises
    ------
    ValueError
        If fewer than two classes have rows, or a parameter is out of range.
    StoreError
        If `store` is no store.
    """
    if cv == 1 or cv < 0:
        raise ValueError(f"cv must be 0 or at least 2, got {cv}")
    began = time.perf_counter()
    chosen = choose_space(store, space)
    found = labelled_rows(store, chosen, _labels(labels, store, chosen))
    view, y, counts = found.view, found.y, found.counts
    if len(counts) < 2:
        raise ValueError(
            f"labels must give at least 2 classes to the {len(y) + found.unlabelled} images of the "
            f"store, got {list(counts)}"
        )
    smallest = min(counts.values())
    folds = min(cv, smallest) if smallest > 1 else 0
    accuracy = cross_validated_accuracy(view, y, C, folds) if folds else None
    fit_standardized(view, y, C=C).save(out)
    return FitSummary(
        model=os.fspath(out),
        space=chosen.fingerprint,
        n_samples=len(y),
        classes=counts,
        unlabelled=found.unlabelled,
        accuracy=accuracy,
        folds=folds,
        seconds=time.perf_counter() - began,
    )


def _labels(
    labels: str | os.PathLike[str], store: str | os.PathLike[str], space: Space
) -> Callable[[str], str]:
    """Return what gives the label of an input by its name."""
    if os.fspath(labels) == "folder":
        return folder_of
    by_name = read_labels(labels, (item.name for item in items_where(store, space, "*")))
    return lambda name: by_name.get(name, "")


def choose_space(store: str | os.PathLike[str], prefix: str | None) -> Space:
    """Return the space of a store whose fingerprint begins so; the only one without a prefix.

    Raises
    ------
    ValueError
        If there is none or more than one.
    """
    spaces = FeatureStore.spaces(store)
    fitting = [s for s in spaces if s.fingerprint.startswith(prefix or "")]
    if len(fitting) != 1:
        have = [f"{s.fingerprint[:12]} ({s.parts.get('name', 'unnamed')})" for s in spaces]
        raise ValueError(f"space must name one of {have}, got {prefix!r}")
    return fitting[0]


def cross_validated_accuracy(view: View, y: NDArray[Any], C: float, folds: int) -> float:
    """Return the share of rows that heads trained without them predict right."""
    right = 0
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    for train, test in split.split(np.zeros(len(y)), y):
        with warnings.catch_warnings():
            # The model itself reports it; one line for each fold would say it again.
            warnings.simplefilter("ignore", ConvergenceWarning)
            head = fit_standardized(view.take(train), y[train], C=C)
        right += int((head.predict(view.take(test)) == y[test]).sum())
    return right / len(y)
