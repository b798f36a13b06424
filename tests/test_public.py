"""What a user sees of the package as a whole."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, metadata

import pytest

import pyfeat

ROOMS = ["align", "backbones", "extract", "heads", "index", "jobs", "ops", "store"]


def test_all_has_at_most_thirty_names() -> None:
    assert len(pyfeat.__all__) <= 30


@pytest.mark.parametrize("name", pyfeat.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(pyfeat, name) is not None


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_what_it_lists(room: str) -> None:
    module = import_module(f"pyfeat.{room}")
    assert [n for n in module.__all__ if not hasattr(module, n)] == []


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'FeatureExtracter'"):
        pyfeat.FeatureExtracter  # noqa: B018


def test_version_is_that_of_the_distribution() -> None:
    assert pyfeat.__version__ == metadata.version("pyfeat")


@pytest.mark.parametrize("heavy", ["torch", "sklearn", "timm", "faiss", "PIL"])
def test_import_loads_nothing_heavy(heavy: str) -> None:
    code = f"import sys, pyfeat; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_using_scikit_learn_leaves_its_switches_alone() -> None:
    code = (
        "import sklearn; before = sklearn.get_config(); import pyfeat.heads, pyfeat.align;"
        "import sys; sys.exit(sklearn.get_config() != before)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
