"""The batch job: many files into a store, resumable, never dying of one of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pyfeat.backbones import Fidelity
from pyfeat.extract import FeatureExtractor, Input, RunOptions, engine_of, progress_of, run
from pyfeat.jobs._collect_texts import Collected, collect_inputs
from pyfeat.store import FeatureStore, Item, write_items

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Collected


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
    """

    store: str
    space: str
    total: int
    computed: int
    stored: int
    quarantined: list[Quarantined]
    seconds: float
    images_per_second: float
    modality: str = "image"
    engine: str = "torch"
    precision: str = "fp32"
    choice: str | None = None
    truncated: int = 0
    fidelity: Fidelity | None = None

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
    fidelity: bool = False,
    progress: bool | Callable[[int, int], None] = False,
) -> ExtractSummary:
    """Put a row for every input into a store; run it again to go on where it stopped.

    Parameters
    ----------
    inputs : path-like or sequence of path-like
        Folders, globs, files and lists (see `collect`); for a backbone of texts cells of tables,
        lines of `.txt` files and the files of folders (see `collect_texts`).
    store : path-like
        Folder of the store; made when it is not there.
    backbone : str, Module or FeatureExtractor, default="efficientnet_lite0"
        What computes the rows; an extractor brings its layers, engine, dtype, batch size and so on
        (its own store and `on_error` are not used).
    decode : {"exact", "fast"}, optional
        How files become pixels (see `FeatureExtractor`); by default as the extractor says, else
        "exact".
    column : str, optional
        Column of a list that holds the paths, or the texts.
    fidelity : bool, default=False
        Whether to measure how true the engine is, on a sample of the inputs, where no choice did.
    progress : bool or callable, default=False
        True shows a bar on stderr; a callable gets (done, total).

    Returns
    -------
    summary : ExtractSummary

    Raises
    ------
    ValueError
        If the inputs name nothing or none of a sample can be read, or `decode` is another mode.
    BackendError
        If the engine cannot run, or none is true enough.
    StoreError
        If the store cannot be written.

    Examples
    --------
    >>> from pyfeat import jobs
    >>> summary = jobs.extract("photos/", "feats/", "resnet50")  # doctest: +SKIP
    """
    extractor = backbone if isinstance(backbone, FeatureExtractor) else FeatureExtractor(backbone)
    if decode is not None:
        extractor = copy(extractor).set_params(decode=decode)
    found = collect_inputs(inputs, extractor.modality, column)
    return extract_items(found, store, extractor, progress, fidelity=fidelity)[0]


def extract_items(
    inputs: Sequence[Input],
    store: str | os.PathLike[str],
    extractor: FeatureExtractor,
    progress: bool | Callable[[int, int], None],
    *,
    fidelity: bool = False,
) -> tuple[ExtractSummary, list[Item]]:
    """Do the work of `extract`; return what became of every input too, in their order."""
    began = time.perf_counter()
    # With the store, whose rows decide where an engine is to be chosen.
    extractor = copy(extractor).set_params(store=store)
    values = [item.value for item in inputs]
    loaded = extractor.get_backbone(values)
    measured = extractor.measure_fidelity(values) if fidelity else extractor.fidelity_
    space = extractor.space_
    options = RunOptions(
        extractor.batch_size, extractor.deterministic, extractor.dtype, extractor.decode
    )
    items: dict[int, Item] = {}
    counts = {"computed": 0, "stored": 0, "bad": 0, "cut": 0}
    running = time.perf_counter()
    with FeatureStore(store, space) as open_store:
        outcomes = run(inputs, loaded, open_store, options)
        try:
            with progress_of(progress, len(inputs)) as advance, closing(outcomes):
                for o in outcomes:
                    counts[o.status] += 1
                    counts["cut"] += o.cut
                    items[o.position] = Item(inputs[o.position].name, o.key, o.reason or None)
                    advance()
        finally:
            known = [items[i] for i in sorted(items)]
            write_items(store, space, known)
    now = time.perf_counter()
    engine, precision = engine_of(space.parts)
    summary = ExtractSummary(
        store=str(Path(store)),
        space=space.fingerprint,
        total=len(known),
        computed=counts["computed"],
        stored=counts["stored"],
        quarantined=[Quarantined(i.name, i.reason) for i in known if i.reason is not None],
        seconds=now - began,
        images_per_second=len(known) / (now - running),
        modality=loaded.modality,
        engine=engine,
        precision=precision,
        choice=_choice(extractor, engine, precision),
        truncated=counts["cut"],
        fidelity=measured,
    )
    return summary, known


def _choice(extractor: FeatureExtractor, engine: str, precision: str) -> str | None:
    """Return why an engine was taken; None where nothing was to be chosen."""
    if "auto" not in (extractor.engine, extractor.precision):
        return None
    if extractor.fidelity_ is None:
        return f"{engine} {precision}: what computed the rows that the store held"
    return extractor.fidelity_.reason()
