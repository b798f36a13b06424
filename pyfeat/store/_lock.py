"""Who is using a store: locks on its own files, which end with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyfeat._identity import Space
from pyfeat.errors import StoreError
from pyfeat.store import _layout as layout


class Held:
    """A lock on an open file, until `close` or the end of the process.

    A child of the process that was forked meanwhile holds it too: an exclusive one until this
    process gives it back, a shared one as long as the child lives, which may write on.
    """

    def __init__(self, descriptor: int, *, exclusive: bool) -> None:
        self._descriptor = descriptor
        self._exclusive = exclusive
        self._owner = os.getpid()

    def close(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            if self._exclusive and self._owner == os.getpid():
                with suppress(OSError):  # the file system knows no locks
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    def still_has_its_name(self, path: Path) -> bool:
        """Return whether the locked file is the one that `path` names now."""
        mine = os.fstat(self._descriptor)
        try:
            named = path.stat()
        except OSError:
            return False
        return (mine.st_ino, mine.st_dev) == (named.st_ino, named.st_dev)


def take(path: Path, *, exclusive: bool, wait: bool = False) -> Held | None:
    """Lock a file that is there.

    Returns
    -------
    held : Held or None
        None when somebody else holds it, and `wait` is False.

    Raises
    ------
    StoreError
        If the file cannot be opened or locked.
    """
    try:
        # Some network file systems lock a file for one process alone only if it may be written.
        descriptor = os.open(path, (os.O_RDWR if exclusive else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(error.errno, f"cannot open ({error.strerror})", str(path)) from None
    held = Held(descriptor, exclusive=exclusive)
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        if error.errno == errno.EWOULDBLOCK:
            return None
        raise StoreError(error.errno, f"cannot lock ({error.strerror})", str(path)) from None
    return held


def join(root: Path, space: Space) -> Held:
    """Make the folder of a space where it is missing, and be known as one of its writers.

    `gc` removes no space that has one.
    """
    while True:
        path = layout.create_space(root, space) / layout.SPACE
        try:
            held = take(path, exclusive=False, wait=True)
        except StoreError as error:
            if error.errno != errno.ENOENT:
                raise
            held = None
        if held is not None and held.still_has_its_name(path):
            return held
        # It was removed just now: it is made again.


@contextmanager
def administration(root: Path) -> Iterator[None]:
    """Be the only one who rearranges a store while this block runs; writers and readers go on.

    Raises
    ------
    StoreError
        If somebody else does, or the store cannot be written.
    """
    held = take_administration(root)
    if held is None:
        raise StoreError(f"{root} must not be in the hands of another compact, repair or gc")
    try:
        yield
    finally:
        held.close()


def take_administration(root: Path) -> Held | None:
    """Return the lock of who rearranges a store; None when somebody else has it."""
    held = take(root / layout.MARKER, exclusive=True)
    if held is not None and not held.still_has_its_name(root / layout.MARKER):
        # A repair replaced the damaged marker just now: who holds the old one has nothing.
        held.close()
        return None
    return held
