"""Hot loops, each with a plain reference and as many fast backends as it has."""

from pyfeat.ops._decode import DECODE_MODES, decode, decode_preprocess
from pyfeat.ops._explain import explain
from pyfeat.ops._gather_rows import gather_rows
from pyfeat.ops._preprocess import Preprocessing, preprocess

__all__ = [
    "DECODE_MODES",
    "Preprocessing",
    "decode",
    "decode_preprocess",
    "explain",
    "gather_rows",
    "preprocess",
]
