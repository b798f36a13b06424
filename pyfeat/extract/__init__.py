"""Inputs to rows."""

from pyfeat.extract._choice import engine_of
from pyfeat.extract._decode import read_file
from pyfeat.extract._feature_extractor import FeatureExtractor
from pyfeat.extract._inputs import Input, Readable, content_of, key_of
from pyfeat.extract._progress import progress_of
from pyfeat.extract._readers import reader_of
from pyfeat.extract._run import Outcome, RunOptions, row_space, run
from pyfeat.extract._times import Times

__all__ = [
    "FeatureExtractor",
    "Input",
    "Outcome",
    "Readable",
    "RunOptions",
    "Times",
    "content_of",
    "engine_of",
    "key_of",
    "progress_of",
    "read_file",
    "reader_of",
    "row_space",
    "run",
]
