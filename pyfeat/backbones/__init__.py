"""Backbones: where models come from, what identifies them, how they are frozen."""

from __future__ import annotations

from pyfeat.backbones._backbone import Backbone
from pyfeat.backbones._load import DEFAULT_BACKBONE, load_backbone
from pyfeat.backbones._names import BackboneName, list_backbones

__all__ = ["DEFAULT_BACKBONE", "Backbone", "BackboneName", "list_backbones", "load_backbone"]
