"""Which names there are, and which source a name belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.util import find_spec

from pyfeat.backbones import _keras, _lite
from pyfeat.backbones._pretrained import INSTALL_HINT
from pyfeat.backbones._resemblyzer import RESEMBLYZER
from pyfeat.backbones._st import MINILM
from pyfeat.backbones._timm import has_timm_model, timm_names
from pyfeat.backbones._torchvision import torchvision_names

_OWN = (*_lite.NAMES, MINILM, RESEMBLYZER)
# Names that no list can hold: folders, and what is on a hub.
OPEN_SOURCES = ("hf", "st")
_LISTS: dict[str, Callable[[], list[str]]] = {
    "pyfeat": lambda: list(_OWN),
    "torchvision": torchvision_names,
    "timm": timm_names,
    "keras": _keras.keras_names,
}


@dataclass(frozen=True)
class BackboneName:
    """A name that `load_backbone` takes, and where its weights come from."""

    name: str
    source: str


def list_backbones(pattern: str = "") -> list[BackboneName]:
    """Return the names that `load_backbone` takes, as far as their packages are installed.

    Parameters
    ----------
    pattern : str, default=""
        Part of a name, or a shell pattern with `*`, `?` or `[...]`. Upper and lower case are one.

    Returns
    -------
    names : list of BackboneName
        Each with `name` and `source`, the source being "pyfeat" (weights in a Python package),
        "torchvision", "timm" or "keras" (weights downloaded on first use). No name is listed twice.
        What "hf/" and "st/" may name is on a hub or in folders, and not listed; nor are files
        ("onnx/FILE").

    Raises
    ------
    TypeError
        If `pattern` is not a string.

    Examples
    --------
    >>> list_backbones("efficientnet_lite0")[0]
    BackboneName(name='efficientnet_lite0', source='pyfeat')
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a string, got {pattern!r}")
    wanted = pattern.lower()
    if not any(c in wanted for c in "*?["):
        wanted = f"*{wanted}*"
    return [
        BackboneName(name if source == "pyfeat" else f"{source}/{name}", source)
        for source, names in _installed().items()
        for name in names()
        if fnmatchcase(name.lower(), wanted) or fnmatchcase(f"{source}/{name}".lower(), wanted)
    ]


def find_source(name: str) -> tuple[str, str]:
    """Return the source of a name, and the name as that source knows it.

    Raises
    ------
    ImportError
        If neither torchvision nor timm is there to ask.
    ValueError
        If no source has the name; the message lists close ones.
    """
    if name in _OWN:
        return "pyfeat", name
    prefix, slash, rest = name.partition("/")
    if rest and (prefix in OPEN_SOURCES or prefix == "onnx"):
        return prefix, rest
    if prefix == "keras" and rest in _keras.keras_names():
        return prefix, rest
    bare = rest if slash else name
    for source, knows in (("torchvision", _torchvision_has), ("timm", has_timm_model)):
        asked = prefix == source if slash else source in _installed()
        if asked and knows(bare):
            return source, bare
    if not {"torchvision", "timm"} & _installed().keys():
        raise ImportError(f"backbone {name!r} needs torchvision or timm: {INSTALL_HINT}")
    close = get_close_matches(bare.lower(), _all_bare_names(), n=3)
    hint = f"; close names: {', '.join(close)}" if close else ""
    raise ValueError(f"backbone must be a name that list_backbones() has, got {name!r}{hint}")


def _torchvision_has(name: str) -> bool:
    return name.partition("@")[0] in torchvision_names()


def _installed() -> dict[str, Callable[[], list[str]]]:
    return {s: names for s, names in _LISTS.items() if s == "pyfeat" or find_spec(s) is not None}


def _all_bare_names() -> list[str]:
    listed = [name for names in _installed().values() for name in names()]
    return list(dict.fromkeys(listed + [name.partition(".")[0] for name in listed]))
