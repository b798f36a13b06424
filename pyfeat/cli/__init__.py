"""The command `pyfeat`."""

from pyfeat.cli._app import main

__all__ = ["main"]
