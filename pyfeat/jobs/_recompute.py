"""Compute some rows of a store again, and see whether they are what it holds."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyfeat._identity import Space
from pyfeat.backbones import Backbone
from pyfeat.errors import InputError
from pyfeat.extract import Input, RunOptions, content_of, engine_of, key_of, reader_of
from pyfeat.jobs._golden import golden_row, rows_of
from pyfeat.jobs._named import inputs_named
from pyfeat.jobs._predict import extractor_of
from pyfeat.store import FeatureStore, read_golden, sample_items

# Unit roundoff of the numbers that a network computes with.
_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 2.0**-8, "fp8": 2.0**-8}
# The roundings of about 100 layers add up like a random walk, to 10 of one; with room.
_LAYERS = 64
# In float32 the sums round as the numbers do: over 4096 products a random walk again. Narrow
# numbers are summed in float32, where that does not show.
_SUMS = 64
_KEPT = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@dataclass(frozen=True)
class Comparison:
    """A row of a store beside the same row computed now.

    Parameters
    ----------
    name : str
        Path of the input; of the golden row the name of a built-in one.
    cosine : float
    difference : float
        Largest difference of two numbers of the rows.
    distance : float
        Norm of the difference over the norm of the stored row.
    tolerance : float
        The distance that rounding on another machine explains.
    """

    name: str
    cosine: float
    difference: float
    distance: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the distance."""
        return self.distance <= self.tolerance


@dataclass(frozen=True)
class Recomputed:
    """What came of computing rows of one space again.

    Parameters
    ----------
    space : str
        Fingerprint.
    backbone : str or None
    reason : str or None
        Why nothing could be computed; else None.
    compared : list of Comparison
    golden : Comparison or None
        None where the space has no golden row.
    gone : int
        Inputs picked that are not there any more.
    changed : int
        Inputs picked whose content is another one now.
    unreadable : int
        Inputs picked that cannot be read, or whose row in the store is damaged.
    """

    space: str
    backbone: str | None
    reason: str | None = None
    compared: tuple[Comparison, ...] = ()
    golden: Comparison | None = None
    gone: int = 0
    changed: int = 0
    unreadable: int = 0

    @property
    def beyond(self) -> list[Comparison]:
        """Rows that are others than those in the store."""
        golden = [self.golden] if self.golden is not None else []
        return [c for c in (*golden, *self.compared) if not c.agrees]

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON values."""
        return asdict(self) | {"beyond": [c.name for c in self.beyond]}


def recompute(
    store: str | os.PathLike[str],
    n: int = 32,
    *,
    space: Space | None = None,
    weights: str | os.PathLike[str] | None = None,
    seed: int | None = None,
) -> list[Recomputed]:
    """Compute rows of inputs picked at random, and the golden row, and compare them.

    Parameters
    ----------
    store : path-like
        Folder of the store.
    n : int, default=32
        Inputs of each space.
    space : Space, optional
        Only this one; by default all.
    weights : path-like, optional
        The file that the weights of the backbone came from, where they came from one.
    seed : int, optional
        For the same inputs again.

    Returns
    -------
    recomputed : list of Recomputed
        One for each space.

    Raises
    ------
    StoreError
        If `store` is no store.
    ValueError
        If `n` is negative.

    Notes
    -----
    Rows of one space from two machines agree to rounding, not to the bit. The distance
    |a - b| / |a| of two rows is taken for rounding up to 64 u, where u is the unit roundoff of the
    network's precision (fp32 2^-24, fp16 2^-11, bf16 2^-8; int8, whose codes are 1/254 of the
    largest apart from what they stand for, 2^-8; fp8, 2^-8 too: where sums round another way a few
    codes move, by 2^-3 of what they stand for): the roundings of a hundred layers add up to ten
    of one, with room. In float32, where sums of thousands of products round as well, it is 64 times
    that, 2.4e-4. To it comes what the dtype of the store rounds off: 2^-11 for float16, 2^-8 for
    bfloat16, half a step of the codes for int8. The same network with another filter or crop is
    beyond that in float32; in bf16, int8 and fp8 only a larger difference is seen.

    A row of a table has a name without a column. It is taken from the column that holds what the
    row in the store was computed from, whichever was asked for then.
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    spaces = FeatureStore.spaces(store) if space is None else [space]
    return [_recompute_space(Path(store), s, n, weights, seed) for s in spaces]


def tolerance_of(space: Space, row: NDArray[Any]) -> float:
    """Return the relative distance that rounding explains (see `recompute`)."""
    precision = engine_of(space.parts)[1].partition(":")[0]
    network = _LAYERS * _ROUNDOFF[precision] * (_SUMS if precision == "fp32" else 1)
    if space.dtype in _KEPT:
        return network + _KEPT[space.dtype]
    norm = float(np.linalg.norm(row)) or 1.0
    return float(network + np.abs(row).max() / 254 * len(row) ** 0.5 / norm)


def _recompute_space(
    store: Path, space: Space, n: int, weights: str | os.PathLike[str] | None, seed: int | None
) -> Recomputed:
    name = space.parts.get("name")
    try:
        extractor = extractor_of(space, weights)
        backbone = extractor.get_backbone()
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        return Recomputed(space.fingerprint, name, reason=str(error))
    options = RunOptions(
        extractor.batch_size, extractor.deterministic, extractor.dtype, extractor.decode
    )
    picked = sample_items(store, space, n, np.random.default_rng(seed))
    keys = {item.name: item.key for item in picked}

    def is_right(i: Input) -> bool:
        return _key_now(i, backbone, options) == keys[i.name]

    found = inputs_named(keys, extractor.modality, is_right)
    here = [(item, found[item.name]) for item in picked if item.name in found]
    same = [(item, i) for item, i in here if _key_now(i, backbone, options) in (item.key, None)]
    opened = FeatureStore(store, space, mode="r")
    stored, intact = opened.get_intact([item.key for item, _ in same if item.key])
    now = rows_of([i for _, i in same], backbone, options)
    compared = tuple(
        compare(item.name, was, row, space)
        for (item, _), was, ok, row in zip(same, stored, intact, now, strict=True)
        if ok and row is not None
    )
    return Recomputed(
        space.fingerprint,
        name,
        compared=compared,
        golden=_compare_golden(store, space, backbone, options),
        gone=len(picked) - len(here),
        changed=len(here) - len(same),
        unreadable=len(same) - len(compared),
    )


def _compare_golden(
    store: Path, space: Space, backbone: Backbone, options: RunOptions
) -> Comparison | None:
    kept = read_golden(store, space)
    now = golden_row(backbone, options)
    if kept is None or now is None or kept.name != now.name:
        return None
    return compare(kept.name, kept.row, now.row, space)


def compare(name: str, stored: NDArray[Any], now: NDArray[Any], space: Space) -> Comparison:
    """Return how far a row is from one computed now."""
    a, b = np.asarray(stored, np.float64), np.asarray(now, np.float64)
    norm, other = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    apart = float(np.linalg.norm(a - b))
    both = norm * other
    return Comparison(
        name,
        cosine=float(a @ b) / both if both else float(apart == 0),
        difference=float(np.abs(a - b).max()),
        distance=apart / (norm or apart or 1.0),  # all of it, where zeros are stored
        tolerance=tolerance_of(space, a),
    )


def _key_now(item: Input, backbone: Backbone, options: RunOptions) -> bytes | None:
    """Return the key of what an input holds now; None where it cannot be read."""
    try:
        return key_of(content_of(reader_of(backbone, options.decode), item))
    except InputError:
        return None
