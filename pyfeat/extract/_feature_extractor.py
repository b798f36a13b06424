"""The transformer: images in, rows out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from torch import nn

from pyfeat._identity import ROW_DTYPES, Space, check_same_space
from pyfeat.backbones import Backbone, Layers, check_engine, load_backbone
from pyfeat.errors import InputError
from pyfeat.extract._choice import Wish, on_engine
from pyfeat.extract._inputs import Input, as_inputs
from pyfeat.extract._progress import progress_of
from pyfeat.extract._run import RunOptions, row_space, run
from pyfeat.ops import DECODE_MODES, Preprocessing
from pyfeat.store import FeatureStore

Progress = bool | Callable[[int, int], None]


class FeatureExtractor(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]  # scikit-learn has no types
    TransformerMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Turn images into rows of features with a frozen, pretrained backbone.

    Stateless: `fit` only checks the parameters, `transform` may be called without it. Works in a
    scikit-learn `Pipeline`; with a store, the clones that cross-validation and grid search make all
    share it, so each image goes through the backbone once.

    Parameters
    ----------
    backbone : str or torch.nn.Module, default="efficientnet_lite0"
        Name ("efficientnet_lite0", "resnet50", "torchvision/NAME[@WEIGHTS]", "timm/NAME"; see
        `pyfeat backbones`), or a module that takes (n, 3, h, w) and returns (n, d) or (n, d, h, w).
    store : path-like or FeatureStore, optional
        Where rows are kept. What is there already is not computed again, whatever its file is
        called now.
    layers : int, str or sequence of them, default=-1
        Which layers the row is made of (see `load_backbone`); several stand beside each other, and
        `split` takes them apart.
    pooling : {"auto", "cls", "avg", "max", "gem", "cls+avg", "none"}, default="auto"
        How maps and tokens become a row. With "none", of one layer, `transform` returns them as
        they are: (n, c, h, w) or (n, l, c).
    engine : {"torch", "openvino", "onnxruntime", "auto"}, default="torch"
        What runs the network. "auto" measures all of them on a sample of the inputs, and takes the
        fastest that is true enough; the choice is part of the space.
    precision : {"fp32", "bf16", "fp16", "int8", "auto"}, default="fp32"
        Numbers the network computes with; "auto" as for `engine`. "int8" is calibrated on a sample
        of the inputs, and goes on with the network of the store's rows (see `Backbone.keep`).
    min_cosine : float, default=0.995
        What "auto" accepts: the smallest cosine over the sample between a row and that of torch in
        float32.
    preprocessing : Preprocessing, optional
        Size, crop, filter, mean and deviation; by default what the weights were trained with.
    dtype : {"float32", "float16"}, default="float32"
        Type of the rows, returned and stored.
    batch_size : int or "auto", default="auto"
        Images in one forward pass. "auto" shrinks when memory runs out.
    device : str or torch.device, default="auto"
        "auto" is the GPU when there is one, else the CPU.
    deterministic : bool, default=False
        Promise rows whose bits do not depend on the batch size or on the other images of a call. On
        a CPU that costs nothing; on a GPU it means one image a pass, which is slow. Rows with the
        promise are a space of their own, so that a store never mixes them with others.
    decode : {"exact", "fast"}, default="exact"
        "fast" decodes a large JPEG file at 1/2, 1/4 or 1/8 of its size, as far as the short side
        stays at least `preprocessing.resize` (see `pyfeat.ops.decode`). Such rows are a space of
        their own.
    on_error : {"raise", "nan"}, default="raise"
        What to do about an input that cannot be read: raise, or give it a row of NaN.
    progress : bool or callable, default=False
        True shows a bar with rate and remaining time on stderr; a callable gets (done, total).

    Attributes
    ----------
    space_ : Space
        What makes the rows comparable; after `fit` or `transform`.
    fidelity_ : Fidelity or None
        What "auto" measured; None where nothing was to be chosen, or the store held rows of an
        earlier choice, which is kept.
    n_truncated_ : int
        Texts of the last `transform` that were longer than the model takes, and were cut.

    Raises
    ------
    InputError
        From `transform`, if an input cannot be read and `on_error="raise"`: with its name and the
        reason. What was computed before it is in the store.
    SpaceError
        If `store` is a FeatureStore that holds another space.
    ValueError, TypeError
        If a parameter or X is not as described.

    Notes
    -----
    Inputs are paths, encoded `bytes`, PIL images or uint8 arrays (h, w), (h, w, 1), (h, w, 3) or
    (h, w, 4), in a list, an object array, a pandas or polars column; or one array (n, h, w, c).
    EXIF orientation is applied, alpha is dropped, 16-bit images are scaled to 8 bits, of an
    animation the first frame is taken.

    On a CPU the bits of a row never depend on the batch. On a GPU they may without `deterministic`:
    kernels are chosen by the size of the batch. Where a CPU is made to run whole batches too, rows
    of one image differ by at most 1e-5 of their norm in float32 (tests/extract); the tolerance is
    the same for a GPU. An image whose row is not finite in `dtype` counts as one that cannot be
    read.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from pyfeat import FeatureExtractor
    >>> extractor = FeatureExtractor(torch.nn.AvgPool2d(32))
    >>> extractor.transform(np.zeros((2, 300, 200, 3), np.uint8)).shape
    (2, 3)
    """

    def __init__(  # noqa: PLR0913  # scikit-learn wants every setting as an argument
        self,
        backbone: str | nn.Module = "efficientnet_lite0",
        *,
        store: str | os.PathLike[str] | FeatureStore | None = None,
        layers: Layers = -1,
        pooling: str = "auto",
        engine: str = "torch",
        precision: str = "fp32",
        min_cosine: float = 0.995,
        preprocessing: Preprocessing | None = None,
        dtype: str = "float32",
        batch_size: int | str = "auto",
        device: Any = "auto",
        deterministic: bool = False,
        decode: str = "exact",
        on_error: str = "raise",
        progress: Progress = False,
    ) -> None:
        self.backbone = backbone
        self.store = store
        self.layers = layers
        self.pooling = pooling
        self.engine = engine
        self.precision = precision
        self.min_cosine = min_cosine
        self.preprocessing = preprocessing
        self.dtype = dtype
        self.batch_size = batch_size
        self.device = device
        self.deterministic = deterministic
        self.decode = decode
        self.on_error = on_error
        self.progress = progress

    def fit(self, X: Any = None, y: Any = None) -> FeatureExtractor:
        """Check the parameters and load the backbone.

        Parameters
        ----------
        X : as for `transform`, optional
            Only looked at where engine or precision are "auto": a sample of it is measured.
        y : object
            Not looked at.

        Returns
        -------
        self : FeatureExtractor
        """
        self.get_backbone(None if X is None or not self._wish.is_open else X)
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Return one row for each input, in their order.

        Parameters
        ----------
        X : sequence of path-like, bytes, PIL image or array; or one array (n, h, w, c)

        Returns
        -------
        rows : ndarray of shape (n, d), dtype as asked for
            With `pooling="none"` and one layer: the maps or tokens, (n, c, h, w) or (n, l, c).

        Raises
        ------
        InputError
            If an input cannot be read and `on_error="raise"`.
        """
        base = self._base()
        inputs = as_inputs(X, base.modality)
        backbone = self._on_engine(base, inputs)
        rows = np.full((len(inputs), backbone.dim), np.nan, self.dtype)
        if not inputs:
            return rows
        with self._open_store() as store:
            keys = self._run(inputs, backbone, store, rows)
            if store is not None and keys:
                rows[list(keys)] = store.get(list(keys.values()))
        return rows.reshape(-1, *backbone.shapes[0]) if len(backbone.shapes) == 1 else rows

    def split(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Take rows of several layers apart.

        Parameters
        ----------
        rows : ndarray of shape (n, d)
            What `transform` returned, or rows of a store.

        Returns
        -------
        layers : dict of str to ndarray
            Views of what each layer gave, by its name; maps and tokens in their own shape.

        Raises
        ------
        ValueError
            If `rows` have another number of columns.
        """
        backbone = self._base()
        rows = np.asarray(rows).reshape(len(rows), -1)
        if rows.shape[1] != backbone.dim:
            raise ValueError(f"rows must have {backbone.dim} columns, got {rows.shape[1]}")
        names = backbone.parts["layer"]
        names = [names] if isinstance(names, str) else names
        ends = np.cumsum([0, *(math.prod(shape) for shape in backbone.shapes)])
        return {
            name: rows[:, a:b].reshape(-1, *shape)
            for name, shape, (a, b) in zip(names, backbone.shapes, pairwise(ends), strict=True)
        }

    def get_backbone(self, X: Any = None) -> Backbone:
        """Return the backbone, loaded, on the engine that its rows come from.

        Parameters
        ----------
        X : as for `transform`, optional
            Inputs to come, for a choice of the engine.

        Returns
        -------
        backbone : Backbone

        Raises
        ------
        ValueError
            If engine or precision are "auto" and were not chosen yet, and X is not given.
        """
        base = self._base()
        return self._on_engine(base, None if X is None else as_inputs(X, base.modality))

    def get_space(self) -> Space:
        """Return what makes the rows of this extractor comparable, loading the backbone.

        Returns
        -------
        space : Space

        Raises
        ------
        ValueError
            If engine or precision are "auto" and were not chosen yet: call `fit(X)` first.
        """
        self.get_backbone()
        return self.space_

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.input_tags.three_d_array = True
        return tags

    @property
    def _n_features_out(self) -> int:
        return self._base().dim

    @property
    def _wish(self) -> Wish:
        return Wish(self.engine, self.precision, self.min_cosine, self.decode)

    def _base(self) -> Backbone:
        self._check_parameters()
        return load_backbone(
            self.backbone,
            layers=self.layers,
            pooling=self.pooling,
            preprocessing=self.preprocessing,
            device=self.device,
        )

    def _on_engine(self, base: Backbone, inputs: list[Input] | None) -> Backbone:
        stored = self._stored_spaces() if self._wish.is_open else []
        backbone, self.fidelity_ = on_engine(base, self._wish, inputs, stored)
        self.space_ = row_space(backbone, self.dtype, self.deterministic, self.decode)
        return backbone

    def _stored_spaces(self) -> list[Space]:
        if isinstance(self.store, FeatureStore):
            return [self.store.space]
        exists = self.store is not None and Path(self.store).is_dir()
        return FeatureStore.spaces(self.store) if self.store is not None and exists else []

    def _check_parameters(self) -> None:
        check_engine(self.engine, self.precision)
        if not isinstance(self.min_cosine, (int, float)) or not -1 <= self.min_cosine <= 1:
            raise ValueError(f"min_cosine must be in [-1, 1], got {self.min_cosine!r}")
        if self.dtype not in ROW_DTYPES:
            raise ValueError(f"dtype must be one of {list(ROW_DTYPES)}, got {self.dtype!r}")
        if self.decode not in DECODE_MODES:
            raise ValueError(f"decode must be one of {list(DECODE_MODES)}, got {self.decode!r}")
        if self.on_error not in ("raise", "nan"):
            raise ValueError(f"on_error must be 'raise' or 'nan', got {self.on_error!r}")
        size = self.batch_size
        is_count = isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 1
        if size != "auto" and not is_count:
            raise ValueError(f"batch_size must be 'auto' or a positive integer, got {size!r}")

    @contextmanager
    def _open_store(self) -> Iterator[FeatureStore | None]:
        if self.store is None:
            yield None
        elif isinstance(self.store, FeatureStore):
            check_same_space(self.space_, self.store.space, "store")
            yield self.store  # its owner closes it
        else:
            with FeatureStore(self.store, self.space_) as store:
                yield store

    def _run(
        self,
        inputs: list[Input],
        backbone: Backbone,
        store: FeatureStore | None,
        rows: NDArray[Any],
    ) -> dict[int, bytes]:
        """Compute what is missing into `rows`; return the keys of rows that the store has."""
        in_store: dict[int, bytes] = {}
        self.n_truncated_ = 0
        options = RunOptions(self.batch_size, self.deterministic, self.dtype, self.decode)
        outcomes = run(inputs, backbone, store, options)
        with progress_of(self.progress, len(inputs)) as advance, closing(outcomes):
            for outcome in outcomes:
                if outcome.status == "bad" and self.on_error == "raise":
                    raise InputError(inputs[outcome.position].name, outcome.reason)
                self.n_truncated_ += outcome.cut
                if outcome.row is not None:
                    rows[outcome.position] = outcome.row
                elif outcome.key is not None:
                    in_store[outcome.position] = outcome.key
                advance()
        return in_store
