"""The whole chain once, on real input, in one call."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from pyfeat.jobs._extract import extract
from pyfeat.jobs._fit import choose_space
from pyfeat.jobs._labelled import labelled_rows
from pyfeat.jobs._standardized import fit_standardized
from pyfeat.jobs._summary import ExtractSummary
from pyfeat.store import View

TEST_SHARE = 0.25


@dataclass(frozen=True)
class QuickstartReport:
    """What the quickstart did.

    Parameters
    ----------
    images : str
        Folder of class folders.
    model : str
        File of the trained head.
    first, second : ExtractSummary
        The same extraction twice: the second one finds every row in the store.
    n_train, n_test : int
    accuracy : float
        Share of held-out images that were labelled right.
    accuracy_per_class : dict of str to float
    """

    images: str
    model: str
    first: ExtractSummary
    second: ExtractSummary
    n_train: int
    n_test: int
    accuracy: float
    accuracy_per_class: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


def quickstart(
    folder: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "quickstart",
    *,
    progress: bool | Callable[[int, int], None] = False,
) -> QuickstartReport:
    """Extract features, train a head on three quarters of the images, measure it on the rest.

    Parameters
    ----------
    folder : path-like, optional
        Folder with one folder of images per class. By default scikit-learn's handwritten digits,
        written as PNG files.
    out : path-like, default="quickstart"
        Where store, model and digits go.
    progress : bool or callable, default=False

    Returns
    -------
    report : QuickstartReport

    Raises
    ------
    ValueError
        If the folder has fewer than two classes with two readable images each.
    """
    target = Path(out)
    images = Path(folder) if folder is not None else write_digits(target / "digits")
    if not images.is_dir():
        raise ValueError(f"folder must be a folder of class folders, got {str(images)!r}")
    store = target / "feats"
    first = extract(images, store, progress=progress)
    second = extract(images, store, progress=progress)
    view, y = _labelled(store, images, first.space)
    train, test = _split(y)
    head = fit_standardized(view.take(train), y[train], C=1.0)
    head.save(target / "model.safetensors")
    right = head.predict(view.take(test)) == y[test]
    return QuickstartReport(
        images=str(images),
        model=str(target / "model.safetensors"),
        first=first,
        second=second,
        n_train=len(train),
        n_test=len(test),
        accuracy=float(right.mean()),
        accuracy_per_class={c: float(right[y[test] == c].mean()) for c in np.unique(y[test])},
    )


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels) as PNG files.

    Parameters
    ----------
    folder : Path
        Gets one folder per digit.

    Returns
    -------
    folder : Path
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{i:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8)).save(path)
    return folder


def _labelled(store: Path, images: Path, space: str) -> tuple[View, NDArray[Any]]:
    chosen = choose_space(store, space)
    root = str(images.absolute()) + os.sep
    found = labelled_rows(
        store, chosen, lambda name: Path(name).parent.name if name.startswith(root) else ""
    )
    return found.view, found.y


def _split(y: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts = Counter(y.tolist())
    if len(counts) < 2 or min(counts.values()) < 2:
        raise ValueError(
            f"folder must have at least 2 class folders of at least 2 images, got {dict(counts)}"
        )
    n_test = max(round(TEST_SHARE * len(y)), len(counts))
    train, test = train_test_split(np.arange(len(y)), test_size=n_test, stratify=y, random_state=0)
    return train, test
