"""What a recording goes through is checked where it is written down."""

from __future__ import annotations

from typing import Any

import pytest

from pyfeat.backbones import AudioPreprocessing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 0}, r"sample_rate must be at least 1, got 0"),
        ({"window": 0}, r"window must be at least .* seconds, got 0.0"),
        ({"hop": 0}, r"hop must be at least .* seconds, got 0.0"),
        ({"hop": 3}, r"hop must be at most window=2, else samples are left out, got 3"),
        ({"lead": -1}, r"lead must be at least 0 seconds, got -1.0"),
        (
            {"normalize": "Unit"},
            r"normalize must be one of \['none', 'unit', 'volume'\], got 'Unit'",
        ),
    ],
)
def test_bad_settings_of_sound_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioPreprocessing(**{"sample_rate": 16_000, "window": 2, "hop": 1, **settings})


def test_seconds_as_integers_are_the_same_identity() -> None:
    whole, real = AudioPreprocessing(16_000, 2, 1), AudioPreprocessing(16_000, 2.0, 1.0)
    assert whole.to_parts() == real.to_parts()
    assert all(type(whole.to_parts()[k]) is float for k in ("window", "hop"))
