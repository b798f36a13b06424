"""Every error and warning type of pyfeat, in one place."""

from __future__ import annotations

from pyfeat._core import StoreError

__all__ = [
    "BackendError",
    "CorruptStoreError",
    "DomainWarning",
    "InputError",
    "SpaceError",
    "StoreError",
    "StoreWarning",
]


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run on these arguments."""


class InputError(ValueError):
    """An item cannot be read: the message holds its name and the reason.

    Parameters
    ----------
    item : str
        Path of the file, or the position of the item in the input.
    reason : str
        One sentence without a full stop.
    """

    def __init__(self, item: str, reason: str) -> None:
        super().__init__(f"{item}: {reason}")
        self.item = item
        self.reason = reason

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str]]:
        return type(self), (self.item, self.reason)


class SpaceError(ValueError):
    """Rows of two different spaces were brought together."""


class CorruptStoreError(StoreError):
    """Bytes of a feature store differ from what was written; names path and offset."""


class StoreWarning(UserWarning):
    """A feature store repaired itself, or goes on without damaged rows."""


class DomainWarning(UserWarning):
    """Alignment was asked for without a source or without a target domain."""
