"""Rows searched."""

from pyfeat.index._feature_index import FeatureIndex

__all__ = ["FeatureIndex"]
