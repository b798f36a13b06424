"""Hot loops, each with a plain reference and as many fast backends as it has."""

from pyfeat.ops._explain import explain
from pyfeat.ops._preprocess import Preprocessing, preprocess, preprocess_batch

__all__ = ["Preprocessing", "explain", "preprocess", "preprocess_batch"]
