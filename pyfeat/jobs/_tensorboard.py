"""A job's numbers for TensorBoard."""

from __future__ import annotations

from typing import Any

_COUNTS = ("computed", "hits", "duplicates", "quarantined", "items_per_second")


class Scalars:
    """Writes counts, rate and shares over the number of inputs that are done.

    Parameters
    ----------
    folder : str

    Raises
    ------
    ImportError
        If tensorboard is not installed.
    """

    def __init__(self, folder: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError(
                "tensorboard must be installed to write scalars: pip install 'pyfeat[tensorboard]'"
            ) from None
        self._writer: Any = SummaryWriter(log_dir=folder)

    def tell(self, _event: str, facts: dict[str, Any]) -> None:
        """Write the numbers of an event that has some."""
        if "done" not in facts:
            return
        step = facts["done"]
        for name in _COUNTS:
            self._writer.add_scalar(f"job/{name}", facts[name], step)
        for name, share in facts["shares"].items():
            self._writer.add_scalar(f"share/{name}", share, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
