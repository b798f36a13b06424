"""Hot loops, each with a plain reference and as many fast backends as it has."""

from pyfeat.ops._explain import explain
from pyfeat.ops._preprocess import Preprocessing, preprocess
from pyfeat.ops._rbf_sum import RbfSum, rbf_sum
from pyfeat.ops._rbf_sum_kernels import Gaussian, Laplacian, Linear, Polynomial

__all__ = [
    "Gaussian",
    "Laplacian",
    "Linear",
    "Polynomial",
    "Preprocessing",
    "RbfSum",
    "explain",
    "preprocess",
    "rbf_sum",
]
