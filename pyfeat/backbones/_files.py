"""Files that a caller names: read whole, and told apart without reading them again."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple


class FileStamp(NamedTuple):
    """What changes when a file does."""

    path: str
    size: int
    mtime_ns: int


def stamp_of(path: str | os.PathLike[str], name: str) -> FileStamp:
    """Return the stamp of a regular file.

    Parameters
    ----------
    path : path-like
    name : str
        What the file is, for messages.

    Raises
    ------
    OSError
        If there is no such file, it may not be looked at, or it is no regular file.
    """
    text = os.fspath(path)
    try:
        status = Path(text).stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{name} must be a file that can be read, got {text!r}: {reason}") from error
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{name} must be a regular file, got {text!r}")
    return FileStamp(str(Path(text).absolute()), status.st_size, status.st_mtime_ns)


def read_whole(path: str | os.PathLike[str], name: str) -> bytes:
    """Return the content of a regular file.

    Raises
    ------
    OSError
        As for `stamp_of`, or if it cannot be read.
    """
    stamp = stamp_of(path, name)
    try:
        return Path(stamp.path).read_bytes()
    except OSError as error:
        got = f"{stamp.path!r}: {error.strerror}"
        raise OSError(f"{name} must be a file that can be read, got {got}") from error
