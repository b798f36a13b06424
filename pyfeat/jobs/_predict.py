"""From a model file and images to labels."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pyfeat._identity import Space, check_same_space
from pyfeat.backbones import AudioPreprocessing
from pyfeat.extract import FeatureExtractor
from pyfeat.heads import LogisticHead
from pyfeat.jobs._collect_texts import collect_inputs
from pyfeat.jobs._extract import Inputs, extract_items
from pyfeat.jobs._summary import ExtractSummary
from pyfeat.ops import Preprocessing
from pyfeat.store import FeatureStore

BLOCK = 4096


@dataclass(frozen=True)
class Prediction:
    """Label of one image.

    Parameters
    ----------
    path : str
    label : str
    probability : float
        That the head gives to this label.
    """

    path: str
    label: str
    probability: float


@dataclass(frozen=True)
class PredictSummary:
    """Labels, and the images that could not be read.

    Parameters
    ----------
    predictions : list of Prediction
    extraction : ExtractSummary
    """

    predictions: list[Prediction]
    extraction: ExtractSummary

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self)


def extractor_of(space: Space, weights: str | os.PathLike[str] | None = None) -> FeatureExtractor:
    """Return the extractor whose rows are of a space.

    Parameters
    ----------
    space : Space
    weights : path-like, optional
        The file or folder that the weights came from, where they came from one.

    Raises
    ------
    ValueError
        If the backbone was a module, which no file can bring back; or if its weights came from a
        file, which was not given, or were not from one, and a file was given.
    SpaceError
        If the backbone of that name gives other rows today (other weights, another version).
    """
    parts = space.parts
    if parts.get("source") in (None, "module"):
        raise ValueError(
            "the model must come from a backbone with a name, got one from a module: "
            "compute the rows with FeatureExtractor and call LogisticHead.predict"
        )
    name, file = _named(parts, weights)
    tapped = isinstance(parts["layer"], list)
    precision = parts["precision"]
    video = parts.get("video", {})
    extractor = FeatureExtractor(
        name,
        weights=file,
        layers=parts["layer"] if tapped else -1,
        pooling=parts["pooling"] if tapped else "auto",
        engine=parts.get("engine", "torch"),
        precision="fp32" if precision == "float32" else precision,
        **_preparation(parts["preprocessing"]),
        video=video.get("pooling"),
        frames=video.get("frames", 8),
        dtype=space.dtype,
        deterministic=bool(parts.get("deterministic", False)),
        decode=parts.get("decode", "exact"),
    )
    check_same_space(space, extractor.get_space(), "the backbone")
    return extractor


def _preparation(parts: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an extractor that say what its inputs go through."""
    if "tokenizer" in parts:
        return {} if parts.get("fixed") else {"max_length": parts["max_length"]}
    kind = AudioPreprocessing if "sample_rate" in parts else Preprocessing
    return {"preprocessing": kind.from_parts(parts)}


def _named(
    parts: Mapping[str, Any], weights: str | os.PathLike[str] | None
) -> tuple[str, str | os.PathLike[str] | None]:
    """Return the name of the backbone and its file of weights."""
    kind = {"file": "file of weights", "onnx": "ONNX file", "folder": "folder"}.get(parts["source"])
    if kind is None and weights is not None:
        raise ValueError(f"weights must be None for {parts['name']}, got {os.fspath(weights)!r}")
    if kind is not None and weights is None:
        raise ValueError(
            f"weights must be given again: the model was trained on {parts['name']} with a {kind} "
            f"of the caller, got None"
        )
    if parts["source"] == "onnx" and weights is not None:
        return f"onnx/{os.fspath(weights)}", None
    if parts["source"] == "folder" and weights is not None:
        prefix, _, kind = parts["name"].partition("/")
        tower = "#text" if "#text:" in kind else ""
        return f"{prefix}/{os.fspath(weights)}{tower}", None
    return parts["name"], weights


def predict(
    model: str | os.PathLike[str],
    inputs: Inputs,
    *,
    weights: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    column: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> PredictSummary:
    """Label images with a model that `fit` wrote.

    Parameters
    ----------
    model : path-like
        File of the model.
    inputs : path-like or sequence of path-like
        As for `extract`.
    weights : path-like, optional
        The file or folder that the weights of the backbone came from: its path is not part of the
        model.
    store : path-like, optional
        Store whose rows are used, and to which new ones are added.
    column : str, optional
        Column of a table that holds the paths, the files or the texts.
    progress : bool or callable, default=False

    Returns
    -------
    summary : PredictSummary

    Raises
    ------
    ValueError
        If the model or the inputs are not there, or a file or folder of weights is missing.
    SpaceError
        If today's backbone gives rows of another space than the model was trained on.
    """
    head = LogisticHead.load(model)
    if head.space_ is None:
        raise ValueError(f"model must know its space, got {os.fspath(model)!r} trained on an array")
    extractor = extractor_of(head.space_, weights)
    collected = collect_inputs(inputs, extractor.modality, column)
    with _folder(store) as folder:
        summary, items = extract_items(collected, folder, extractor, progress)
        read = [(i.name, i.key) for i in items if i.key is not None]
        view = FeatureStore(folder, head.space_, mode="r").view([k for _, k in read])
        predictions = []
        for start in range(0, len(read), BLOCK):
            part = np.arange(start, min(start + BLOCK, len(read)))
            probability = head.predict_proba(view.take(part))
            best = probability.argmax(axis=1)
            for i, b, p in zip(part, best, probability, strict=True):
                predictions.append(Prediction(read[i][0], str(head.classes_[b]), float(p[b])))
    return PredictSummary(predictions, summary)


@contextmanager
def _folder(store: str | os.PathLike[str] | None) -> Iterator[str]:
    if store is not None:
        yield os.fspath(store)
        return
    with tempfile.TemporaryDirectory(prefix="pyfeat-") as folder:
        yield folder
