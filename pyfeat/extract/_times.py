"""Where the time of a run goes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace


@dataclass
class Times:
    """Seconds of each kind of work, summed over the threads that did it.

    Parameters
    ----------
    read : float
        Reading inputs, taking their keys and looking them up.
    decode : float
        From content to tensors.
    forward : float
        The network, the copies to and from its device included.
    write : float
        Putting rows into the store and flushing it.
    wait : float
        What the network waited for inputs: not work, and in no share.
    """

    read: float = 0.0
    decode: float = 0.0
    forward: float = 0.0
    write: float = 0.0
    wait: float = 0.0

    def add(self, other: Times) -> None:
        """Add the seconds of somebody else."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def take(self) -> Times:
        """Return the seconds until now, and begin at zero again."""
        taken = replace(self)
        for f in fields(self):
            setattr(self, f.name, 0.0)
        return taken

    def to_dict(self) -> dict[str, float]:
        """Return the seconds by name."""
        return asdict(self)

    def shares(self) -> dict[str, float]:
        """Return which share of the work each kind was; 0 where there was no work.

        Examples
        --------
        >>> Times(read=1, decode=2, forward=4, write=1, wait=9).shares()
        {'read': 0.125, 'decode': 0.25, 'forward': 0.5, 'write': 0.125}
        """
        work = {name: s for name, s in asdict(self).items() if name != "wait"}
        total = sum(work.values())
        return {name: s / total if total else 0.0 for name, s in work.items()}
