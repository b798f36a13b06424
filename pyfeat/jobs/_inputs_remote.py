"""Addresses (s3://, gs://, http:// and all else that fsspec knows): found, listed, read."""

from __future__ import annotations

import asyncio
import http.client
import lzma
import os
import re
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pyfeat.errors import InputError

# Seconds before the second and the third time that something is tried.
PAUSES = (0.5, 2.0)
# What a file raises that is not what it should be: it is not tried again.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)
# What packages raise for a network that failed, beside OSError; only those that are loaded count.
_NETWORK = (
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
)
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_URL = re.compile(
    r"(?P<caches>(?:\w+::)*)(?P<scheme>[A-Za-z][\w+.-]*)://(?P<path>.*?)(?P<of>::.*)?"
)

T = TypeVar("T")


def is_url(place: str) -> bool:
    """Return whether a place is an address, and no path.

    Examples
    --------
    >>> is_url("s3://photos/a.jpg"), is_url("photos/a.jpg"), is_url("file:///photos/a.jpg")
    (True, False, False)
    """
    return "://" in place and _URL.match(place) is not None and not place.startswith("file://")


def as_place(item: str) -> str:
    """Return an address as it is, and a path absolute; symlinks stay as they are."""
    if is_url(item):
        return item
    return os.path.abspath(item.removeprefix("file://"))  # noqa: PTH100


def beside(place: str, path: str) -> str:
    """Return the place of a path that is told from the folder in which a place lies."""
    if is_url(path) or not is_url(place):
        return path if is_url(path) else os.path.join(os.path.dirname(place), path)  # noqa: PTH118, PTH120
    return path if path.startswith("/") else f"{place.rpartition('/')[0]}/{path}"


def path_of(place: str) -> str:
    """Return the part of a place that ends in the name of a file.

    Examples
    --------
    >>> path_of("http://host/a.jpg?size=2"), path_of("zip://b/a.jpg::s3://photos/x.zip")
    ('/a.jpg', 'b/a.jpg')
    """
    found = _URL.fullmatch(place) if is_url(place) else None
    if found is None:
        return place
    if found["scheme"] in ("http", "https"):
        return urlsplit(f"http://{found['path']}").path
    return found["path"]


def suffix_of(place: str) -> str:
    """Return the suffix of a place, in small letters."""
    return Path(path_of(place)).suffix.lower()


@dataclass(frozen=True)
class Remote:
    """A file at an address.

    Parameters
    ----------
    url : str
    """

    url: str

    def read(self) -> bytes:
        """Return its bytes; raise InputError if they cannot be had."""
        with reading(self.url):
            return tried(lambda: _fetched(self.url))


def read_range(place: str, start: int, size: int) -> bytes:
    """Return bytes of a file at a path or an address; fewer than asked for where it ends before.

    Raises
    ------
    InputError
        If it is not there or cannot be read.
    """
    with reading(place):
        if is_url(place):
            return tried(lambda: _fetched(place, start, size))
        with open(place, "rb") as file:  # noqa: PTH123
            file.seek(start)
            return file.read(size)


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Tell what goes wrong in the block as an InputError of a place."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(place, "there is no such file") from None
    except OSError as error:
        raise InputError(place, f"it cannot be read: {error.strerror or error}") from error
    except (*DAMAGE, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        said = f"{type(error).__name__}: {error}"
        raise InputError(place, f"it cannot be read: {said}") from error


@contextmanager
def listing(url: str) -> Iterator[None]:
    """Name the address that cannot be listed in the block.

    Raises
    ------
    ValueError
        If there is nothing.
    OSError
        If it cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"inputs must exist, got {url!r}: no such file or folder") from None
    except OSError as error:
        raise OSError(f"{url} cannot be read: {error.strerror or error}") from error


def _fetched(url: str, start: int = 0, size: int | None = None) -> bytes:
    system, path = filesystem_of(url)
    if size is None:
        return bytes(system.cat_file(path))
    content = bytes(system.cat_file(path, start=start, end=start + size))
    # A server may send all of a file when asked for a part of it.
    return content if len(content) <= size else content[start : start + size]


def tried(do: Callable[[], T]) -> T:
    """Return what a function gives; try three times where the network fails.

    Raises
    ------
    FileNotFoundError
        If what it reads is not there.
    OSError
        If it failed every time, or may not be read.
    """
    for pause in (*PAUSES, None):
        try:
            return do()
        except (_GaveUp, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except _network_errors() as caught:
            if (error := _at_fault(caught)) is None:
                raise
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if (status := getattr(error, "status", None)) and status < 500 and status != 429:
                raise _GaveUp(f"the server says {status} ({said})") from error
            if pause is None:
                raise _GaveUp(f"tried {len(PAUSES) + 1} times, {said}") from error
            time.sleep(pause)
    raise OSError("it was not tried")


class _GaveUp(OSError):
    """It was tried often enough."""


def _at_fault(error: BaseException) -> BaseException | None:
    """Return the error of the network; None for a file that is not there."""
    if not isinstance(error, FileNotFoundError):
        return error
    # fsspec calls a web server that does not answer a file that is not there, too.
    cause = error.__cause__
    of_web = isinstance(cause, asyncio.TimeoutError) or type(cause).__module__.startswith("aiohttp")
    return cause if of_web and getattr(cause, "status", None) not in (404, 410) else None


def _network_errors() -> tuple[type[BaseException], ...]:
    loaded = [
        getattr(sys.modules[module], name) for module, name in _NETWORK if module in sys.modules
    ]
    return (OSError, asyncio.TimeoutError, http.client.HTTPException, *loaded)


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it.

    Raises
    ------
    ImportError
        If fsspec, or the package that it needs for this kind of address, is missing.
    ValueError
        If fsspec knows no such kind.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ImportError('addresses need fsspec: pip install "pyfeat[remote]"') from None
    found = _URL.fullmatch(url)
    scheme = found["scheme"] if found else url
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        hint = f"pip install {package}" if package else str(error)
        raise ImportError(f"{scheme}:// needs another package: {hint}") from error
    except ValueError as error:
        raise ValueError(
            f"inputs must be at an address of a known kind, got {url!r}: {error}"
        ) from None
    return system, str(path)


@contextmanager
def opened(place: str, *, seekable: bool = True) -> Iterator[Any]:
    """Open a file at a path or an address.

    Parameters
    ----------
    place : str
    seekable : bool, default=True
        False: it is read once, from its beginning; for servers that send no parts of files.
    """
    if not is_url(place):
        with open(place, "rb") as file:  # noqa: PTH123
            yield file
        return
    system, path = filesystem_of(place)
    how = {} if seekable else {"block_size": 0}
    with tried(lambda: system.open(path, "rb", **how)) as file:
        yield file


def found_at(url: str, suffixes: frozenset[str]) -> tuple[list[str], bool]:
    """Return the addresses that one stands for, in order, and whether it was a glob.

    Parameters
    ----------
    url : str
        A glob, a folder (searched recursively for files by suffix), or a file.
    suffixes : frozenset of str

    Raises
    ------
    ValueError
        If a glob matches nothing.
    FileNotFoundError
        If there is nothing.
    OSError
        If the network fails.
    """
    system, path = filesystem_of(url)
    if is_glob(url):
        matches = sorted(tried(lambda: system.glob(path)))
        if not matches:
            raise ValueError(f"inputs must match something, got the glob {url!r}: no match")
        return [_address(url, match) for match in matches], True
    about = tried(lambda: system.info(path))
    page = about.get("mimetype") == "text/html"  # what a web server shows of a folder
    if about.get("type") != "directory" and not page:
        return [url], False
    below = sorted(tried(lambda: system.find(path)))
    return [a for a in (_address(url, p) for p in below) if suffix_of(a) in suffixes], False


def is_glob(url: str) -> bool:
    """Return whether an address is a pattern; "?" in one of the web is none."""
    found = _URL.fullmatch(url)
    if found is None:
        return False
    magic = "*" if found["scheme"] in ("http", "https") else "*?["
    return any(c in found["path"] for c in magic)


def _address(like: str, path: str) -> str:
    """Return the address of a path in the file system of another address."""
    found = _URL.fullmatch(like)
    if found is None or "://" in path:
        return path
    return f"{found['caches']}{found['scheme']}://{path}{found['of'] or ''}"
