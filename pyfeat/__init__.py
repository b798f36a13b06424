"""Files to features to predictions.

Frozen pretrained backbones turn files into features, a crash-safe store keeps every feature under
its true identity, an index searches them, and scikit-learn-style estimators train light heads and
align domains on top.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyfeat._config import backend

if TYPE_CHECKING:
    from pyfeat import align, backbones, heads, jobs, ops
    from pyfeat._identity import Space
    from pyfeat.extract import FeatureExtractor
    from pyfeat.index import FeatureIndex
    from pyfeat.store import FeatureStore

__version__ = "0.1.0"

__all__ = [
    "FeatureExtractor",
    "FeatureIndex",
    "FeatureStore",
    "Space",
    "align",
    "backbones",
    "backend",
    "heads",
    "jobs",
    "ops",
]

_HOME = {
    "FeatureExtractor": "pyfeat.extract",
    "FeatureIndex": "pyfeat.index",
    "FeatureStore": "pyfeat.store",
    "Space": "pyfeat._identity",
}


def __getattr__(name: str) -> Any:
    # torch and scikit-learn take seconds to import: only what is touched is paid for.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in __all__:
        return import_module(f"pyfeat.{name}")
    raise AttributeError(f"module 'pyfeat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
