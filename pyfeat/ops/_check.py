"""Reasons to refuse that several ops share, as sentences."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1)
def why_no_core() -> str | None:
    """Return why the module `_core` cannot be used, or None when it can."""
    try:
        import pyfeat._core  # noqa: F401
    except ImportError as error:
        return f"pyfeat was installed without its native module ({error})"
    return None
