"""The CUDA module, where it was built."""

from __future__ import annotations

import pytest

cuda = pytest.importorskip("pyfeat._cuda", reason="built without a CUDA compiler")


def test_devices_are_counted_or_the_reason_is_given() -> None:
    found = cuda.devices()
    assert (found["count"] > 0) != bool(found["reason"])


def test_runtime_version_is_known_without_a_driver() -> None:
    assert cuda.devices()["runtime"] >= 11_000
