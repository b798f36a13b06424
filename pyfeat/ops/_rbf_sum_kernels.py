"""The kernels of pairs of rows that `rbf_sum` knows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# Of a gamma, coef0 or degree * gamma in float32: an infinite one times 0 would be NaN, and one near
# the end would show what distances lose below 1e-38.
MOST_PARAMETER = 1e30
_CHAIN = 32.0  # a term squared from an exp has that exp's relative error this many times at most


def _positive(name: str, value: float) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be finite and above 0, got {value!r}")
    return number


@dataclass(frozen=True)
class Gaussian:
    """Sum over bandwidths of exp(-gamma |x - y|^2), |.| the Euclidean length.

    Parameters
    ----------
    gammas : float or iterable of float
        One or more, finite and above 0: 1 / (2 sigma^2) for the bandwidth sigma. Kept ascending.
        Where each is two or four times the one before, only the first costs an exponential.

    Raises
    ------
    ValueError
        If there is none, or one is out of range.

    Examples
    --------
    >>> Gaussian((2.0, 1.0)).gammas
    (1.0, 2.0)
    """

    gammas: tuple[float, ...]

    def __init__(self, gammas: float | Iterable[float] = 1.0) -> None:
        many = gammas if isinstance(gammas, Iterable) else (gammas,)
        values = tuple(sorted(_positive("gammas", g) for g in many))
        if not values:
            raise ValueError("gammas must hold at least one number, got none")
        object.__setattr__(self, "gammas", values)

    def largest(self) -> float:
        """Return the largest number that the backends take as float32."""
        return self.gammas[-1]

    def squarings(self) -> list[int]:
        """Return for each bandwidth how often the term before is squared; 0: an exp of its own."""
        plan, base = [0], self.gammas[0]
        for before, gamma in zip(self.gammas, self.gammas[1:], strict=False):
            times = round(math.log2(gamma / before))
            exact = math.isclose(gamma, before * 2.0**times, rel_tol=1e-7)
            if exact and 1 <= times <= 2 and gamma <= _CHAIN * base:
                plan.append(times)
            else:
                plan.append(0)
                base = gamma
        return plan


@dataclass(frozen=True)
class Laplacian:
    """exp(-gamma |x - y|_1), the sum of absolute differences: scikit-learn's `laplacian_kernel`.

    Parameters
    ----------
    gamma : float, default=1.0
        Finite, above 0.

    Raises
    ------
    ValueError
        If `gamma` is out of range.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", _positive("gamma", self.gamma))

    def largest(self) -> float:
        """Return the largest number that the backends take as float32."""
        return self.gamma


@dataclass(frozen=True)
class Polynomial:
    """(gamma <x, y> + coef0)^degree: scikit-learn's `polynomial_kernel`.

    Parameters
    ----------
    gamma : float, default=1.0
        Finite, above 0.
    coef0 : float, default=1.0
        Finite.
    degree : int, default=3
        Range [1, 64].

    Raises
    ------
    ValueError
        If a value is out of range.
    TypeError
        If `degree` is not an integer.
    """

    gamma: float = 1.0
    coef0: float = 1.0
    degree: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", _positive("gamma", self.gamma))
        object.__setattr__(self, "coef0", float(self.coef0))
        if not math.isfinite(self.coef0):
            raise ValueError(f"coef0 must be finite, got {self.coef0}")
        if not isinstance(self.degree, int | np.integer):
            raise TypeError(f"degree must be an integer, got {self.degree!r}")
        object.__setattr__(self, "degree", int(self.degree))
        if not 1 <= self.degree <= 64:
            raise ValueError(f"degree must be in [1, 64], got {self.degree}")

    def largest(self) -> float:
        """Return the largest size of a number that the backends take as float32."""
        return max(self.gamma * self.degree, abs(self.coef0))


@dataclass(frozen=True)
class Linear:
    """The inner product <x, y>."""


PairKernel = Gaussian | Laplacian | Polynomial | Linear
