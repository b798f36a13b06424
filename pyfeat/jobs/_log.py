"""A job's log for machines: one JSON object a line."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

STDOUT = "-"


class JsonLines:
    """Adds a line to a file for each event of a job.

    Parameters
    ----------
    path : str
        File; what it holds is kept. "-" is stdout.

    Raises
    ------
    OSError
        If the file cannot be written.

    Warns
    -----
    RuntimeWarning
        If a line cannot be written. The job goes on without its log.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._owned = path != STDOUT
        self._file: Any = sys.stdout
        if self._owned:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115  `close` does it

    def tell(self, event: str, facts: dict[str, Any]) -> None:
        """Write an event in one line."""
        if self._file is None:
            return
        line = {"event": event, "time": time.time(), "pid": os.getpid(), **facts}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            with suppress(OSError):
                self.close()
            self._file = None
            warnings.warn(
                f"{self._path}: the log ends here ({error})", RuntimeWarning, stacklevel=2
            )

    def close(self) -> None:
        """Close the file."""
        if self._owned and self._file is not None:
            self._file.close()
