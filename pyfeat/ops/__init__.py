"""Hot loops, each with a plain reference and as many fast backends as it has."""

from pyfeat.ops._explain import explain
from pyfeat.ops._moments import moments
from pyfeat.ops._moments_reference import Moments
from pyfeat.ops._preprocess import Preprocessing, preprocess

__all__ = ["Moments", "Preprocessing", "explain", "moments", "preprocess"]
