"""Backbones: where models come from, what identifies them, how they are frozen."""

from __future__ import annotations

from pyfeat.backbones._backbone import Backbone
from pyfeat.backbones._describe import BackboneDescription, LayerDescription, describe
from pyfeat.backbones._engine import ENGINES, check_engine
from pyfeat.backbones._fidelity import Fidelity, Measured, choose_engine
from pyfeat.backbones._layers import POOLINGS, Layers
from pyfeat.backbones._load import DEFAULT_BACKBONE, load_backbone
from pyfeat.backbones._modality import (
    AudioPreprocessing,
    Tokenization,
    VideoPreprocessing,
    bucket_of,
)
from pyfeat.backbones._names import BackboneName, list_backbones

__all__ = [
    "DEFAULT_BACKBONE",
    "ENGINES",
    "POOLINGS",
    "AudioPreprocessing",
    "Backbone",
    "BackboneDescription",
    "BackboneName",
    "Fidelity",
    "LayerDescription",
    "Layers",
    "Measured",
    "Tokenization",
    "VideoPreprocessing",
    "bucket_of",
    "check_engine",
    "choose_engine",
    "describe",
    "list_backbones",
    "load_backbone",
]
