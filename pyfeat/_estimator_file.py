"""What every estimator saves besides its arrays: parameters, column names and the space."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from pyfeat._identity import Space
from pyfeat._model_file import load_model, save_model

E = TypeVar("E")


def save_estimator(
    path: str | os.PathLike[str],
    estimator: Any,
    arrays: Mapping[str, NDArray[Any]],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a fitted estimator to one safetensors file, all or nothing.

    Parameters
    ----------
    path : path-like
    estimator : estimator
        Fitted; its parameters are None, bools, numbers, text, or mappings, lists or
        tuples of these.
    arrays : mapping of str to ndarray
        What it learned.
    facts : mapping, optional
        JSON values to keep beside.

    Raises
    ------
    NotFittedError
        If there is nothing to save.
    TypeError
        If an array or a parameter has a type that is not named above.
    """
    check_is_fitted(estimator)
    names = getattr(estimator, "feature_names_in_", None)
    space = getattr(estimator, "space_", None)
    content = {
        "params": {name: _to_json(name, v) for name, v in estimator.get_params().items()},
        "n_features": int(estimator.n_features_in_),
        "feature_names": None if names is None else [str(name) for name in names],
        "space": None if space is None else space.to_json(),
        "more": dict(facts or {}),
    }
    save_model(path, type(estimator).__name__, arrays, content)


def load_estimator(
    path: str | os.PathLike[str], kind: type[E]
) -> tuple[E, dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `save_estimator` wrote.

    Parameters
    ----------
    path : path-like
    kind : type
        Class of the estimator that was saved.

    Returns
    -------
    estimator : instance of kind
        With its parameters, columns and space; the caller puts the arrays back.
    arrays : dict of str to ndarray
    facts : dict

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file holds something else.
    """
    arrays, content = load_model(path, kind.__name__)
    wanted = {"params", "n_features", "feature_names", "space", "more"}
    if missing := wanted - content.keys():
        got = f"{os.fspath(path)!r}: {', '.join(sorted(missing))} missing"
        raise ValueError(f"path must hold a saved {kind.__name__}, got {got}")
    estimator: Any = kind(**{name: _from_json(v) for name, v in content["params"].items()})
    estimator.n_features_in_ = content["n_features"]
    if content["feature_names"] is not None:
        estimator.feature_names_in_ = np.array(content["feature_names"], dtype=object)
    space = content["space"]
    estimator.space_ = None if space is None else Space.from_json(space)
    return estimator, arrays, content["more"]


def _to_json(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):  # JSON keys are text only
        pairs = [[_to_json(name, k), _to_json(name, v)] for k, v in value.items()]
        return {"pairs": pairs}
    if isinstance(value, (list, tuple)):
        return {"items": [_to_json(name, v) for v in value], "tuple": isinstance(value, tuple)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{name} must be None, a bool, a number, text, a sequence or a mapping, got {value!r}"
    )


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "items" in value:
        items = [_from_json(v) for v in value["items"]]
        return tuple(items) if value["tuple"] else items
    return {_from_json(k): _from_json(v) for k, v in value["pairs"]}
