"""From a store to a neighbour search over it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from pyfeat.index import FeatureIndex
from pyfeat.jobs._collect_texts import collect_inputs
from pyfeat.jobs._extract import Inputs, extract_items
from pyfeat.jobs._fit import choose_space
from pyfeat.jobs._labelled import named_rows
from pyfeat.jobs._predict import extractor_of
from pyfeat.jobs._summary import ExtractSummary
from pyfeat.store import FeatureStore


@dataclass(frozen=True)
class Neighbour:
    """One image near a query.

    Parameters
    ----------
    query : str
        Path of the query.
    path : str
        Path of the neighbour.
    score : float
        Cosine similarity.
    """

    query: str
    path: str
    score: float


def build_index(
    store: str | os.PathLike[str], out: str | os.PathLike[str], *, space: str | None = None
) -> int:
    """Index every image of a store and write the index to a file.

    Parameters
    ----------
    store : path-like
    out : path-like
    space : str, optional
        First digits of the fingerprint, when the store holds several spaces.

    Returns
    -------
    n_indexed : int

    Raises
    ------
    ValueError
        If the store holds no named image.
    """
    chosen = choose_space(store, space)
    view, names = named_rows(store, chosen)
    if not len(names):
        raise ValueError(f"store must hold images, got none in {os.fspath(store)!r}")
    FeatureIndex("exact", metric="cosine").fit(view, ids=names).save(out)
    return len(names)


def search_index(
    index: str | os.PathLike[str],
    inputs: Inputs,
    *,
    k: int = 5,
    weights: str | os.PathLike[str] | None = None,
    column: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> tuple[list[Neighbour], ExtractSummary]:
    """Return the k indexed images nearest to each input.

    Parameters
    ----------
    index : path-like
        File that `build_index` wrote.
    inputs : path-like or sequence of path-like
    k : int, default=5
    weights : path-like, optional
        The file or folder that the weights of the backbone came from, where they came from one.
    column : str, optional
    progress : bool or callable, default=False

    Returns
    -------
    neighbours : list of Neighbour
        k for each query that could be read, nearest first.
    extraction : ExtractSummary

    Raises
    ------
    SpaceError
        If today's backbone gives rows of another space than the index holds.
    """
    searched = FeatureIndex.load(index)
    if searched.space_ is None:
        raise ValueError(f"index must know its space, got {os.fspath(index)!r} built on an array")
    extractor = extractor_of(searched.space_, weights)
    queries = collect_inputs(inputs, extractor.modality, column)
    with tempfile.TemporaryDirectory(prefix="pyfeat-") as folder:
        summary, items = extract_items(queries, folder, extractor, progress)
        read = [(i.name, i.key) for i in items if i.key is not None]
        if not read:
            return [], summary
        view = FeatureStore(folder, searched.space_, mode="r").view([key for _, key in read])
        scores, ids = searched.search(view, k)
    found = [
        Neighbour(query, str(name), float(score))
        for (query, _), row_scores, row_ids in zip(read, scores, ids, strict=True)
        for score, name in zip(row_scores, row_ids, strict=True)
    ]
    return found, summary
