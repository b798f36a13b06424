"""Estimators on rows."""

from pyfeat.heads._logistic import LogisticHead

__all__ = ["LogisticHead"]
