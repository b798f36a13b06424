"""Rows on disk under their true identity, safe against crashes and flipped bits."""

from pyfeat.store._choices import claim_choice, read_choice
from pyfeat.store._compact import Compacted, compact
from pyfeat.store._encoding import as_kept
from pyfeat.store._export import Export, export
from pyfeat.store._feature_store import FeatureStore
from pyfeat.store._gc import Removal, gc
from pyfeat.store._golden import Golden, has_golden, read_golden, write_golden
from pyfeat.store._import import import_rows
from pyfeat.store._info import SpaceInfo, info
from pyfeat.store._item_lists import items_where, quarantined
from pyfeat.store._item_log import ItemLog, quarantined_names, write_items
from pyfeat.store._items import Item
from pyfeat.store._memo import Marks, Memo, joined, marks_of
from pyfeat.store._names import sample_items
from pyfeat.store._repair import Loss, Repair, repair
from pyfeat.store._sorted_items import iter_items, read_items
from pyfeat.store._verify import Damage, verify
from pyfeat.store._view import View

__all__ = [
    "Compacted",
    "Damage",
    "Export",
    "FeatureStore",
    "Golden",
    "Item",
    "ItemLog",
    "Loss",
    "Marks",
    "Memo",
    "Removal",
    "Repair",
    "SpaceInfo",
    "View",
    "as_kept",
    "claim_choice",
    "compact",
    "export",
    "gc",
    "has_golden",
    "import_rows",
    "info",
    "items_where",
    "iter_items",
    "joined",
    "marks_of",
    "quarantined",
    "quarantined_names",
    "read_choice",
    "read_golden",
    "read_items",
    "repair",
    "sample_items",
    "verify",
    "write_golden",
    "write_items",
]
