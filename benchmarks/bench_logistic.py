"""Fit multinomial logistic regression, C=1, float32 rows.

"correlated" rows have a spectrum that falls like that of real embeddings; "round" rows have none,
which suits a solver without a preconditioner best. The error is that of the probabilities,
against a float64 fit converged to the end. scikit-learn stops where its defaults say; its error
shows how far that is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
from harness import Case, Contestant, largest_difference
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pyfeat._config import num_threads
from pyfeat.heads import LogisticHead

SIZES = ((4_000, 128, 10), (20_000, 768, 50), (50_000, 768, 100))  # (n, d, classes)
SAME_PROBABILITIES = 1e-3
ASKED_ROWS = 1000
ANY_ERROR = 1.0  # shown, not judged


def cases(quick: bool) -> Iterator[Case]:
    for n, d, k in SIZES[:1] if quick else SIZES:
        for kind in ("correlated", "round"):
            X, y = rows(n, d, k, kind)
            asked = X[:ASKED_ROWS]
            exact = LogisticHead(tol=1e-9, max_iter=1000).fit(X.astype(np.float64), y)
            yield Case(
                name=f"{n} x {d}, {k} classes, {kind}",
                contestants=[
                    Contestant("pyfeat", fit(LogisticHead(), X, y), SAME_PROBABILITIES),
                    Contestant("pyfeat, tol=1e-2", fit(LogisticHead(tol=1e-2), X, y), ANY_ERROR),
                    Contestant("scikit-learn lbfgs", fit(LogisticRegression(), X, y), ANY_ERROR),
                ],
                expected=exact.predict_proba(asked.astype(np.float64)),
                error=largest_difference,
                unit="largest difference of a probability",
                items=n,
                threads=num_threads(),
                torch_threads=num_threads(),
            )


def rows(n: int, d: int, k: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of k overlapping classes and their labels."""
    rng = np.random.default_rng(0)
    y = rng.integers(k, size=n)
    # Centres this far apart leave some rows of every class on the wrong side.
    X = rng.standard_normal((n, d)) + (3.0 / np.sqrt(d)) * rng.standard_normal((k, d))[y]
    if kind == "correlated":
        basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
        X = (X @ (basis * np.arange(1, d + 1) ** -0.7)) @ basis.T + rng.random(d)
    return X.astype(np.float32), y


def fit(head: LogisticHead | LogisticRegression, X: np.ndarray, y: np.ndarray) -> Callable:
    def run() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return head.fit(X, y).predict_proba(X[:ASKED_ROWS])

    return run
