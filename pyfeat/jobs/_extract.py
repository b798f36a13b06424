"""The batch job: many files into a store, resumable, never dying of one of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pyfeat._identity import Space
from pyfeat.extract import FeatureExtractor, Input, RunOptions, progress_of, run
from pyfeat.jobs._collect import Paths, collect
from pyfeat.store import FeatureStore, Item, write_items

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


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
    """What a job did.

    Parameters
    ----------
    store : str
        Folder of the store.
    space : str
        Fingerprint of the rows.
    total : int
        Inputs seen: computed, stored and quarantined together.
    computed : int
        Images that went through the backbone.
    stored : int
        Images whose row was in the store when their turn came: from an earlier job, or from an
        equal file of this one.
    quarantined : list of Quarantined
        Inputs without a row, with the reason.
    seconds : float
        Wall time, the loading of the backbone included.
    images_per_second : float
        Inputs a second while the job ran, loading not included.
    """

    store: str
    space: str
    total: int
    computed: int
    stored: int
    quarantined: list[Quarantined]
    seconds: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self)


def extract(
    inputs: Inputs,
    store: str | os.PathLike[str],
    backbone: str | nn.Module | FeatureExtractor = "efficientnet_lite0",
    *,
    decode: str | None = None,
    column: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> ExtractSummary:
    """Put a row for every image into a store; run it again to go on where it stopped.

    Parameters
    ----------
    inputs : path-like or sequence of path-like
        Folders, globs, files and lists (see `collect`).
    store : path-like
        Folder of the store; made when it is not there.
    backbone : str, Module or FeatureExtractor, default="efficientnet_lite0"
        What computes the rows; an extractor brings its dtype, batch size, device and so on (its
        own store and `on_error` are not used).
    decode : {"exact", "fast"}, optional
        How files become pixels (see `FeatureExtractor`); by default as the extractor says, else
        "exact".
    column : str, optional
        Column of a list that holds the paths.
    progress : bool or callable, default=False
        True shows a bar on stderr; a callable gets (done, total).

    Returns
    -------
    summary : ExtractSummary

    Raises
    ------
    ValueError
        If the inputs name nothing, or `decode` is another mode.
    StoreError
        If the store cannot be written.

    Examples
    --------
    >>> from pyfeat import jobs
    >>> summary = jobs.extract("photos/", "feats/", "resnet50")  # doctest: +SKIP
    """
    extractor = backbone if isinstance(backbone, FeatureExtractor) else FeatureExtractor(backbone)
    if decode is not None:
        settings = extractor.get_params(deep=False)
        extractor = FeatureExtractor(**{**settings, "decode": decode})
    return extract_items(collect(inputs, column=column), store, extractor, progress)[0]


def extract_items(
    paths: Paths,
    store: str | os.PathLike[str],
    extractor: FeatureExtractor,
    progress: bool | Callable[[int, int], None],
) -> tuple[ExtractSummary, list[Item]]:
    """Do the work of `extract`; return what became of every path too, in their order."""
    began = time.perf_counter()
    # With the store, whose rows decide where an engine is to be chosen.
    settings = extractor.get_params(deep=False)
    extractor = FeatureExtractor(**{**settings, "store": store})
    loaded = extractor.get_backbone(paths)
    space = extractor.space_
    options = RunOptions(
        extractor.batch_size, extractor.deterministic, extractor.dtype, extractor.decode
    )
    items: dict[int, Item] = {}
    counts = {"computed": 0, "stored": 0, "bad": 0}
    running = time.perf_counter()
    with FeatureStore(store, space) as open_store:
        outcomes = run([Input(p, p) for p in paths], loaded, open_store, options)
        try:
            with progress_of(progress, len(paths)) as advance, closing(outcomes):
                for o in outcomes:
                    counts[o.status] += 1
                    items[o.position] = Item(paths[o.position], o.key, o.reason or None)
                    advance()
        finally:
            known = [items[i] for i in sorted(items)]
            write_items(store, space, known)
    return _summary(store, space, known, counts, began, running), known


def _summary(
    store: str | os.PathLike[str],
    space: Space,
    items: Sequence[Item],
    counts: dict[str, int],
    began: float,
    running: float,
) -> ExtractSummary:
    now = time.perf_counter()
    return ExtractSummary(
        store=str(Path(store)),
        space=space.fingerprint,
        total=len(items),
        computed=counts["computed"],
        stored=counts["stored"],
        quarantined=[Quarantined(i.name, i.reason) for i in items if i.reason is not None],
        seconds=now - began,
        images_per_second=len(items) / (now - running),
    )
