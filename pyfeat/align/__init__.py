"""Source and target rows brought together."""

from pyfeat.align._coral import CORAL
from pyfeat.align._coral_map import CoralMap, coral
from pyfeat.align._domains import source_rows

__all__ = ["CORAL", "CoralMap", "coral", "source_rows"]
