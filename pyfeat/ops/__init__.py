"""Hot loops, each with a plain reference and as many fast backends as it has."""

from pyfeat.ops._explain import explain
from pyfeat.ops._preprocess import Preprocessing, preprocess
from pyfeat.ops._softmax_xent import SoftmaxXent, StoredRows, softmax_xent

__all__ = [
    "Preprocessing",
    "SoftmaxXent",
    "StoredRows",
    "explain",
    "preprocess",
    "softmax_xent",
]
