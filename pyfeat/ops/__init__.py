"""Hot loops, each with a plain reference and as many fast backends as it has."""

from pyfeat.ops._decode import DECODE_MODES, decode, decode_preprocess
from pyfeat.ops._explain import explain
from pyfeat.ops._fp8_linear import fp8_linear
from pyfeat.ops._gather_rows import gather_rows
from pyfeat.ops._layernorm_quantize import layernorm_quantize
from pyfeat.ops._moments import moments
from pyfeat.ops._moments_reference import Moments
from pyfeat.ops._pool import pool
from pyfeat.ops._preprocess import Preprocessing, preprocess, preprocess_batch
from pyfeat.ops._quantize_fp8 import quantize_fp8
from pyfeat.ops._quantize_rows import dequantize_rows, quantize_rows
from pyfeat.ops._quantize_rows_out import Quantized
from pyfeat.ops._rbf_sum import RbfSum, rbf_sum
from pyfeat.ops._rbf_sum_kernels import Gaussian, Laplacian, Linear, Polynomial
from pyfeat.ops._softmax_xent import SoftmaxXent, StoredRows, softmax_xent
from pyfeat.ops._topk import Neighbours, topk

__all__ = [
    "DECODE_MODES",
    "Gaussian",
    "Laplacian",
    "Linear",
    "Moments",
    "Neighbours",
    "Polynomial",
    "Preprocessing",
    "Quantized",
    "RbfSum",
    "SoftmaxXent",
    "StoredRows",
    "decode",
    "decode_preprocess",
    "dequantize_rows",
    "explain",
    "fp8_linear",
    "gather_rows",
    "layernorm_quantize",
    "moments",
    "pool",
    "preprocess",
    "preprocess_batch",
    "quantize_fp8",
    "quantize_rows",
    "rbf_sum",
    "softmax_xent",
    "topk",
]
