"""Hot loops, each with a plain reference and as many fast backends as it has."""

from pyfeat.ops._explain import explain
from pyfeat.ops._gather_rows import gather_rows
from pyfeat.ops._preprocess import Preprocessing, preprocess

__all__ = ["Preprocessing", "explain", "gather_rows", "preprocess"]
