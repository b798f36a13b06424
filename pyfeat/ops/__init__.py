"""Hot loops, each with a plain reference and as many fast backends as it has."""

from pyfeat.ops._explain import explain
from pyfeat.ops._pool import pool
from pyfeat.ops._preprocess import Preprocessing, preprocess
from pyfeat.ops._quantize_rows import dequantize_rows, quantize_rows
from pyfeat.ops._quantize_rows_out import Quantized

__all__ = [
    "Preprocessing",
    "Quantized",
    "dequantize_rows",
    "explain",
    "pool",
    "preprocess",
    "quantize_rows",
]
