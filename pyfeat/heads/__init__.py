"""Estimators on rows."""

from pyfeat.heads._logistic import LogisticHead
from pyfeat.heads._zero_shot import ZeroShotHead

__all__ = ["LogisticHead", "ZeroShotHead"]
