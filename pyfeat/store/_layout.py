"""Names of the folders and files of a store. docs/store_format.md says what is in them."""

from __future__ import annotations

import errno
import json
import os
import secrets
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyfeat import _core
from pyfeat._identity import Space, canonical_json
from pyfeat._model_file import make_folder, replace_file
from pyfeat.errors import CorruptStoreError, StoreError, StoreWarning

FORMAT = "pyfeat-store"
VERSION = 1
MARKER = "pyfeat-store.json"
SPACE = "space.json"
CHOICES = "choices"
SEGMENT = ".safetensors"
TAIL = ".tail"
ITEMS = ".items.jsonl"
TEMPORARY = ".tmp"
DAMAGED = ".damaged"
MEMO = "memo"
# Another content whenever files are about to be removed for others that hold what they held.
GENERATION = "generation"
TAIL_HEADER_BYTES = 64
MAX_ROW_BYTES = 2**32 - 1  # a tail's header has 32 bits for it
# A hidden tail this old was left behind: its writer gives it its name within microseconds.
ABANDONED_SECONDS = 60

SAFETENSORS_DTYPE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
SCALE_BYTES = {"float32": 0, "float16": 0, "bfloat16": 0, "int8": 4}


def new_id(token: str | None = None) -> str:
    """Return a name for a new file. Names sort by the time they were made.

    A segment carries the token of the tail it was sealed from: 64 random bits, because a tail whose
    token a segment has is taken for sealed.
    """
    return f"{time.time_ns():016x}-{token or secrets.token_hex(8)}"


def token_of(name: str) -> str:
    """Return the token in the name of a tail or segment."""
    return name.partition(".")[0].rpartition("-")[2]


@contextmanager
def as_store_error(what: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError that names what was tried, and on what."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            error.errno or errno.EIO, f"cannot {what} ({error.strerror})", str(path)
        ) from None


def check_store(root: Path) -> None:
    """Raise `StoreError` unless `root` is a store this version can read."""
    marker = root / MARKER
    if not marker.is_file():
        raise StoreError(f"path must be a feature store, got {str(root)!r}: it has no {MARKER}")
    try:
        with as_store_error("read the marker of a store", marker):
            value = json.loads(marker.read_bytes())
        form, version = value["format"], value["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptStoreError(f"{marker}: not the marker of a store ({error})") from None
    if form != FORMAT or version != VERSION:
        raise StoreError(f"{marker}: must be {FORMAT} version {VERSION}, got {form} {version}")


def create_store(root: Path) -> None:
    """Make `root` a store if it is an empty or missing folder; leave an existing store alone."""
    marker = root / MARKER
    with as_store_error("make a store", root):
        if root.exists() and not root.is_dir():
            raise StoreError(f"path must be a folder, got the file {str(root)!r}")
        if not marker.exists():
            make_folder(root)
            # Two writers may begin at once: what the other one has made by now is not foreign.
            foreign = [
                p.name
                for p in root.iterdir()
                if p.name not in (MARKER, "spaces", CHOICES) and not p.name.endswith(TEMPORARY)
            ]
            if foreign:
                raise StoreError(
                    f"path must be a feature store or an empty folder, got {str(root)!r}, "
                    f"which holds {foreign[0]!r}"
                )
            replace_file(marker, canonical_json({"format": FORMAT, "version": VERSION}).encode())
    check_store(root)


def row_bytes(space: Space) -> int:
    """Return the size of one stored row, its scale included."""
    return SCALE_BYTES[space.dtype] + space.dim * ITEM_BYTES[space.dtype]


def space_folder(root: Path, space: Space) -> Path:
    """Return the folder that holds the rows of one space."""
    return root / "spaces" / space.fingerprint[:32]


def create_space(root: Path, space: Space) -> Path:
    """Make the folder of a space and return it."""
    folder = space_folder(root, space)
    path, content = folder / SPACE, space.to_json().encode()
    with as_store_error("write to the store", folder):
        if not path.exists() or path.read_bytes() != content:  # missing, or damaged: mended here
            make_folder(folder)
            replace_file(path, content)
    return folder


def space_folders(root: Path) -> list[Path]:
    """Return the folders that hold rows of a space, in order of fingerprint."""
    return [
        folder
        for folder in sorted((root / "spaces").glob("*"))
        # Without a description its writer died before it had written a row; or it is removed.
        if not folder.name.endswith(TEMPORARY) and (folder / SPACE).is_file()
    ]


def read_spaces(root: Path) -> list[Space]:
    """Return every space of a store, in order of fingerprint.

    Warns
    -----
    StoreWarning
        If the description of a space is damaged: it is left out.
    """
    spaces = []
    for folder in space_folders(root):
        try:
            spaces.append(read_space(folder))
        except CorruptStoreError as error:
            warnings.warn(str(error), StoreWarning, stacklevel=3)
        except StoreError as error:
            if error.errno != errno.ENOENT:  # else the space was removed just now
                raise
    return spaces


def read_space(folder: Path) -> Space:
    """Return the space whose rows a folder holds.

    Raises
    ------
    CorruptStoreError
        If its description is damaged.
    """
    path = folder / SPACE
    try:
        with as_store_error("read the description of a space", path):
            space = Space.from_json(path.read_text())
        fingerprint = space.fingerprint
        if type(space.dim) is not int or row_bytes(space) > MAX_ROW_BYTES:
            raise ValueError(f"{space.dim} is no number of columns")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptStoreError(f"{path}: not the description of a space ({error})") from None
    if fingerprint[:32] != folder.name:
        raise CorruptStoreError(
            f"{path}: its fingerprint is {fingerprint[:32]}, not the name of its folder"
        )
    return space


def sync_folders_above(folder: Path) -> None:
    """Return when the names of a space's folder and of its store are on the disk.

    Another process may have made them just now and not have synced them yet.
    """
    _core.sync_folder_of(os.fsencode(folder))
    _core.sync_folder_of(os.fsencode(folder.parent))
    try:
        _core.sync_folder_of(os.fsencode(folder.parents[1]))
    except StoreError as error:
        if error.errno != errno.EACCES:  # a folder that may be entered, and not be listed
            raise


def bytes_below(folder: Path) -> int:
    """Return the size of all files in a folder, however deep, while others come and go."""
    size = 0
    for inside, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # sealed, or merged, just now
                size += Path(inside, name).stat().st_size
    return size


def files(folder: Path, suffix: str) -> list[Path]:
    """Return the files of one kind, newest first.

    A listing takes time: it may miss a file that is made meanwhile, and those that are removed for
    it, too. Then the generation is another one after it than before, and it is made again.
    """
    if not folder.is_dir():
        return []
    while True:
        before = _generation(folder)
        with os.scandir(folder) as entries:
            # Only files: to open a pipe of such a name would wait for ever.
            names = [e.name for e in entries if e.name.endswith(suffix) and e.is_file()]
        if _generation(folder) == before:
            return [folder / name for name in sorted(names, reverse=True)]


def _generation(folder: Path) -> bytes:
    try:
        return (folder / GENERATION).read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        if error.errno != errno.ESTALE:  # NFS: replaced while it was open, so another one now
            raise
        return secrets.token_bytes(8)


def begin_generation(folder: Path) -> None:
    """Have listings made again that are being made; call it before files are removed for others."""
    with as_store_error("write to the store", folder):
        replace_file(folder / GENERATION, new_id().encode())
