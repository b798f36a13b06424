"""Options of a job are checked in one place, before any work."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from pyfeat.jobs import JobOptions, extract
from pyfeat.jobs._options import Options, check_options


def test_checked_options_are_those_that_are_documented() -> None:
    assert {f.name for f in fields(Options)} == set(get_type_hints(JobOptions))


def test_unknown_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"options must be some of .*, got 'shards'"):
        extract("photos", tmp_path / "feats", shards="1/2")  # type: ignore[call-arg]


@pytest.mark.parametrize("shard", ["2/8", " 2 / 8 ", (2, 8), [2, 8]])
def test_shard_is_text_or_two_numbers(shard: Any) -> None:
    assert check_options({"shard": shard}).shard == (2, 8)


@pytest.mark.parametrize("shard", ["0/8", "9/8", "2", "2/8/1", "a/b", "", "-1/2", (0, 1), "2/0", 5])
def test_shard_that_is_none_is_refused(shard: Any) -> None:
    with pytest.raises(ValueError, match="shard must be i/n with 1 <= i <= n, like 2/8, got"):
        check_options({"shard": shard})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"runner": "spark"}, ValueError, r"runner must be one of \['local', 'ray'\], got 'spark'"),
        ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
        ({"workers": True}, TypeError, "workers must be a whole number, got True"),
        ({"workers": "2"}, TypeError, "workers must be a whole number, got '2'"),
        ({"address": "auto"}, ValueError, "address must be left out unless runner is 'ray'"),
        ({"retry_failed": 1}, TypeError, "retry_failed must be True or False, got 1"),
        ({"decode": 3}, TypeError, "decode must be a str, got 3"),
        ({"devices": "cuda:0"}, TypeError, "devices must be a list of names"),
        ({"devices": []}, TypeError, "devices must be a list of names"),
        ({"devices": ["cpu", ""]}, TypeError, "devices must be a list of names"),
    ],
)
def test_wrong_value_is_refused_in_one_sentence(
    options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_options(options)
