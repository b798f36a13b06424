"""Rows on disk under their true identity, safe against crashes and flipped bits."""

from pyfeat.store._encoding import as_kept
from pyfeat.store._feature_store import FeatureStore
from pyfeat.store._item_log import ItemLog, quarantined_names, write_items
from pyfeat.store._items import Item, read_items
from pyfeat.store._memo import Marks, Memo, joined, marks_of
from pyfeat.store._verify import Damage, verify
from pyfeat.store._view import View

__all__ = [
    "Damage",
    "FeatureStore",
    "Item",
    "ItemLog",
    "Marks",
    "Memo",
    "View",
    "as_kept",
    "joined",
    "marks_of",
    "quarantined_names",
    "read_items",
    "verify",
    "write_items",
]
