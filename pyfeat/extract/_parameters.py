"""The settings of an extractor, checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyfeat._identity import ROW_DTYPES
from pyfeat.backbones import check_engine
from pyfeat.ops import DECODE_MODES


def check_parameters(extractor: Any) -> None:
    """Raise ValueError unless the settings of a FeatureExtractor are in range."""
    check_engine(extractor.engine, extractor.precision)
    least = extractor.min_cosine
    if not isinstance(least, (int, float)) or not -1 <= least <= 1:
        raise ValueError(f"min_cosine must be in [-1, 1], got {least!r}")
    if extractor.dtype not in ROW_DTYPES:
        raise ValueError(f"dtype must be one of {list(ROW_DTYPES)}, got {extractor.dtype!r}")
    if extractor.decode not in DECODE_MODES:
        raise ValueError(f"decode must be one of {list(DECODE_MODES)}, got {extractor.decode!r}")
    if extractor.on_error not in ("raise", "nan"):
        raise ValueError(f"on_error must be 'raise' or 'nan', got {extractor.on_error!r}")
    size = extractor.batch_size
    is_count = isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 1
    if size != "auto" and not is_count:
        raise ValueError(f"batch_size must be 'auto' or a positive integer, got {size!r}")
