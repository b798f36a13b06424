"""One file for what an estimator learned: safetensors, with JSON in its metadata. No pickle."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat import _core
from pyfeat._identity import canonical_json
from pyfeat.errors import StoreError

FORMAT = 1


def save_model(
    path: str | os.PathLike[str],
    kind: str,
    arrays: Mapping[str, NDArray[Any]],
    facts: Mapping[str, Any],
) -> None:
    """Write a model file, all or nothing.

    Parameters
    ----------
    path : path-like
        File to write; an existing one is replaced in one step.
    kind : str
        What the file holds, for example "LogisticHead"; `load_model` checks it.
    arrays : mapping of str to ndarray
        Learned arrays. Numbers, bools and fixed-width text; no objects.
    facts : mapping
        Everything else, as JSON values.

    Raises
    ------
    TypeError
        If an array has a dtype that is neither a number, a bool nor text.
    """
    from safetensors.numpy import save

    target = Path(path)
    texts = {name: a for name, a in arrays.items() if a.dtype.kind == "U"}
    for name, a in arrays.items():
        if a.dtype.kind not in "biufU":
            raise TypeError(f"{name} must hold numbers, bools or text to be saved, got {a.dtype}")
    content = {
        "format": FORMAT,
        "kind": kind,
        "facts": dict(facts),
        "texts": {name: a.tolist() for name, a in texts.items()},
    }
    numbers = {n: np.ascontiguousarray(a) for n, a in arrays.items() if n not in texts}
    blob = save(numbers, metadata={"pyfeat": canonical_json(content)})
    replace_file(target, blob)


def load_model(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `save_model` wrote.

    Returns
    -------
    arrays : dict of str to ndarray
    facts : dict

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not a pyfeat model, or holds another kind.
    """
    from safetensors import SafetensorError, safe_open

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"path must be a model file, got {str(source)!r}: no such file")
    try:
        with safe_open(source, framework="numpy") as f:
            content = json.loads((f.metadata() or {}).get("pyfeat", "{}"))
            arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"path must be a pyfeat model, got {str(source)!r}: {error}") from None
    if not isinstance(content, dict):
        got = f"{str(source)!r}: metadata is a {type(content).__name__}"
        raise ValueError(f"path must be a pyfeat model, got {got}")
    if content.get("format") != FORMAT or content.get("kind") != kind:
        got = f"{content.get('kind')} (format {content.get('format')})"
        raise ValueError(f"path must hold a {kind} (format {FORMAT}), got {got} in {str(source)!r}")
    for part in ("texts", "facts"):
        if not isinstance(content.get(part), dict):
            raise ValueError(
                f"path must be a pyfeat model, got {str(source)!r}: {part} are missing"
            )
    arrays |= {name: np.asarray(value) for name, value in content["texts"].items()}
    return arrays, content["facts"]


def replace_file(target: Path, content: bytes) -> None:
    """Write `content` to `target` so that a crash leaves the old file or the new one."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    publish_file(temporary, lambda: target, content, shown=target)


def publish_file(
    hidden: Path, name: Callable[[], Path], content: bytes, *, shown: Path | None = None
) -> None:
    """Write `content` to `hidden`, which then gets its name; a crash leaves all of it or none.

    `name` is called when the hidden file is there, locked as long as its writer lives. An error
    names `shown`, by default the folder.
    """
    with _as_oserror(shown or hidden.parent):
        _core.replace_file(lambda: os.fsencode(name()), os.fsencode(hidden), content)


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, so that they survive power loss."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with _as_oserror(folder):
        _core.make_folder(os.fsencode(folder))
        _core.sync_folder_of(os.fsencode(folder))


@contextmanager
def _as_oserror(path: Path) -> Iterator[None]:
    # Of the class that its number means: FileExistsError, PermissionError.
    try:
        yield
    except StoreError as error:
        number = error.errno or errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None
