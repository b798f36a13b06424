"""What a job tells when it ends."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pyfeat.backbones import Fidelity


@dataclass(frozen=True)
class Quarantined:
    """An input that got no row.

    Parameters
    ----------
    path : str
    reason : str
    """

    path: str
    reason: str


@dataclass(frozen=True)
class ExtractSummary:
    """What a job did: `total` is `computed`, `hits`, `duplicates` and `n_quarantined` together.

    Parameters
    ----------
    store : str
        Folder of the store.
    space : str
        Fingerprint of the rows.
    total : int
        Inputs whose turn came.
    computed : int
        Inputs that went through the backbone.
    hits : int
        Inputs whose row was in the store before the job began.
    duplicates : int
        Inputs equal to another one of this job, whose row they share.
    quarantined : list of Quarantined
        Inputs without a row, with the reason; the first 10,000 of them. The store lists all.
    seconds : float
        Wall time, the loading of the backbone included.
    images_per_second : float
        Inputs a second while the job ran, loading not included.
    modality : {"image", "text", "audio", "video"}
        What the inputs are.
    engine, precision : str
        What computed the rows.
    choice : str or None
        One sentence: why this engine and precision, where one was to be chosen; else None.
    truncated : int
        Texts computed now that were longer than the model takes, and were cut.
    fidelity : Fidelity or None
        What was measured, to choose an engine or because it was asked for.
    n_quarantined : int
        Inputs without a row.
    left : int
        Inputs whose turn did not come: the job was interrupted.
    shard : str or None
        Which share of the inputs this was, as "i/n".
    times : dict of str to float
        Seconds of the work, summed over threads and processes (see `pyfeat.extract.Times`).
    shares : dict of str to float
        Which share of the work was read, decode, forward and write.
    """

    store: str
    space: str
    total: int
    computed: int
    hits: int
    duplicates: int
    quarantined: list[Quarantined]
    seconds: float
    images_per_second: float
    modality: str = "image"
    engine: str = "torch"
    precision: str = "fp32"
    choice: str | None = None
    truncated: int = 0
    fidelity: Fidelity | None = None
    n_quarantined: int = 0
    left: int = 0
    shard: str | None = None
    times: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def stored(self) -> int:
        """Inputs whose row was in the store when their turn came: hits and duplicates."""
        return self.hits + self.duplicates

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {**asdict(self), "stored": self.stored}


class JobInterrupted(KeyboardInterrupt):
    """A job was asked to stop, by Ctrl-C or SIGTERM, and did, with everything written.

    Attributes
    ----------
    summary : ExtractSummary
        What was done by then; `left` says how many inputs are to come.
    signal : int
        Number of the signal.
    """

    def __init__(self, summary: ExtractSummary, signal: int) -> None:
        super().__init__(f"interrupted: {summary.total:,} inputs are done, {summary.left:,} left")
        self.summary = summary
        self.signal = signal
