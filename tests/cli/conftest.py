"""The photos of the job tests, and the command as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pyfeat.cli import (  # noqa: F401  they register their commands
    _app,
    _data,
    _extract,
    _model,
    _plan,
    _store,
    _tools,
)
from tests.jobs.conftest import class_folders, horrors, words  # noqa: F401  fixtures

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run the command in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(_app.app, [str(a) for a in arguments])

    return call


def json_of(result: Result) -> Any:
    return json.loads(result.stdout)
