"""Hot loops, each with a plain reference and as many fast backends as it has."""

from pyfeat.ops._explain import explain
from pyfeat.ops._preprocess import Preprocessing, preprocess
from pyfeat.ops._topk import Neighbours, topk

__all__ = ["Neighbours", "Preprocessing", "explain", "preprocess", "topk"]
